// The kernel and its launch.
#include <cuda_runtime.h>

#include "device_grid.h"
#include "resident_launch.h"

namespace uot::resident {
namespace {

constexpr int64_t kCounterBytes = 256;  // of the workspace, before everything else

template <int C, bool W>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ Task task, unsigned* arrivals) {
  DeviceGrid grid(arrivals);
  solve_all<C, W>(grid, task);
}

template <int C> const void* kernel_of(bool wide) {
  return wide ? reinterpret_cast<const void*>(&resident_kernel<C, true>)
              : reinterpret_cast<const void*>(&resident_kernel<C, false>);
}

const void* kernel_for(int m, bool wide) {
  const int chunks = chunks_of(m);
  return chunks == 1 ? kernel_of<1>(wide) : chunks == 2 ? kernel_of<2>(wide) : kernel_of<4>(wide);
}

// Makes a device current for as long as it lives.
class Current {
 public:
  explicit Current(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess) status_ = cudaSetDevice(device);
  }
  ~Current() { cudaSetDevice(before_); }
  cudaError_t status() const { return status_; }

 private:
  int before_ = 0;
  cudaError_t status_;
};

struct Capacity {
  int multiprocessors, cooperative, shared;
};

cudaError_t capacity(int device, Capacity* out) {
  cudaError_t status = cudaDeviceGetAttribute(&out->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&out->cooperative, cudaDevAttrCooperativeLaunch, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&out->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return status;
}

std::string said(const char* what, cudaError_t status) {
  return status == cudaSuccess ? "" : std::string(what) + ": " + cudaGetErrorString(status);
}

// Blocks of the launch: no more than have a few rows or a unit of columns to work on.
int blocks_for(const Request& request, const Capacity& device) {
  const int rows = ceil_div(request.n, rows_together(chunks_of(request.m))), units = ceil_div(request.m, kUnit);
  return least_of(device.multiprocessors, rows > units ? rows : units);
}

}  // namespace

std::string why_not(int device) {
  Capacity found{};
  const cudaError_t status = capacity(device, &found);
  if (status != cudaSuccess) return said("asking for the device's properties", status);
  if (!found.cooperative) return "the device has no cooperative launches";
  if (found.shared < kSharedBytes)
    return "the device has " + std::to_string(found.shared) + " bytes of shared memory a block, the kernel needs " +
           std::to_string(kSharedBytes);
  cudaFuncAttributes attributes;
  const Current current(device);
  if (current.status() != cudaSuccess) return said("choosing the device", current.status());
  return said("the kernel was not compiled for this device", cudaFuncGetAttributes(&attributes, kernel_for(1, true)));
}

std::string workspace(const Request& request, int device, int64_t* bytes) {
  Capacity found{};
  const cudaError_t status = capacity(device, &found);
  if (status != cudaSuccess) return said("asking for the device's properties", status);
  plan(request, blocks_for(request, found), found.shared - kSharedBytes, nullptr, bytes);
  *bytes += kCounterBytes;
  return "";
}

std::string launch(const Request& request, int device, std::uintptr_t stream, char* memory) {
  Capacity found{};
  cudaError_t status = capacity(device, &found);
  if (status != cudaSuccess) return said("asking for the device's properties", status);
  const Current current(device);
  if (current.status() != cudaSuccess) return said("choosing the device", current.status());
  const int blocks = blocks_for(request, found);
  const int64_t room = found.shared - kSharedBytes;
  int64_t bytes = 0;
  Task task = plan(request, blocks, room, memory + kCounterBytes, &bytes);
  const int64_t rows = int64_t(sizeof(float)) * task.cut.resident_rows * task.cut.pitch;
  const void* const kernel = kernel_for(request.m, wide(request));
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, found.shared);
  if (status != cudaSuccess) return said("asking for shared memory", status);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  status = cudaMemsetAsync(memory, 0, kCounterBytes, queue);
  if (status != cudaSuccess) return said("clearing the barrier", status);
  unsigned* arrivals = reinterpret_cast<unsigned*>(memory);
  void* arguments[] = {&task, &arrivals};
  return said("launching the kernel",
              cudaLaunchCooperativeKernel(kernel, dim3(unsigned(blocks)), dim3(kThreads), arguments,
                                          size_t(kSharedBytes + rows), queue));
}

}  // namespace uot::resident
