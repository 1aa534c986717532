// What the CUDA part of the extension knows about the machine.
#pragma once

#include <string>

namespace uot {

// One sentence: devices and runtime version, or CUDA's own error text, or that no CUDA code was compiled.
std::string cuda_device_report();

}  // namespace uot
