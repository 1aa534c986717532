// The problems of a batch, each worked on in a slot: small ones one a thread, large ones one after another by all
// threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"

namespace uot {

// How the threads share the problems.  `together`: all on one problem after another, `useful` of them on each.
struct Sharing {
  int threads, useful;
  bool together;

  // A thread a problem where there are enough problems, or where a pass over one is not worth a second thread.
  Sharing(int64_t count, int64_t entries, int threads)
      : threads(threads), useful(int(std::min<int64_t>(threads, 1 + entries / kEntriesOfThread))),
        together(count < 2 * threads && useful > 1) {}

  int of_problem() const { return together ? useful : 1; }
  int64_t slots(int64_t count) const { return std::min<int64_t>(count, together ? 1 : threads); }

 private:
  static constexpr int64_t kEntriesOfThread = 130000;  // below, a pass is not worth a second thread
};

// Slot: busy(), begin(index), and step(), one pass, true when the problem is solved.  Its passes may be on several
// threads, so a slot of that kind is worked on by the caller's.
template <class Slot> class Batch {
 public:
  Batch(int64_t count, const Sharing& sharing) : count_(count), sharing_(sharing) {}

  std::vector<std::unique_ptr<Slot>>& slots() { return slots_; }
  const std::vector<std::unique_ptr<Slot>>& slots() const { return slots_; }
  int64_t running() const { return count_ - finished_; }

  // Goes on for about `seconds`; a slot for which `pauses` holds after a step waits for the next turn.  True when all
  // problems are solved.
  template <class Pauses> bool advance(double seconds, Pauses pauses) {
    TurnOf<Pauses> turn{};
    turn.batch = this;
    turn.pauses = &pauses;
    turn.limited = std::isfinite(seconds);
    if (turn.limited)
      turn.end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
    const PhaseList all{{{&run_slot<Pauses>, int64_t(slots_.size())}}, 1};
    run_phases(turn, all, sharing_.together ? 1 : sharing_.threads);
    if (out_of_memory_) throw std::bad_alloc();
    return finished_ == count_;
  }

 private:
  using Clock = std::chrono::steady_clock;
  template <class Pauses> struct TurnOf : Job {
    Batch* batch;
    Pauses* pauses;
    bool limited;
    Clock::time_point end;
  };

  template <class Pauses> static void run_slot(const Job& job, int64_t index, int) {
    const auto& turn = static_cast<const TurnOf<Pauses>&>(job);
    try {
      turn.batch->work(*turn.batch->slots_[size_t(index)], turn);
    } catch (const std::bad_alloc&) {
      turn.batch->out_of_memory_ = true;
    }
  }

  template <class Pauses> void work(Slot& slot, const TurnOf<Pauses>& turn) {
    do {  // at least one pass, however slow: every turn gets on
      if (!slot.busy()) {
        const int64_t index = next_.fetch_add(1);
        if (index >= count_) return;
        slot.begin(index);
      }
      if (slot.step()) ++finished_;
      if ((*turn.pauses)(slot)) return;
    } while (!turn.limited || Clock::now() < turn.end);
  }

  int64_t count_;
  Sharing sharing_;
  std::vector<std::unique_ptr<Slot>> slots_;
  std::atomic<int64_t> next_{0}, finished_{0};
  std::atomic<bool> out_of_memory_{false};
};

}  // namespace uot
