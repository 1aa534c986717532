// Annealing of eps as path following for one problem, as uotlib/annealing.py has it for a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "padded.h"

namespace uot {

struct AnnealingOptions {
  double start, factor, violation, accuracy;
  int64_t order, passes;
};

class Annealing {
 public:
  Annealing(Arena& arena, const Vectors& vectors, const AnnealingOptions& options, int64_t size, int64_t max_iter);

  void begin(double reg, double spread);
  double eps() const { return eps_; }
  bool at_target() const { return eps_ <= reg_; }
  int64_t level_pass() const { return level_pass_; }

  // After a pass: whether the level is left; `solved` tells whether it was solved well enough to predict from.
  bool level_done(double violation, int64_t passes, bool* solved);
  // Lowers eps; the potential to start the new level from, predicted from the ends of the last ones.
  void descend(bool solved, const double* potential, double* out);

 private:
  double deadline(int64_t passes) const;

  const Vectors& vectors_;
  AnnealingOptions options_;
  int64_t size_, max_iter_, level_pass_ = 0, known_ = 0;
  double reg_ = 0, spread_ = 0, start_ = 0, eps_ = 0, next_eps_ = 0;
  std::vector<Array> ends_;          // the last levels' ends, newest first, `known_` of them
  std::vector<double> ends_eps_, weights_;
  std::vector<const double*> pointers_;
};

}  // namespace uot
