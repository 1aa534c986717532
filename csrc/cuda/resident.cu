// The kernel and its launch.
#include <cuda_runtime.h>

#include <map>
#include <mutex>

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

// A launch on a stream.  Of clusters of so many blocks where there are more than one: blocks of a cluster run at the same
// time, and wait for no other.  Else cooperative, so that all run at the same time.  Refers to itself.
struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  Launch(int blocks, int cluster, size_t shared, cudaStream_t stream) {
    if (cluster > 1) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = unsigned(cluster);
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    }
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  Launch(const Launch&) = delete;
};

// What the devices of this process said of clusters: asked once each.
struct Clusters {
  int most[kMaxCluster + 1];
  bool refused;  // a launch was: from then on their groups meet in global memory
};

std::mutex guard;
std::map<int, Clusters> known;

// Clusters of each size that the device, the current one, runs at a time, by its own account; none where it has no
// answer.  Every variant of the kernel takes a multiprocessor a block, so that one answers for all.
cudaError_t ask_for_clusters(Capacity* out) {
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

// The same of any device, remembered: a plan must not change between its workspace and its launch.
cudaError_t count_clusters(int device, Capacity* out) {
  if (out->major != 9 && out->major != 10) return cudaSuccess;  // sm_120 has them, and is said to refuse some launches
  const std::lock_guard<std::mutex> lock(guard);
  const auto found = known.find(device);
  if (found != known.end()) {
    for (int blocks = 2; blocks <= kMaxCluster; ++blocks) out->clusters[blocks] = found->second.most[blocks];
    return cudaSuccess;
  }
  const Current current(device);
  const cudaError_t status = current.status() == cudaSuccess ? ask_for_clusters(out) : current.status();
  if (status != cudaSuccess) return status;
  Clusters& clusters = known[device];
  for (int blocks = 2; blocks <= kMaxCluster; ++blocks) clusters.most[blocks] = out->clusters[blocks];
  return cudaSuccess;
}

bool clusters_refused(int device, bool now = false) {
  const std::lock_guard<std::mutex> lock(guard);
  Clusters& clusters = known[device];
  clusters.refused = clusters.refused || now;
  return clusters.refused;
}

// Whether an error says that a launch was not begun as asked, and nothing else.
bool not_begun(cudaError_t status) {
  return status == cudaErrorInvalidValue || status == cudaErrorInvalidClusterSize ||
         status == cudaErrorInvalidConfiguration || status == cudaErrorLaunchOutOfResources ||
         status == cudaErrorCooperativeLaunchTooLarge;
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

// All that a division depends on.
std::string measured(int device, Capacity* out) {
  const cudaError_t status = capacity(device, out);
  if (status != cudaSuccess) return said("asking for the device's properties", status);
  return said("asking for clusters", count_clusters(device, out));
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

std::string division(const Request& request, int device, Division* out) {
  Capacity found{};
  const std::string error = measured(device, &found);
  if (!error.empty()) return error;
  *out = best_division(request, found.chip());
  out->cluster = out->cluster && !clusters_refused(device);
  return "";
}

std::string workspace(const Request& request, int device, int64_t* bytes) {
  Division division{};
  const std::string error = resident::division(request, device, &division);
  if (!error.empty()) return error;
  plan(request, division, nullptr, bytes);
  *bytes += line_bytes(division);
  return "";
}

std::string launch(const Request& request, int device, std::uintptr_t stream, char* memory, bool* refused) {
  *refused = false;
  Capacity found{};
  const std::string error = measured(device, &found);
  if (!error.empty()) return error;
  const Current current(device);
  if (current.status() != cudaSuccess) return said("choosing the device", current.status());
  const Division division = best_division(request, found.chip());
  int64_t bytes = 0;
  char* lines = memory;
  Task task = plan(request, division, memory + line_bytes(division), &bytes);
  const void* const kernel = kernel_for(division.way, division.bulk, request.m);
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, found.shared);
  if (status != cudaSuccess) return said("asking for shared memory", status);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  status = cudaMemsetAsync(lines, 0, size_t(line_bytes(division)), queue);
  if (status != cudaSuccess) return said("clearing the barriers", status);
  void* arguments[] = {&task, &lines};
  const auto launched = [&](int cluster) {
    task.cluster = cluster > 1;
    const Launch all(division.groups * division.blocks, cluster, size_t(kSharedBytes + division.cut.used()), queue);
    return cudaLaunchKernelExC(&all.config, kernel, arguments);
  };
  const int cluster = division.cluster && !clusters_refused(device) ? division.blocks : 1;
  status = launched(cluster);
  if (cluster > 1 && not_begun(status)) {  // the same groups can meet in global memory
    cudaGetLastError();
    clusters_refused(device, true);
    *refused = true;
    status = launched(1);
  }
  return said("launching the kernel", status);
}

}  // namespace uot::resident
