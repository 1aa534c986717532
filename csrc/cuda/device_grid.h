// The grid of resident.h on a device: one block a multiprocessor, all launched together.  What each operation means is
// in host_grid.h, which adds in the same order.
#pragma once

#include "resident.h"

namespace uot::resident {

extern __shared__ float4 device_memory[];  // Shared, then resident rows

class DeviceBlock {
 public:
  template <class S> struct Threads {
    S state;
    UOT_CODE explicit Threads(DeviceBlock&) {}
  };

  UOT_CODE int index() const { return blockIdx.x; }
  UOT_CODE int count() const { return gridDim.x; }
  UOT_CODE Shared& shared() const { return *reinterpret_cast<Shared*>(device_memory); }
  UOT_CODE float* rows() const { return reinterpret_cast<float*>(device_memory) + kSharedBytes / sizeof(float); }

  template <class F> UOT_CODE void each(F f) {
    f(int(threadIdx.x));
    __syncthreads();
  }
  template <class S, class F> UOT_CODE void each(Threads<S>& states, F f) {
    f(int(threadIdx.x), states.state);
    __syncthreads();
  }
  template <class S, class F> UOT_CODE void alone(Threads<S>& states, F f) { f(int(threadIdx.x), states.state); }
  template <class S> UOT_CODE S& first(Threads<S>& states) { return states.state; }

  template <class F> UOT_CODE double max(F f) {
    return folded(double(f(int(threadIdx.x))), [](double a, double b) { return fmax(a, b); });
  }
  template <class F> UOT_CODE double sum(F f) {
    return folded(double(f(int(threadIdx.x))), [](double a, double b) { return a + b; });
  }
  template <class S, class F> UOT_CODE double max(Threads<S>& states, F f) {
    return max([&](int t) { return f(t, states.state); });
  }
  template <class S, class F> UOT_CODE bool any(Threads<S>& states, F f) {
    return __syncthreads_or(f(int(threadIdx.x), states.state));
  }
  template <class S> UOT_CODE float row_max(Threads<S>& states) {
    return float(max([&](int) { return double(states.state.peak); }));
  }

  // A warp's lanes end up in R groups with a row each: half of the rows change places at every step.
  template <int R, class S, class F> UOT_CODE void row_scales(Threads<S>& states, F f) {
    static_assert(R == 1 || R == 2 || R == 4, "rows must share a warp evenly");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / (32 / R);
    const auto exchange = [&](float low, float high, int apart) {
      const bool upper = lane & apart;
      return (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, apart);
    };
    S& s = states.state;
    float total;
    if constexpr (R == 4) {
      const float even = exchange(s.part[0], s.part[2], 16), odd = exchange(s.part[1], s.part[3], 16);
      total = exchange(even, odd, 8);
    } else if constexpr (R == 2) {
      total = exchange(s.part[0], s.part[1], 16);
    } else {
      total = s.part[0];
    }
    UOT_UNROLL
    for (int apart = 16 / R; apart > 0; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
    turn_ ^= 1;
    if (lane % (32 / R) == 0) shared().row_part[turn_][row][warp] = total;
    __syncthreads();
    total = shared().row_part[turn_][row][lane % 8] + shared().row_part[turn_][row][lane % 8 + 8];
    UOT_UNROLL
    for (int apart = 4; apart > 0; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
    const float scale = f(row, total, warp == 0 && lane % (32 / R) == 0);
    UOT_UNROLL
    for (int r = 0; r < R; ++r) s.scale[r] = __shfl_sync(~0u, scale, r * (32 / R));
  }

 private:
  static_assert(kWarps == 16, "row_scales and folded add up 16 warps");

  template <class Fold> UOT_CODE double folded(double value, Fold fold) {
    UOT_UNROLL
    for (int apart = 16; apart > 0; apart /= 2) value = fold(value, __shfl_xor_sync(~0u, value, apart));
    if (threadIdx.x % 32 == 0) shared().warp_part[threadIdx.x / 32] = value;
    __syncthreads();
    value = shared().warp_part[threadIdx.x % kWarps];
    UOT_UNROLL
    for (int apart = 8; apart > 0; apart /= 2) value = fold(value, __shfl_xor_sync(~0u, value, apart));
    __syncthreads();
    return value;
  }

  int turn_ = 0;
};

class DeviceGrid {
 public:
  // `arrivals`: 0 at the launch.
  UOT_CODE explicit DeviceGrid(unsigned* arrivals) : arrivals_(arrivals) {
    if (threadIdx.x == 0) DeviceBlock().shared().expected = 0;
  }

  template <class F> UOT_CODE void phase(F f) {
    DeviceBlock block;
    f(block);
    wait();
  }
  UOT_CODE const Track& track() { return DeviceBlock().shared().track; }
  UOT_CODE const Work& work() { return DeviceBlock().shared().work; }

 private:
  // Everything written before is seen by all after.
  UOT_CODE void wait() {
    __syncthreads();
    if (threadIdx.x == 0) {
      const unsigned expected = DeviceBlock().shared().expected += gridDim.x;
      unsigned seen;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals_) : "memory");
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrivals_) : "memory");
      } while (int(seen - expected) < 0);  // the count may pass 2^32
    }
    __syncthreads();
  }

  unsigned* arrivals_;
};

}  // namespace uot::resident
