// The grid of resident.h on a device: one block a multiprocessor, all launched together, and a group of them for each
// problem at work.  What each operation means is in host_grid.h, which adds in the same order.
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

  UOT_CODE int index() const { return shared().index; }
  UOT_CODE int count() const { return shared().count; }
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
  template <class F> UOT_CODE bool any(F f) { return __syncthreads_or(f(int(threadIdx.x))); }
  template <class S, class F> UOT_CODE bool any(Threads<S>& states, F f) {
    return __syncthreads_or(f(int(threadIdx.x), states.state));
  }
  // 16 or 4 bytes on their way to shared memory.  The copies of a thread that follow each other up to its next commit
  // are there when wait_copies leaves no more than `younger` commits open, for that thread; others need a barrier.
  UOT_CODE void copy_four(int, float* to, const float* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from)
                 : "memory");
  }
  UOT_CODE void copy_one(int, float* to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(unsigned(__cvta_generic_to_shared(to))), "l"(from)
                 : "memory");
  }
  UOT_CODE void commit(int) { asm volatile("cp.async.commit_group;" ::: "memory"); }
  UOT_CODE void wait_copies(int, int younger) {
    if (younger == 0) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else if (younger == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
    else asm volatile("cp.async.wait_group 2;" ::: "memory");
  }

  // The ring of bulk copies, see ring.h.  One thread fills: it announces bytes and sends for them, 16 at least.
  UOT_CODE void begin_ring() const {
    for (int stage = 0; stage < kMaxStages; ++stage) {
      asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(in_shared(&shared().full[stage])) : "memory");
      asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(in_shared(&shared().empty[stage])), "r"(kWarps)
                   : "memory");
    }
    shared().place = {0, 0};
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // what copies see of them
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }
  UOT_CODE void expect(int stage, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_shared(&shared().full[stage])),
                 "r"(bytes)
                 : "memory");
#else
    __trap();  // the planner has no bulk copies below sm_90
#endif
  }
  UOT_CODE void copy_bulk(int stage, float* to, const float* from, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     in_shared(to)),
                 "l"(from), "r"(bytes), "r"(in_shared(&shared().full[stage]))
                 : "memory");
#endif
  }
  UOT_CODE void wait_full(int, int stage, unsigned parity) { wait_phase(&shared().full[stage], parity); }
  UOT_CODE void wait_empty(int stage, unsigned parity) { wait_phase(&shared().empty[stage], parity); }
  // The thread has read what it wants of a stage; a warp's threads say so together.
  UOT_CODE void release(int t, int stage) {
    __syncwarp();
    if (t % 32 == 0)
      asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(
                       in_shared(&shared().empty[stage]))
                   : "memory");
  }

  template <class S> UOT_CODE void team_max(Threads<S>& states, int warps) {
    float& most = states.state.peak;
    UOT_UNROLL
    for (int apart = 16; apart > 0; apart /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    if (warps == 1) return;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x % 32 == 0) shared().warp_part[warp] = most;
    __syncthreads();
    most = float(shared().warp_part[warp / warps * warps + threadIdx.x % warps]);
    for (int apart = warps / 2; apart > 0; apart /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    __syncthreads();
  }

  // A warp's lanes end up in R groups with a row each: half of the rows change places at every step.
  template <int R, class S, class F> UOT_CODE void row_scales(Threads<S>& states, int warps, F f) {
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
    if (warps > 1) {
      turn_ ^= 1;
      if (lane % (32 / R) == 0) shared().row_part[turn_][row][warp] = total;
      __syncthreads();
      const float* const part = shared().row_part[turn_][row] + warp / warps * warps;
      if (warps == kWarps) {
        total = part[lane % 8] + part[lane % 8 + 8];
        UOT_UNROLL
        for (int apart = 4; apart > 0; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
      } else {
        total = part[lane % warps];
        for (int apart = warps / 2; apart > 0; apart /= 2) total += __shfl_xor_sync(~0u, total, apart);
      }
    }
    const float scale = f(s, row, total, warp % warps == 0 && lane % (32 / R) == 0);
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

  static UOT_CODE unsigned in_shared(const void* at) { return unsigned(__cvta_generic_to_shared(at)); }

  // Until the phase of this parity is complete; what was written before its arrivals is seen from here on.
  static UOT_CODE void wait_phase(const uint64_t* barrier, unsigned parity) {
#if __CUDA_ARCH__ >= 900
    unsigned done;
    do {
      asm volatile(
          "{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
          "selp.u32 %0, 1, 0, done;\n}"
          : "=r"(done)
          : "r"(in_shared(barrier)), "r"(parity)
          : "memory");
    } while (!done);
#endif
  }

  int turn_ = 0;
};

// What groups share, 0 at the launch: a line for problems taken from the queue, one for each group's barrier.
constexpr int kLine = 128;

class DeviceGrid {
 public:
  UOT_CODE DeviceGrid(const Task& task, char* lines) : lines_(lines) {
    Shared& shared = DeviceBlock().shared();
    if (threadIdx.x == 0) {
      shared.expected = 0;
      DeviceBlock().begin_ring();
      shared.group = int(blockIdx.x) / task.blocks;
      shared.index = int(blockIdx.x) % task.blocks;
      shared.count = task.blocks;
      shared.cluster = task.cluster;
    }
    __syncthreads();
  }

  template <class F> UOT_CODE void phase(F f) {
    DeviceBlock block;
    f(block);
    wait();
  }
  UOT_CODE const Track& track() { return DeviceBlock().shared().track; }
  UOT_CODE const Work& work() { return DeviceBlock().shared().work; }
  UOT_CODE int number() { return DeviceBlock().shared().group; }
  UOT_CODE int64_t draw() {
    return DeviceBlock().shared().work.task.groups +
           int64_t(atomicAdd(reinterpret_cast<unsigned long long*>(lines_), 1ull));
  }

 private:
  // Everything that the group's blocks wrote before is seen by all of them after.
  UOT_CODE void wait() {
    Shared& shared = DeviceBlock().shared();
#if __CUDA_ARCH__ >= 900
    if (shared.cluster) {  // all threads of all its blocks; what they wrote anywhere is seen by the others
      asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
    if (shared.count == 1) return;
    if (threadIdx.x == 0) {
      char* const arrivals = lines_ + kLine * (1 + shared.group);
      const unsigned expected = shared.expected += shared.count;
      unsigned seen;
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrivals) : "memory");
      } while (int(seen - expected) < 0);  // the count may pass 2^32
    }
    __syncthreads();
  }

  char* lines_;
};

}  // namespace uot::resident
