// What a solve does with vectors of length n or m between two reads of the cost.  float64, compiled once per instruction
// set.  Every length is a multiple of kPadding: what lies behind the last point is neutral (see `Slot` in slot.h).
#pragma once

#include <cstdint>

namespace uot {

constexpr int64_t kPadding = 8;       // doubles in the widest register
constexpr int64_t kMaxHistory = 64;   // most vectors that `gram` takes

// Columns after a sweep.  A column takes part where log_v > -inf.
struct Columns {
  const double *sum, *log_sum, *log_v, *residual, *g, *wanted;  // residual: null for 0
  double shift, scale, step, weak_below;                        // scale = e^shift
  double *lse, *answer;                                         // out
};

struct ColumnsResult {
  double mass, deviation;  // of the plan, and from `wanted`
  int64_t weak, broken;    // columns whose sum is outside the safe range; columns without a finite answer
};

struct Marginal {
  double mass, deviation;
};

struct Vectors {
  // out = a x + y; y may be null
  void (*affine)(double a, const double* x, const double* y, double* out, int64_t length);
  // out = x + a
  void (*offset)(const double* x, double a, double* out, int64_t length);
  // potential = step (residual - lse), -inf where residual is; residual may be null
  void (*potential)(double step, const double* residual, const double* lse, double* out, int64_t length);
  // mass e^(-potential rate): the marginal that a potential asks for
  void (*target)(const double* mass, const double* potential, double rate, double* out, int64_t length);
  // log sum e^(log_mass - potential rate)
  double (*log_total)(const double* log_mass, const double* potential, double rate, int64_t length);
  ColumnsResult (*columns)(const Columns& columns, int64_t length);
  // Of the marginal e^(log_scaling + lse): its sum, and its L1 distance from `wanted`.
  Marginal (*marginal)(const double* log_scaling, const double* lse, const double* wanted, int64_t length);
  double (*max_affine)(double a, const double* x, const double* y, int64_t length);  // of a x + y, but for NaN
  double (*max_abs)(const double* x, int64_t length);  // over finite entries
  bool (*has_minus_inf)(const double* x, int64_t length);
  // out[k * count + l] = sum_j weight_j x_k[j] x_l[j] for k <= l
  void (*gram)(const double* const* x, int64_t count, const double* weight, int64_t length, double* out);
  // out = sum_k weight_k x_k
  void (*combine)(const double* const* x, const double* weight, int64_t count, double* out, int64_t length);
  // The difference of a point's image and residual from the last ones, which are then replaced.
  void (*push)(const double* point, const double* image, double* last_image, double* last_residual, double* image_step,
               double* residual_step, int64_t length);
};

namespace baseline { const Vectors& vectors(); }
namespace avx2 { const Vectors& vectors(); }
namespace avx512 { const Vectors& vectors(); }

}  // namespace uot
