// How eps comes down and when a solve stops: the numbers of it, for one problem; vectors are elsewhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace uot {

struct AnnealingOptions {
  double start, factor, violation, accuracy;
  int64_t order, passes;
};

// The eps of one problem, as uotlib/annealing.py has those of a batch.
struct Schedule {
  AnnealingOptions options;
  int64_t max_iter, level_pass;
  double reg, spread, start, eps, next_eps;

  UOT_HD void begin(double reg_, double spread_) {
    reg = reg_;
    spread = spread_;
    start = fmax(reg, options.start * spread);
    level_pass = 0;
    eps = next_eps = deadline(0);
  }

  UOT_HD bool at_target() const { return eps <= reg; }

  // The eps that the pass after so many must not exceed.
  UOT_HD double deadline(int64_t passes) const {
    const double share = 2.0 * double(passes + 1) / double(max_iter);
    return share < 1 ? fmax(reg, start * exp2(share * log2(reg / start))) : reg;
  }

  // After a pass: whether the level is left; `solved` tells whether it was solved well enough to predict from.
  UOT_HD bool level_done(double violation, int64_t passes, bool* solved) {
    ++level_pass;
    const double tolerance = options.accuracy * sqrt(eps / spread);  // inf for a cost without spread
    *solved = violation <= fmin(tolerance, options.violation);
    if (at_target()) return false;
    const double limit = deadline(passes), lower = fmax(reg, eps * options.factor);
    next_eps = fmin(lower, limit);
    return *solved || level_pass >= options.passes || limit <= lower;
  }

  UOT_HD void descend() {
    eps = next_eps;
    level_pass = 0;
  }
};

// Weight of node k in the value at x of the polynomial through so many nodes; coinciding ones count once.
UOT_HD double lagrange_weight(const double* nodes, int64_t count, int64_t k, double x) {
  double weight = 1;
  for (int64_t l = 0; l < count; ++l) {
    const double apart = nodes[k] - nodes[l];
    if (apart != 0) weight *= (x - nodes[l]) / apart;
  }
  return weight;
}

// tol, or where none was given the default of uotlib.unbalanced_sinkhorn; `largest` is max |f, g|.
UOT_HD double tolerance_of(double tol, double roundoff, double largest, double reg) {
  return tol > 0 ? tol : fmin(fmax(roundoff * largest / (4 * reg), 1e-5), 1e-2);
}

// The least violation so far, to notice that rounding allows no better.
struct Record {
  double least;
  int64_t pass;

  UOT_HD void forget() { least = INFINITY; }

  // No progress for a while, at a violation that rounding explains.
  UOT_HD bool stalled(double violation, int64_t passes, double roundoff, double largest, double reg) {
    constexpr int64_t kStallPasses = 40;
    if (violation < 0.9 * least) {
      least = violation;
      pass = passes;
    }
    if (passes - pass < kStallPasses) return false;
    return violation <= 256 * fmax(0x1p-53 * largest / reg, roundoff);  // potentials are float64 whatever the cost is
  }
};

}  // namespace uot
