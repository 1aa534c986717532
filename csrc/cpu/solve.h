// A whole solve of a batch in one object: the loop of uotlib/solver.py for costs that lie in memory.
#pragma once

#include <cstdint>
#include <memory>

#include "../task.h"
#include "job.h"

namespace uot {

struct Task {
  Job cost;  // cost, strides, items, count, n, m; nothing else
  bool is_double, entropy;
  SideArrays rows, cols;
  const double* reg;
  const double* start;  // (count, m) column potential to start from, which is then not annealed to; or null
  Answers out;
};

// The problems that were checked in the last turn: the most passes, the largest eps and violation, and how many ran.
struct Status {
  int64_t passes, running;
  double eps, violation;
};

class Solve {
 public:
  Solve(const Task& task, const Settings& settings, int threads);
  ~Solve();

  // Goes on for about `seconds`, in lockstep no further than to the next check.  True when all are solved.
  // Problems are independent: small ones are solved one by a thread, large ones by all threads one after another.
  bool advance(double seconds);
  Status status() const;
  // Whether every problem is, when all are solved.
  bool converged() const;

 private:
  class Slots;

  Task task_;
  Settings settings_;
  std::unique_ptr<Slots> batch_;
  int64_t running_ = 0;  // at the start of the turn
};

}  // namespace uot
