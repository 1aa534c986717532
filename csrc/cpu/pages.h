// Large pages for large results, where the system has some at hand.
#pragma once

#include <cstddef>

namespace uot {

// From here on an allocator maps memory for one result alone (glibc's largest threshold), so that what is asked for
// goes with it.
constexpr size_t kOwnMapping = size_t(32) << 20;

// Asks for pages of 2 MiB under memory that is about to be written for the first time.  A fault for each page of 4 KiB
// takes longer than what a pass over the cost computes.  Where so many large pages are not free, making them takes
// longer still: then nothing is asked for.
void prefer_large_pages(void* begin, size_t bytes);

// Free blocks of 2 MiB by the text of Linux's /proc/buddyinfo: a line per zone, a count per power of two of pages.
size_t free_large_pages(const char* buddyinfo);

}  // namespace uot
