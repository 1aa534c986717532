// The array functions of vectors.h, compiled once per instruction set.
#include "vectors.h"

#include "level.h"

namespace uot {
namespace {

#include "simd.h"
#include "functions.h"

constexpr int64_t kLane = kLanes<double>;
constexpr int64_t kSpan = 512;           // entries of a vector that stay in the first cache

using V = Reals;

inline V clamped(V x) {
  x = x > kHuge ? splat(kHuge) : x;
  return x < -kHuge ? splat(-kHuge) : x;
}

inline V magnitude(V x) { return x < 0 ? -x : x; }

void affine(double a, const double* x, const double* y, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) store(out + j, load(x + j) * a + (y ? load(y + j) : V{}));
}

void offset(const double* x, double a, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) store(out + j, load(x + j) + a);
}

void potential(double step, const double* residual, const double* lse, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) {
    const V rest = residual ? load(residual + j) : V{};
    const V value = (rest - load(lse + j)) * step;
    store(out + j, rest < -kHuge ? rest : value);
  }
}

void target(const double* mass, const double* potential, double rate, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) {
    const V value = exp_of(-(clamped(load(potential + j)) * rate)) * load(mass + j);
    store(out + j, value != value && load(mass + j) == 0 ? V{} : value);
  }
}

double log_total(const double* log_mass, const double* potential, double rate, int64_t length) {
  V top = splat(-kInfinity);
  for (int64_t j = 0; j < length; j += kLane)
    top = larger<double>(load(log_mass + j) - clamped(load(potential + j)) * rate, top);
  const double peak = max_of<double>(top);
  if (!(peak > -kHuge && peak < kHuge)) return peak;
  V sum = {};
  for (int64_t j = 0; j < length; j += kLane)
    sum += exp_of(load(log_mass + j) - clamped(load(potential + j)) * rate - peak);
  return peak + ::log(sum_of<double>(sum));
}

ColumnsResult columns(const Columns& c, int64_t length) {
  V mass = {}, deviation = {}, weak = {}, broken = {};
  const V one = splat(1.0), zero = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V sum = load(c.sum + j), log_v = load(c.log_v + j), g = load(c.g + j);
    const auto alive = log_v > -kHuge;
    const V lse = alive ? load(c.log_sum + j) + c.shift - log_v : splat(-kInfinity);
    const V answer = ((c.residual ? load(c.residual + j) : zero) - lse) * c.step;
    const V size = magnitude(answer);
    const auto finite = size < INFINITY;
    const V plan = alive ? sum * c.scale : zero;
    store(c.lse + j, lse);
    store(c.answer + j, alive && finite ? answer : g);
    mass += plan;
    deviation += magnitude(plan - load(c.wanted + j));
    weak += alive && !(sum >= c.weak_below && sum <= 1 / kWeak) ? one : zero;
    broken += alive && !finite ? one : zero;
  }
  return {sum_of<double>(mass), sum_of<double>(deviation), int64_t(sum_of<double>(weak)),
          int64_t(sum_of<double>(broken))};
}

Marginal marginal(const double* log_scaling, const double* lse, const double* wanted, int64_t length) {
  V mass = {}, deviation = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V value = exp_of(load(log_scaling + j) + load(lse + j));
    mass += value;
    deviation += magnitude(value - load(wanted + j));
  }
  return {sum_of<double>(mass), sum_of<double>(deviation)};
}

double max_affine(double a, const double* x, const double* y, int64_t length) {
  V top = splat(-kInfinity);
  for (int64_t j = 0; j < length; j += kLane) top = larger<double>(load(x + j) * a + load(y + j), top);
  return max_of<double>(top);
}

double max_abs(const double* x, int64_t length) {
  V top = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V size = magnitude(load(x + j));
    top = larger<double>(size < INFINITY ? size : V{}, top);
  }
  return max_of<double>(top);
}

bool has_minus_inf(const double* x, int64_t length) {
  V low = {};
  for (int64_t j = 0; j < length; j += kLane) low = load(x + j) < low ? load(x + j) : low;
  for (int64_t l = 0; l < kLane; ++l)
    if (low[l] == -INFINITY) return true;
  return false;
}

// Four sums at a time over one span: their chains of additions overlap.
void dots(const double* x, const double* const* y, int64_t count, int64_t length, double* out) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    V s0 = {}, s1 = {}, s2 = {}, s3 = {};
    for (int64_t j = 0; j < length; j += kLane) {
      const V value = load(x + j);
      s0 += value * load(y[k] + j);
      s1 += value * load(y[k + 1] + j);
      s2 += value * load(y[k + 2] + j);
      s3 += value * load(y[k + 3] + j);
    }
    out[k] += sum_of<double>(s0);
    out[k + 1] += sum_of<double>(s1);
    out[k + 2] += sum_of<double>(s2);
    out[k + 3] += sum_of<double>(s3);
  }
  for (; k < count; ++k) {
    V s = {};
    for (int64_t j = 0; j < length; j += kLane) s += load(x + j) * load(y[k] + j);
    out[k] += sum_of<double>(s);
  }
}

void gram(const double* const* x, int64_t count, const double* weight, int64_t length, double* out) {
  alignas(kAlignment) double weighted[kSpan];
  const double* rest[kMaxHistory];
  for (int64_t k = 0; k < count * count; ++k) out[k] = 0;
  for (int64_t begin = 0; begin < length; begin += kSpan) {
    const int64_t some = length - begin < kSpan ? length - begin : kSpan;
    for (int64_t k = 0; k < count; ++k) rest[k] = x[k] + begin;
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t j = 0; j < some; j += kLane) store(weighted + j, load(rest[k] + j) * load(weight + begin + j));
      dots(weighted, rest + k, count - k, some, out + k * count + k);
    }
  }
}

void combine(const double* const* x, const double* weight, int64_t count, double* out, int64_t length) {
  for (int64_t begin = 0; begin < length; begin += kSpan) {
    const int64_t end = length - begin < kSpan ? length : begin + kSpan;
    for (int64_t j = begin; j < end; j += kLane) store(out + j, count ? load(x[0] + j) * weight[0] : V{});
    for (int64_t k = 1; k < count; ++k)
      for (int64_t j = begin; j < end; j += kLane) store(out + j, load(out + j) + load(x[k] + j) * weight[k]);
  }
}

void push(const double* point, const double* image, double* last_image, double* last_residual, double* image_step,
          double* residual_step, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) {
    const V here = load(image + j), residual = here - load(point + j);
    store(image_step + j, here - load(last_image + j));
    store(residual_step + j, residual - load(last_residual + j));
    store(last_image + j, here);
    store(last_residual + j, residual);
  }
}

constexpr Vectors kVectors = {affine, offset, potential, target, log_total, columns, marginal, max_affine, max_abs, has_minus_inf, gram,
                              combine, push};

}  // namespace

namespace UOT_LEVEL {
const Vectors& vectors() { return kVectors; }
}  // namespace UOT_LEVEL

}  // namespace uot
