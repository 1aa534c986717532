// Launches of the resident kernel.  Nothing here needs CUDA's headers, nothing throws: what went wrong is a sentence.
#pragma once

#include <cstdint>
#include <string>

#include "plan.h"

namespace uot::resident {

// Why device number `device` cannot run the kernel, or nothing.
std::string why_not(int device);

// Bytes of device memory that a launch needs, or why there is none.
std::string workspace(const Request& request, int device, int64_t* bytes);

// Solves all problems of the request on a stream, after what is on it and without waiting; `memory` is what `workspace`
// asked for.
std::string launch(const Request& request, int device, std::uintptr_t stream, char* memory);

}  // namespace uot::resident
