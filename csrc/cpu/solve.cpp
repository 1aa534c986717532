#include "solve.h"

#include <algorithm>

#include "batch.h"
#include "slot.h"

namespace uot {

class Solve::Slots : public Batch<Slot> {
 public:
  using Batch<Slot>::Batch;
};

Solve::Solve(const Task& task, const Settings& settings, int threads) : task_(task), settings_(settings) {
  const int64_t count = task.cost.count;
  const Sharing sharing(count, task.cost.n * task.cost.m, threads);
  batch_.reset(new Slots(count, sharing));
  const int64_t slots = settings.lockstep ? count : sharing.slots(count);
  for (int64_t k = 0; k < slots; ++k) batch_->slots().emplace_back(new Slot(task_, settings_, sharing.of_problem()));
}

Solve::~Solve() = default;

bool Solve::advance(double seconds) {
  running_ = batch_->running();
  for (const auto& slot : batch_->slots()) slot->forget_check();
  const bool lockstep = settings_.lockstep;
  const auto pauses = [lockstep](const Slot& slot) { return lockstep && (slot.checked() || !slot.busy()); };
  return batch_->advance(seconds, pauses);
}

bool Solve::converged() const {
  return std::all_of(task_.out.converged, task_.out.converged + task_.cost.count, [](double one) { return one > 0; });
}

Status Solve::status() const {
  Status status{0, running_, 0, 0};
  for (const auto& slot : batch_->slots()) {
    if (!slot->checked()) continue;
    status.passes = std::max(status.passes, slot->passes());
    status.eps = std::max(status.eps, slot->eps());
    status.violation = std::max(status.violation, slot->violation());
  }
  return status;
}

}  // namespace uot
