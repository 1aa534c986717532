#include "solve.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "slot.h"

namespace uot {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kEntriesOfThread = 130000;  // below, a problem's pass is not worth a second thread

}  // namespace

struct Solve::Turn : Job {
  Solve* solve;
  bool limited;
  Clock::time_point end;
};

Solve::Solve(const Task& task, const Settings& settings, int threads) : task_(task), settings_(settings), threads_(1),
      workers_(threads) {
  const int64_t count = task.cost.count, entries = task.cost.n * task.cost.m;
  const int useful = int(std::min<int64_t>(threads, 1 + entries / kEntriesOfThread));
  // A thread a problem where there are enough problems; all threads on one problem after another otherwise.
  const bool together = count < 2 * threads && useful > 1;
  threads_ = together ? useful : 1;
  const int64_t slots = std::min<int64_t>(count, settings.lockstep ? count : together ? 1 : threads);
  for (int64_t k = 0; k < slots; ++k) slots_.emplace_back(new Slot(task_, settings_, threads_));
}

Solve::~Solve() = default;

bool Solve::advance(double seconds) {
  running_ = task_.cost.count - finished_;
  Turn turn{};
  turn.solve = this;
  turn.limited = std::isfinite(seconds);
  if (turn.limited)
    turn.end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const PhaseList all{{{&Solve::run_slot, int64_t(slots_.size())}}, 1};
  run_phases(turn, all, threads_ > 1 ? 1 : workers_);
  if (out_of_memory_) throw std::bad_alloc();
  return finished_ == task_.cost.count;
}

void Solve::run_slot(const Job& job, int64_t index, int) {
  const Turn& turn = static_cast<const Turn&>(job);
  try {
    turn.solve->work(*turn.solve->slots_[size_t(index)], turn);
  } catch (const std::bad_alloc&) {
    turn.solve->out_of_memory_ = true;
  }
}

void Solve::work(Slot& slot, const Turn& turn) {
  slot.forget_check();
  do {  // at least one pass, however slow: every turn gets on
    if (!slot.busy()) {
      const int64_t index = next_.fetch_add(1);
      if (index >= task_.cost.count) return;
      slot.begin(index);
    }
    if (slot.step()) ++finished_;
    if (settings_.lockstep && (slot.checked() || !slot.busy())) return;
  } while (!turn.limited || Clock::now() < turn.end);
}

bool Solve::converged() const {
  return std::all_of(task_.out.converged, task_.out.converged + task_.cost.count, [](double one) { return one > 0; });
}

Status Solve::status() const {
  Status status{0, running_, 0, 0};
  for (const auto& slot : slots_) {
    if (!slot->checked()) continue;
    status.passes = std::max(status.passes, slot->passes());
    status.eps = std::max(status.eps, slot->eps());
    status.violation = std::max(status.violation, slot->violation());
  }
  return status;
}

}  // namespace uot
