// Stands in for device.cu where the extension was built without CUDA.
#include "device.h"

namespace uot {

std::string cuda_device_report() { return "built without CUDA"; }

}  // namespace uot
