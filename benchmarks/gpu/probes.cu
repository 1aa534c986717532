// What the resident kernel is made of, by itself: its barrier, and its reads of shared memory and of the cache.
// resident.py compiles and calls this; functions return CUDA's error and do not wait.
#include <cuda_runtime.h>

#include "../../csrc/cuda/device_grid.h"

using namespace uot::resident;

namespace {

struct Probe {
  const float* rows;  // `count` for each block, of `pitch` entries
  int count, pitch, rounds;
  float* out;
};

__global__ void __launch_bounds__(kThreads, 1)
    barrier_probe(const __grid_constant__ Task task, char* lines, int rounds) {
  DeviceGrid grid(task, lines);
  for (int k = 0; k < rounds; ++k) grid.phase([](auto&) {});
}

// A block reads its rows again and again, four groups of columns of four rows at a time as a pass does.
template <bool Held> __global__ void __launch_bounds__(kThreads, 1) read_probe(const __grid_constant__ Probe probe) {
  constexpr int C = 2, R = 4;
  DeviceBlock block;
  const int t = threadIdx.x, column = column_of(t, 0);
  const float* const from = probe.rows + int64_t(blockIdx.x) * probe.count * probe.pitch;
  if (Held)
    for (int e = t; e < probe.count * probe.pitch; e += kThreads) block.rows()[e] = from[e];
  __syncthreads();
  float sum[4 * C] = {};
  for (int k = 0; k < probe.rounds; ++k)
    for (int i = 0; i + R <= probe.count; i += R) {
      float now[R][4 * C];
      UOT_UNROLL
      for (int r = 0; r < R; ++r) {
        if (Held) load_held<C>(block.rows() + (i + r) * probe.pitch, column, probe.pitch, now[r]);
        else load_cost<C>(from + int64_t(i + r) * probe.pitch, column, probe.pitch, true, now[r]);
      }
      UOT_UNROLL
      for (int r = 0; r < R; ++r)
        for (int e = 0; e < 4 * C; ++e) sum[e] += now[r][e];
    }
  float total = 0;
  for (const float one : sum) total += one;
  probe.out[blockIdx.x * kThreads + t] = total;
}

template <class Kernel> cudaError_t launch(Kernel kernel, int blocks, size_t shared, void** arguments, void* stream) {
  const auto address = reinterpret_cast<const void*>(kernel);
  const cudaError_t status = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (status != cudaSuccess) return status;
  return cudaLaunchCooperativeKernel(address, dim3(unsigned(blocks)), dim3(kThreads), arguments, shared,
                                     static_cast<cudaStream_t>(stream));
}

}  // namespace

// lines: zeros, 2 kLine bytes.
extern "C" int barrier(int blocks, int rounds, char* lines, void* stream) {
  Task task{};
  task.groups = 1;
  task.blocks = blocks;
  void* arguments[] = {&task, &lines, &rounds};
  return launch(&barrier_probe, blocks, size_t(kSharedBytes), arguments, stream);
}

// held: 0 through the cache, 1 from shared memory, where `count` rows of every block must fit.
extern "C" int read(int held, int blocks, const float* rows, int count, int pitch, int rounds, float* out,
                    void* stream) {
  Probe probe{rows, count, pitch, rounds, out};
  void* arguments[] = {&probe};
  const size_t bytes = size_t(kSharedBytes) + (held ? size_t(count) * pitch * sizeof(float) : 0);
  return held ? launch(&read_probe<true>, blocks, bytes, arguments, stream)
              : launch(&read_probe<false>, blocks, bytes, arguments, stream);
}
