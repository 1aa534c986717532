#include "annealing.h"

#include <algorithm>

namespace uot {

Annealing::Annealing(Arena& arena, const Vectors& vectors, const AnnealingOptions& options, int64_t size,
                     int64_t max_iter)
    : vectors_(vectors), size_(padded(size)), ends_eps_(size_t(options.order + 1)),
      weights_(size_t(options.order + 1)), pointers_(size_t(options.order + 1)) {
  schedule_.options = options;
  schedule_.max_iter = max_iter;
  for (int64_t k = 0; k <= options.order; ++k) ends_.emplace_back(arena, size);
}

void Annealing::begin(double reg, double spread) {
  schedule_.begin(reg, spread);
  known_ = 0;
}

void Annealing::descend(bool solved, const double* potential, double* out) {
  // A level that was not solved well breaks the chain: only its own end is kept.
  std::rotate(ends_.begin(), ends_.end() - 1, ends_.end());
  std::rotate(ends_eps_.begin(), ends_eps_.end() - 1, ends_eps_.end());
  known_ = solved ? std::min(known_ + 1, int64_t(ends_.size())) : 1;
  std::copy_n(potential, size_, ends_[0].get());
  ends_eps_[0] = eps();
  schedule_.descend();
  for (int64_t k = 0; k < known_; ++k) {
    weights_[size_t(k)] = lagrange_weight(ends_eps_.data(), known_, k, eps());
    pointers_[size_t(k)] = ends_[size_t(k)];
  }
  vectors_.combine(pointers_.data(), weights_.data(), known_, out, size_);
}

}  // namespace uot
