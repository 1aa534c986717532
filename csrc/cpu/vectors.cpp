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

// As sum_of.  Stored whole: a sum whose halves are taken by address, as there, is kept in memory by GCC while it grows.
inline double sum_lanes(V value) {
  double lanes[kLane];
  store(lanes, value);
  for (int64_t half = kLane / 2; half > 0; half /= 2)
    for (int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// The marginal that a potential asks for; 0 where the mass is.
inline V asked(V mass, V potential, double rate) {
  const V value = exp_of(-(clamped(potential) * rate)) * mass;
  return value != value && mass == 0 ? V{} : value;
}

void affine(double a, const double* x, const double* y, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) store(out + j, load(x + j) * a + (y ? load(y + j) : V{}));
}

RowsResult rows(const Rows& rows, int64_t length) {
  V top = splat(-kInfinity), low = {};
  for (int64_t i = 0; i < length; i += kLane) {
    const V lse = load(rows.lse + i), rest = rows.residual ? load(rows.residual + i) : V{};
    const V value = (rest - lse) * rows.step;
    store(rows.potential + i, rest < -kHuge ? rest : value);
    top = larger<double>(lse * rows.slope + load(rows.offset + i), top);
    low = lse < low ? lse : low;
  }
  return {max_of<double>(top), -max_of<double>(-low) == -kInfinity};
}

template <bool Logs> ColumnsResult columns_after(const Columns& c, int64_t length) {
  V mass = {}, deviation = {}, weak = {}, broken = {};
  const V one = splat(1.0), zero = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V sum = load(c.sum + j), log_v = load(c.log_v + j), g = load(c.g + j);
    const V log_sum = Logs ? log_of(sum) : load(c.log_sum + j);
    if constexpr (Logs) store(c.log_sum + j, log_sum);
    const V wanted = asked(load(c.mass + j), g, c.rate);
    store(c.wanted + j, wanted);
    const auto alive = log_v > -kHuge;
    const V lse = alive ? log_sum + c.shift - log_v : splat(-kInfinity);
    const V answer = ((c.residual ? load(c.residual + j) : zero) - lse) * c.step;
    const V size = magnitude(answer);
    const auto finite = size < INFINITY;
    const V plan = alive ? sum * c.scale : zero;
    store(c.lse + j, lse);
    store(c.answer + j, alive && finite ? answer : g);
    mass += plan;
    deviation += magnitude(plan - wanted);
    weak += alive && !(sum >= c.weak_below && sum <= 1 / kWeak) ? one : zero;
    broken += alive && !finite ? one : zero;
  }
  return {sum_lanes(mass), sum_lanes(deviation), int64_t(sum_lanes(weak)),
          int64_t(sum_lanes(broken))};
}

ColumnsResult columns(const Columns& c, int64_t length) {
  return c.logs ? columns_after<true>(c, length) : columns_after<false>(c, length);
}

void scaling(double damping, const double* lse, const double* offset, double* out, int64_t length) {
  for (int64_t i = 0; i < length; i += kLane) {
    const V here = load(lse + i), value = load(offset + i) - here * damping;
    store(out + i, here == -INFINITY ? here : value);
  }
}

void moved(const double* answer, double a, const double* live, const double* g, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) {
    const V value = load(answer + j) + a;
    store(out + j, load(live + j) == -INFINITY ? load(g + j) : value);
  }
}

void target(const double* mass, const double* potential, double rate, double* out, int64_t length) {
  for (int64_t j = 0; j < length; j += kLane) store(out + j, asked(load(mass + j), load(potential + j), rate));
}

double total(const double* mass, const double* potential, double rate, int64_t length) {
  V sum = {};
  for (int64_t j = 0; j < length; j += kLane) sum += asked(load(mass + j), load(potential + j), rate);
  return sum_lanes(sum);
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
  return peak + ::log(sum_lanes(sum));
}

Marginal marginal(const double* log_scaling, const double* lse, const double* wanted, int64_t length) {
  V mass = {}, deviation = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V value = exp_of(load(log_scaling + j) + load(lse + j));
    mass += value;
    deviation += magnitude(value - load(wanted + j));
  }
  return {sum_lanes(mass), sum_lanes(deviation)};
}

// x log y, 0 for x = 0
inline V x_log_y(V x, V y) {
  const V value = x * log_of(y);
  return x == 0 && y == y ? V{} : value;
}

// Terms of KL(p|q), never negative: near p = q, where the closed form cancels, its series in d = (p - q) / q.
inline V kl_terms(V p, V q) {
  const V ratio = (p - q) / q, d = q > 0 ? ratio : splat(1.0);
  const V series =
      q * d * d * (1.0 / 2 - d * (1.0 / 6 - d * (1.0 / 12 - d * (1.0 / 20 - d * (1.0 / 30 - d * (1.0 / 42))))));
  const V closed = x_log_y(p, p) - x_log_y(p, q) - p + q;
  return magnitude(d) < 1e-2 ? series : closed;
}

double gap(const GapSide& side, int64_t length) {
  V sum = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V marginal = exp_of(load(side.log_scaling + j) + load(side.lse + j));
    const V wanted = asked(load(side.mass + j), load(side.potential + j), side.rate);
    sum += side.exact ? magnitude(marginal - wanted) : kl_terms(marginal, wanted);
  }
  return sum_lanes(sum);
}

double max_abs(const double* x, int64_t length) {
  V top = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V size = magnitude(load(x + j));
    top = larger<double>(size < INFINITY ? size : V{}, top);
  }
  return max_of<double>(top);
}

// Products of two vectors, one span after the other, with four others over a span: eight chains of additions overlap.
// Each has a name: GCC would keep an array of them in memory.
inline void products(const double* x, const double* const* y, int64_t length, double (&out)[8]) {
  V a0 = {}, a1 = {}, a2 = {}, a3 = {}, b0 = {}, b1 = {}, b2 = {}, b3 = {};
  for (int64_t j = 0; j < length; j += kLane) {
    const V a = load(x + j), b = load(x + kSpan + j);
    const V y0 = load(y[0] + j), y1 = load(y[1] + j), y2 = load(y[2] + j), y3 = load(y[3] + j);
    a0 += a * y0;
    b0 += b * y0;
    a1 += a * y1;
    b1 += b * y1;
    a2 += a * y2;
    b2 += b * y2;
    a3 += a * y3;
    b3 += b * y3;
  }
  const double sums[8] = {sum_lanes(a0), sum_lanes(a1), sum_lanes(a2), sum_lanes(a3),
                          sum_lanes(b0), sum_lanes(b1), sum_lanes(b2), sum_lanes(b3)};
  for (int k = 0; k < 8; ++k) out[k] = sums[k];
}

// Two rows of the upper triangle at a time, four columns at a time: where fewer are left, the last one again.
void gram(const double* const* x, int64_t count, const double* weight, int64_t length, double* out) {
  alignas(kAlignment) double weighted[2 * kSpan];
  for (int64_t k = 0; k < count * count; ++k) out[k] = 0;
  for (int64_t begin = 0; begin < length; begin += kSpan) {
    const int64_t some = length - begin < kSpan ? length - begin : kSpan;
    for (int64_t k = 0; k < count; k += 2) {
      const int64_t next = k + 1 < count ? k + 1 : k;
      const double *first = x[k] + begin, *second = x[next] + begin;
      for (int64_t j = 0; j < some; j += kLane) {
        const V scale = load(weight + begin + j);
        store(weighted + j, load(first + j) * scale);
        store(weighted + kSpan + j, load(second + j) * scale);
      }
      for (int64_t l = k; l < count; l += 4) {
        const double* y[4];
        for (int64_t c = 0; c < 4; ++c) y[c] = x[l + c < count ? l + c : count - 1] + begin;
        double sums[8];
        products(weighted, y, some, sums);
        for (int64_t c = 0; c < 4 && l + c < count; ++c) {
          out[k * count + l + c] += sums[c];
          if (next > k) out[next * count + l + c] += sums[4 + c];
        }
      }
    }
  }
}

double combine(const double* const* x, const double* weight, int64_t count, double* out, int64_t length) {
  constexpr int kTogether = 4;
  V top = {};
  const auto step = [&](int64_t j, auto vectors) __attribute__((always_inline)) {
    constexpr int K = decltype(vectors)::value;
    V sum[K] = {};
    for (int64_t k = 0; k < count; ++k)
      for (int v = 0; v < K; ++v) sum[v] += load(x[k] + j + v * kLane) * weight[k];
    for (int v = 0; v < K; ++v) {
      const V size = magnitude(sum[v]);
      store(out + j + v * kLane, sum[v]);
      top = larger<double>(size < INFINITY ? size : V{}, top);
    }
  };
  int64_t j = 0;
  for (; j + kTogether * kLane <= length; j += kTogether * kLane) step(j, std::integral_constant<int, kTogether>());
  for (; j < length; j += kLane) step(j, std::integral_constant<int, 1>());
  return max_of<double>(top);
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

template <class T, bool Finite> Extremes extremes_of(const T* x, int64_t count) {
  constexpr int64_t L = kLanes<T>;
  constexpr int K = 4;
  Vec<T> low[K], high[K], doubt = {};  // doubt: NaN where an entry is
  for (int v = 0; v < K; ++v) {
    low[v] = splat(T(INFINITY));
    high[v] = -low[v];
  }
  const auto take = [&](Vec<T> entries, int v) __attribute__((always_inline)) {
    if constexpr (Finite) {
      low[v] = entries < low[v] && entries > T(-INFINITY) ? entries : low[v];
      high[v] = entries > high[v] && entries < T(INFINITY) ? entries : high[v];
    } else {
      low[v] = entries < low[v] ? entries : low[v];
      high[v] = entries > high[v] ? entries : high[v];
      doubt = entries == entries ? doubt : entries;
    }
  };
  int64_t j = 0;
  for (; j + K * L <= count; j += K * L)
    for (int v = 0; v < K; ++v) take(load(x + j + v * L), v);
  for (; j + L <= count; j += L) take(load(x + j), 0);
  if (j < count) take(load_some(x + j, count - j, x[j]), 0);
  for (int v = 1; v < K; ++v) {
    low[0] = low[v] < low[0] ? low[v] : low[0];
    high[0] = larger<T>(high[v], high[0]);
  }
  const double nan = sum_of<T>(doubt);
  if (nan != nan) return {nan, nan};
  return {double(-max_of<T>(-low[0])), double(max_of<T>(high[0]))};
}

template <class T> Extremes extremes_of(const void* x, int64_t count, bool finite) {
  const T* entries = static_cast<const T*>(x);
  return finite ? extremes_of<T, true>(entries, count) : extremes_of<T, false>(entries, count);
}

Extremes extremes(const void* x, bool is_double, int64_t count, bool finite) {
  return is_double ? extremes_of<double>(x, count, finite) : extremes_of<float>(x, count, finite);
}

constexpr Vectors kVectors = {affine, rows,     columns, scaling, moved, target,  total, log_total,
                              marginal, gap, max_abs, gram,    combine, push, extremes};

}  // namespace

namespace UOT_LEVEL {
const Vectors& vectors() { return kVectors; }
}  // namespace UOT_LEVEL

}  // namespace uot
