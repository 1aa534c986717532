// The barriers and bulk copies of ring.h on a processor: as late as may be, and what would hang a device is a fault.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "resident.h"

namespace uot::resident {

enum Fault {
  kNone,
  kNeverComplete,  // a wait for a phase that nothing under way completes, or for one that is two behind
  kStillRead,      // a copy to a stage whose readers have not all arrived, or were not waited for
  kTooMany,        // an arrival beyond those of a phase
  kNotAwaited,     // a thread that reads without having waited
};

// An mbarrier: a phase is complete when all have arrived and no byte is missing.
struct HostBarrier {
  int members, pending;
  int64_t bytes = 0;
  int64_t phase = 0;  // completed so far

  explicit HostBarrier(int arrivals) : members(arrivals), pending(arrivals) {}
  void settle() {
    if (pending > 0 || bytes != 0) return;
    ++phase;
    pending = members;
  }
};

class HostRing {
 public:
  void expect(int stage, unsigned bytes) {
    HostBarrier& full = full_[size_t(stage)];
    if (seen_[size_t(stage)] != fills_[size_t(stage)]++) report(kStillRead);
    full.bytes += bytes;
    arrive(full);
  }
  void copy(int stage, float* to, const float* from, unsigned bytes) {
    if (fills_[size_t(stage)] != empty_[size_t(stage)].phase + 1) report(kStillRead);
    std::fill_n(to, bytes / sizeof(float), std::nanf(""));
    copies_[size_t(stage)].push_back({to, from, bytes});
  }
  void wait_full(int t, int stage, unsigned parity) {
    HostBarrier& full = full_[size_t(stage)];
    std::vector<Copy>& open = copies_[size_t(stage)];
    if ((full.phase & 1) == int64_t(parity)) {  // not complete yet: now the copies come
      for (const Copy& copy : open) {
        std::copy_n(copy.from, copy.bytes / sizeof(float), copy.to);
        full.bytes -= copy.bytes;
      }
      open.clear();
      full.settle();
    }
    complete(full, parity);
    awaited_[size_t(stage)][size_t(t)] = full.phase;
  }
  void wait_empty(int stage, unsigned parity) {
    complete(empty_[size_t(stage)], parity);
    seen_[size_t(stage)] = empty_[size_t(stage)].phase;
  }
  // A warp arrives with the last of its threads.
  void release(int t, int stage) {
    const int64_t fill = fills_[size_t(stage)];
    if (awaited_[size_t(stage)][size_t(t)] != fill) report(kNotAwaited);
    if (released_[size_t(stage)][size_t(t)]++ >= fill) report(kTooMany);
    int& there = warps_[size_t(stage)][size_t(t / 32)];
    if (++there < 32) return;
    there = 0;
    arrive(empty_[size_t(stage)]);
  }
  Fault fault() const { return fault_; }

 private:
  struct Copy {
    float* to;
    const float* from;
    unsigned bytes;
  };

  void report(Fault fault) {
    if (fault_ == kNone) fault_ = fault;
  }
  void arrive(HostBarrier& barrier) {
    if (--barrier.pending < 0) report(kTooMany);
    barrier.settle();
  }
  // mbarrier.try_wait.parity: true where the phase at hand has the other parity.
  void complete(const HostBarrier& barrier, unsigned parity) {
    if ((barrier.phase & 1) == int64_t(parity)) report(kNeverComplete);
  }

  template <class T> using Stages = std::vector<T>;
  Stages<HostBarrier> full_ = Stages<HostBarrier>(kMaxStages, HostBarrier(1));
  Stages<HostBarrier> empty_ = Stages<HostBarrier>(kMaxStages, HostBarrier(kWarps));
  Stages<std::vector<Copy>> copies_ = Stages<std::vector<Copy>>(kMaxStages);
  Stages<int64_t> fills_ = Stages<int64_t>(kMaxStages, 0), seen_ = fills_;  // fills begun, and reads known of
  // Of every thread: the fill that it waited for last, and those that it has read.
  Stages<std::vector<int64_t>> awaited_ = Stages<std::vector<int64_t>>(kMaxStages, std::vector<int64_t>(kThreads, 0));
  Stages<std::vector<int64_t>> released_ = awaited_;
  Stages<std::vector<int>> warps_ = Stages<std::vector<int>>(kMaxStages, std::vector<int>(kWarps, 0));
  Fault fault_ = kNone;
};

}  // namespace uot::resident
