// The OpenMP threads that torch's own operations run on.  Those that have just worked stay awake for milliseconds, on
// the cores that the kernels need next: a team of them starts at once, one of others would share their cores.
#pragma once

namespace uot {

// work(data) on so many threads, the caller's among them, and waits for all; false, and nothing done, where torch has
// no such threads, or works on another number of them (GNU's runtime would end those that a smaller team leaves out, and
// make them anew for torch), or where this process was forked from one that had some.
bool on_openmp_threads(void (*work)(void*), void* data, int threads);

// Whether that is how kernels run here.
bool has_openmp_threads();

}  // namespace uot
