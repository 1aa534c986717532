// What a whole solve is asked for and told, beside its cost: the same for the processor and the device.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "schedule.h"

namespace uot {

// One side of the problems: masses (count, points), and tau (count), inf for an exact marginal.
struct SideArrays {
  const double *mass, *tau;
};

// Where the answers go, per problem: (count, n), (count, m) or (count).  See uotlib.solver.Pair and Outcome.
struct Answers {
  double *f, *log_u, *row_lse, *g, *log_v, *col_lse;
  double *violation, *gap, *n_iter, *converged, *at_floor;  // the last two 0 or 1
};

// The parts of one array, in the order above.
inline Answers answers_in(double* array, int64_t count, int64_t n, int64_t m) {
  double* next = array;
  const auto take = [&](int64_t entries) {
    double* const part = next;
    next += count * entries;
    return part;
  };
  Answers out{};
  for (double** rows : {&out.f, &out.log_u, &out.row_lse}) *rows = take(n);
  for (double** cols : {&out.g, &out.log_v, &out.col_lse}) *cols = take(m);
  for (double** one : {&out.violation, &out.gap, &out.n_iter, &out.converged, &out.at_floor}) *one = take(1);
  return out;
}

struct Settings {
  bool textbook, synchronous;
  bool lockstep;  // all problems go from check to check together, for who wants to watch
  int64_t max_iter;
  double tol;  // 0: the default, a function of the potentials
  AnnealingOptions annealing;
  int64_t anderson_depth, anderson_start;
  double safeguard, backtrack, trust_region;
  int64_t check_every;
};

}  // namespace uot
