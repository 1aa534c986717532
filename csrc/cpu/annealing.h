// Annealing of eps as path following for one problem, as uotlib/annealing.py has it for a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "../schedule.h"
#include "padded.h"

namespace uot {

class Annealing {
 public:
  Annealing(Arena& arena, const Vectors& vectors, const AnnealingOptions& options, int64_t size, int64_t max_iter);

  void begin(double reg, double spread);
  double eps() const { return schedule_.eps; }
  bool at_target() const { return schedule_.at_target(); }
  int64_t level_pass() const { return schedule_.level_pass; }

  // As Schedule::level_done.
  bool level_done(double violation, int64_t passes, bool* solved) {
    return schedule_.level_done(violation, passes, solved);
  }
  // Lowers eps; the potential to start the new level from, predicted from the ends of the last ones.
  void descend(bool solved, const double* potential, double* out);

 private:
  const Vectors& vectors_;
  Schedule schedule_{};
  int64_t size_, known_ = 0;
  std::vector<Array> ends_;          // the last levels' ends, newest first, `known_` of them
  std::vector<double> ends_eps_, weights_;
  std::vector<const double*> pointers_;
};

}  // namespace uot
