// The kernel and its launch.
#include <cuda_runtime.h>

#include "device_grid.h"
#include "resident_launch.h"

namespace uot::resident {
namespace {

// Of the workspace, before everything else; a multiple of two lines.
int64_t line_bytes(const Division& division) { return int64_t(2 * kLine) * (1 + division.groups / 2); }

template <class Sweep>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(const __grid_constant__ Task task, char* lines) {
  DeviceGrid grid(task, lines);
  solve_all<Sweep>(grid, task);
}

const void* kernel_for(Way way, bool bulk, int m) {
  return with_sweep(way, bulk, m, [](auto sweep) {
    return reinterpret_cast<const void*>(&resident_kernel<decltype(sweep)>);
  });
}

// Makes a device current for as long as it lives.
class Current {
 public:
  explicit Current(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess) status_ = cudaSetDevice(device);
  }
  ~Current() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  cudaError_t status() const { return status_; }

 private:
  int before_ = -1;
  cudaError_t status_;
};

struct Capacity {
  int multiprocessors, cooperative, shared, cache, major;
  int clusters[kMaxCluster + 1];

  Chip chip() const {
    Chip out{multiprocessors, shared - kSharedBytes, cache, major >= 9, {}};
    for (int blocks = 2; blocks <= kMaxCluster; ++blocks) out.clusters[blocks] = clusters[blocks];
    return out;
  }
};

// A cooperative launch on a stream, of clusters of so many blocks where there are more than one.  Refers to itself.
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};

  Launch(int blocks, int cluster, size_t shared, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = unsigned(cluster);
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
  }
  Launch(const Launch&) = delete;
};

// Clusters of each size that the device runs at a time, by its own account; none where it has no answer.  Every variant
// of the kernel takes a multiprocessor a block, so that one answers for all.
cudaError_t count_clusters(Capacity* out) {
  const void* const kernel = kernel_for(Way::kRing, false, 1);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, out->shared);
  if (status != cudaSuccess) return status;
  for (int blocks = 2; blocks <= kMaxCluster; ++blocks) {
    const Launch one(blocks, blocks, size_t(out->shared), nullptr);
    if (cudaOccupancyMaxActiveClusters(&out->clusters[blocks], kernel, &one.config) == cudaSuccess) continue;
    out->clusters[blocks] = 0;
    cudaGetLastError();  // told of here, and not to who asks next
  }
  return cudaSuccess;
}

cudaError_t capacity(int device, Capacity* out) {
  cudaError_t status = cudaDeviceGetAttribute(&out->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&out->cooperative, cudaDevAttrCooperativeLaunch, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&out->shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&out->cache, cudaDevAttrL2CacheSize, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&out->major, cudaDevAttrComputeCapabilityMajor, device);
  return status;
}

std::string said(const char* what, cudaError_t status) {
  return status == cudaSuccess ? "" : std::string(what) + ": " + cudaGetErrorString(status);
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
  return said("the kernel was not compiled for this device",
              cudaFuncGetAttributes(&attributes, kernel_for(Way::kRing, false, 1)));
}

std::string workspace(const Request& request, int device, int64_t* bytes) {
  Capacity found{};
  cudaError_t status = capacity(device, &found);
  if (status == cudaSuccess && found.major >= 9) {
    const Current current(device);
    status = current.status() == cudaSuccess ? count_clusters(&found) : current.status();
  }
  if (status != cudaSuccess) return said("asking for the device's properties", status);
  const Division division = best_division(request, found.chip());
  plan(request, division, nullptr, bytes);
  *bytes += line_bytes(division);
  return "";
}

std::string launch(const Request& request, int device, std::uintptr_t stream, char* memory) {
  Capacity found{};
  cudaError_t status = capacity(device, &found);
  if (status != cudaSuccess) return said("asking for the device's properties", status);
  const Current current(device);
  if (current.status() != cudaSuccess) return said("choosing the device", current.status());
  if (found.major >= 9) status = count_clusters(&found);
  if (status != cudaSuccess) return said("asking for clusters", status);
  const Division division = best_division(request, found.chip());
  int64_t bytes = 0;
  char* lines = memory;
  Task task = plan(request, division, memory + line_bytes(division), &bytes);
  const void* const kernel = kernel_for(division.way, division.bulk, request.m);
  status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, found.shared);
  if (status != cudaSuccess) return said("asking for shared memory", status);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  status = cudaMemsetAsync(lines, 0, size_t(line_bytes(division)), queue);
  if (status != cudaSuccess) return said("clearing the barriers", status);
  void* arguments[] = {&task, &lines};
  const Launch all(division.groups * division.blocks, division.cluster ? division.blocks : 1,
                   size_t(kSharedBytes + division.cut.used()), queue);
  return said("launching the kernel", cudaLaunchKernelExC(&all.config, kernel, arguments));
}

}  // namespace uot::resident
