#include "anderson.h"

#include <algorithm>
#include <cmath>

namespace uot {
namespace {

constexpr double kRidge = 1e-10;  // added to the unit diagonal of the scaled normal equations

}  // namespace

Anderson::Anderson(Arena& arena, const Vectors& vectors, int64_t depth, int64_t size)
    : vectors_(vectors), depth_(depth), size_(padded(size)), last_image_(arena, size), last_residual_(arena, size),
      gram_(size_t((depth + 1) * (depth + 1))), matrix_(size_t(depth * depth)), right_(size_t(depth)),
      history_(size_t(depth + 1)) {
  for (int64_t k = 0; k < depth; ++k) {
    image_steps_.emplace_back(arena, size);
    residual_steps_.emplace_back(arena, size);
  }
}

void Anderson::extrapolate(const double* point, const double* image, const double* weight, double reach, double* out) {
  if (depth_ > 0)
    vectors_.push(point, image, last_image_, last_residual_, image_steps_[slot_], residual_steps_[slot_], size_);
  if (depth_ == 0 || fresh_) {
    fresh_ = false;
    std::copy_n(image, size_, out);
    return;
  }
  slot_ = (slot_ + 1) % depth_;
  if (valid_ < depth_) ++valid_;

  // The history in use is the `valid_` slots before slot_; the residual is the last column.
  const int64_t count = valid_, stride = count + 1;
  const auto slot = [&](int64_t k) { return size_t((slot_ + depth_ - count + k) % depth_); };
  for (int64_t k = 0; k < count; ++k) history_[size_t(k)] = residual_steps_[slot(k)];
  history_[size_t(count)] = last_residual_;
  vectors_.gram(history_.data(), stride, weight, size_, gram_.data());
  for (int64_t k = 0; k < count; ++k) {
    right_[size_t(k)] = gram_[size_t(k * stride + count)];
    for (int64_t l = 0; l <= k; ++l) matrix_[size_t(k * count + l)] = gram_[size_t(l * stride + k)];
  }
  solve(matrix_, right_);

  for (int64_t k = 0; k < count; ++k) history_[size_t(k)] = image_steps_[slot(k)];
  const double furthest = vectors_.combine(history_.data(), right_.data(), count, out, size_);
  vectors_.affine(furthest > reach ? -reach / furthest : -1.0, out, image, out, size_);
}

void Anderson::solve(std::vector<double>& gram, std::vector<double>& right) const {
  const int64_t count = valid_;
  double* const x = right.data();
  // Columns of length 1, and those of no length out of the way.
  double scale[kMaxHistory], inverse[kMaxHistory];  // 1 / length; 1 / pivot
  for (int64_t k = 0; k < count; ++k) {
    const double square = gram[size_t(k * count + k)];
    scale[k] = square > 0 ? 1 / std::sqrt(square) : 0.0;
  }
  // L D L' with a unit lower L, in place below the diagonal: the ridge keeps every pivot positive.
  for (int64_t k = 0; k < count; ++k) {
    double* const row = gram.data() + k * count;
    for (int64_t l = 0; l < k; ++l) row[l] *= scale[k] * scale[l];
    double pivot = scale[k] > 0 ? row[k] * scale[k] * scale[k] + kRidge : 1.0;
    x[k] *= scale[k];
    for (int64_t l = 0; l < k; ++l) {
      const double* const other = gram.data() + l * count;
      double value = row[l];
      for (int64_t i = 0; i < l; ++i) value -= row[i] * other[i];
      row[l] = value;  // L_kl D_l until the row is done
    }
    for (int64_t l = 0; l < k; ++l) {
      const double scaled = row[l] * inverse[l];
      pivot -= row[l] * scaled;
      row[l] = scaled;
      x[k] -= scaled * x[l];
    }
    inverse[k] = 1 / pivot;
  }
  for (int64_t k = 0; k < count; ++k) x[k] *= inverse[k];
  for (int64_t k = count - 1; k > 0; --k)
    for (int64_t l = 0; l < k; ++l) x[l] -= gram[size_t(k * count + l)] * x[k];
  for (int64_t k = 0; k < count; ++k) x[k] *= scale[k];
}

}  // namespace uot
