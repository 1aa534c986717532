// Anderson acceleration of one problem's iteration, as uotlib/anderson.py has it for a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "padded.h"

namespace uot {

class Anderson {
 public:
  Anderson(Arena& arena, const Vectors& vectors, int64_t depth, int64_t size);

  // Forgets the history; the next point starts a new one.
  void restart() { valid_ = 0, fresh_ = true; }

  // The point to go on from, written to `out`, given that the iteration maps `point` to `image`:
  //   image - dG gamma,  gamma the minimiser of |sqrt(weight) (residual - dR gamma)|,
  // for the differences dR of residuals and dG of images; no further from the image than `reach` in any entry.
  void extrapolate(const double* point, const double* image, const double* weight, double reach, double* out);

 private:
  // gamma from the normal equations of the history in use; `right` becomes the solution.
  void solve(std::vector<double>& gram, std::vector<double>& right) const;

  const Vectors& vectors_;
  int64_t depth_, size_, slot_ = 0, valid_ = 0;
  bool fresh_ = true;
  std::vector<Array> image_steps_, residual_steps_;
  Array last_image_, last_residual_;
  // Work space, so that nothing is allocated in the loop.
  std::vector<double> gram_, matrix_, right_;
  std::vector<const double*> history_;
};

}  // namespace uot
