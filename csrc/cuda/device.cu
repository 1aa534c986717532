#include <cuda_runtime_api.h>

#include "device.h"

namespace uot {

std::string cuda_device_report() {
  int runtime = 0, devices = 0;
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t status = cudaGetDeviceCount(&devices);
  const std::string version = std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10);
  if (status != cudaSuccess) return "runtime " + version + ": " + cudaGetErrorString(status);
  return "runtime " + version + ", " + std::to_string(devices) + (devices == 1 ? " device" : " devices");
}

}  // namespace uot
