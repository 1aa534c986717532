#include "annealing.h"

#include <algorithm>
#include <cmath>

namespace uot {

Annealing::Annealing(Arena& arena, const Vectors& vectors, const AnnealingOptions& options, int64_t size,
                     int64_t max_iter)
    : vectors_(vectors), options_(options), size_(padded(size)), max_iter_(max_iter),
      ends_eps_(size_t(options.order + 1)), weights_(size_t(options.order + 1)), pointers_(size_t(options.order + 1)) {
  for (int64_t k = 0; k <= options.order; ++k) ends_.emplace_back(arena, size);
}

void Annealing::begin(double reg, double spread) {
  reg_ = reg;
  spread_ = spread;
  start_ = std::max(reg, options_.start * spread);
  level_pass_ = known_ = 0;
  eps_ = next_eps_ = deadline(0);
}

bool Annealing::level_done(double violation, int64_t passes, bool* solved) {
  ++level_pass_;
  const double tolerance = options_.accuracy * std::sqrt(eps_ / spread_);  // inf for a cost without spread
  *solved = violation <= std::min(tolerance, options_.violation);
  if (at_target()) return false;
  const double limit = deadline(passes), lower = std::max(reg_, eps_ * options_.factor);
  next_eps_ = std::min(lower, limit);
  return *solved || level_pass_ >= options_.passes || limit <= lower;
}

void Annealing::descend(bool solved, const double* potential, double* out) {
  // A level that was not solved well breaks the chain: only its own end is kept.
  std::rotate(ends_.begin(), ends_.end() - 1, ends_.end());
  std::rotate(ends_eps_.begin(), ends_eps_.end() - 1, ends_eps_.end());
  known_ = solved ? std::min(known_ + 1, int64_t(ends_.size())) : 1;
  std::copy_n(potential, size_, ends_[0].get());
  ends_eps_[0] = eps_;
  eps_ = next_eps_;
  level_pass_ = 0;
  for (size_t k = 0; k < size_t(known_); ++k) {  // Lagrange's polynomial at the new eps
    double weight = 1;
    for (size_t l = 0; l < size_t(known_); ++l) {
      const double apart = ends_eps_[k] - ends_eps_[l];
      if (apart != 0) weight *= (eps_ - ends_eps_[l]) / apart;
    }
    weights_[k] = weight;
    pointers_[k] = ends_[k];
  }
  vectors_.combine(pointers_.data(), weights_.data(), known_, out, size_);
}

double Annealing::deadline(int64_t passes) const {
  const double share = 2.0 * double(passes + 1) / double(max_iter_);
  return share < 1 ? std::max(reg_, start_ * std::pow(reg_ / start_, share)) : reg_;
}

}  // namespace uot
