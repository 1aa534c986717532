// Conjugate gradients on the Schur complement of the adjoint (uotlib/gradients/adjoint.py), for costs that lie in
// memory.
#pragma once

#include <cstdint>
#include <memory>

#include "job.h"

namespace uot {

// The system of every problem, (count, n), (count, m) or (count), and where the answers go.
struct AdjointTask {
  Job cost;  // cost, strides, items, count, n, m, reg, log_u and log_v of N, row_diagonal, empty; nothing else
  bool is_double;
  const double *col_diagonal, *preconditioner, *root, *rhs;
  const double* along;  // the system turns `root` into this times col_diagonal root; 0: both marginals are exact
  const double* start;  // multiple of `root` to start from
  const double* image;  // (count, n): N root
  double tol;         // on the residual over rhs, both in the preconditioner's norm
  int64_t max_iter;
  double *answer, *residual;  // out
  double* through;            // out, (count, n): N times the answer
};

class ConjugateGradients {
 public:
  ConjugateGradients(const AdjointTask& task, int threads);
  ~ConjugateGradients();

  // Goes on for about `seconds`; true when all are solved.
  bool advance(double seconds);

 private:
  class Slots;

  AdjointTask task_;
  std::unique_ptr<Slots> batch_;
};

}  // namespace uot
