// Launches of the resident kernel.  Nothing here needs CUDA's headers, nothing throws: what went wrong is a sentence.
#pragma once

#include <cstdint>
#include <string>

#include "plan.h"

namespace uot::resident {

// Why device number `device` cannot run the kernel, or nothing.
std::string why_not(int device);

// How a launch is divided on the device, or why that is not known.
std::string division(const Request& request, int device, Division* out);

// Bytes of device memory that a launch needs, or why there is none.
std::string workspace(const Request& request, int device, int64_t* bytes);

// Solves all problems of the request on a stream, after what is on it and without waiting; `memory` is what `workspace`
// asked for.  `refused`: whether the device has just refused clusters that it had promised, so that now, and from now
// on, its groups meet in global memory.
std::string launch(const Request& request, int device, std::uintptr_t stream, char* memory, bool* refused);

}  // namespace uot::resident
