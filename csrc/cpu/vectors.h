// What a solve does with vectors of length n or m between two reads of the cost.  float64, compiled once per instruction
// set.  Every length is a multiple of kPadding: what lies behind the last point is neutral (see `Slot` in slot.h).
#pragma once

#include <cstdint>

namespace uot {

constexpr int64_t kPadding = 8;       // doubles in the widest register
constexpr int64_t kMaxHistory = 64;   // most vectors that `gram` takes

// Rows after a sweep: their potential f = step (residual - lse), -inf where the residual is.
struct Rows {
  const double *lse, *residual, *offset;  // residual: null for 0
  double step, slope;
  double* potential;  // out
};

struct RowsResult {
  double top;  // the largest offset + slope lse, but for NaN
  bool lost;   // whether some lse is -inf
};

// Columns after a sweep.  A column takes part where log_v > -inf.
struct Columns {
  const double *sum, *log_v, *residual, *g, *mass;  // residual: null for 0
  double shift, scale, step, rate, weak_below;      // scale = e^shift
  bool logs;                                        // whether log_sum is yet to be taken
  double *log_sum, *wanted, *lse, *answer;          // out; wanted: the marginal that g asks for
};

struct ColumnsResult {
  double mass, deviation;  // of the plan, and from `wanted`
  int64_t weak, broken;    // columns whose sum is outside the safe range; columns without a finite answer
};

struct Marginal {
  double mass, deviation;
};

// One side of a certified pair; see uotlib.divergences.KLPenalty.
struct GapSide {
  const double *log_scaling, *lse, *mass, *potential;
  double rate;
  bool exact;
};

struct Extremes {
  double low, high;
};

struct Vectors {
  // out = a x + y; y may be null
  void (*affine)(double a, const double* x, const double* y, double* out, int64_t length);
  RowsResult (*rows)(const Rows& rows, int64_t length);
  ColumnsResult (*columns)(const Columns& columns, int64_t length);
  // log u = offset - damping lse, -inf for a row that reaches nothing
  void (*scaling)(double damping, const double* lse, const double* offset, double* out, int64_t length);
  // out = answer + a, and g where `live` is -inf
  void (*moved)(const double* answer, double a, const double* live, const double* g, double* out, int64_t length);
  // mass e^(-potential rate): the marginal that a potential asks for
  void (*target)(const double* mass, const double* potential, double rate, double* out, int64_t length);
  // The sum of that.
  double (*total)(const double* mass, const double* potential, double rate, int64_t length);
  // log sum e^(log_mass - potential rate)
  double (*log_total)(const double* log_mass, const double* potential, double rate, int64_t length);
  // Of the marginal e^(log_scaling + lse): its sum, and its L1 distance from `wanted`.
  Marginal (*marginal)(const double* log_scaling, const double* lse, const double* wanted, int64_t length);
  // KL(marginal | what the potential asks for), or their L1 distance where the marginal is exact
  double (*gap)(const GapSide& side, int64_t length);
  double (*max_abs)(const double* x, int64_t length);  // over finite entries
  // out[k * count + l] = sum_j weight_j x_k[j] x_l[j] for k <= l
  void (*gram)(const double* const* x, int64_t count, const double* weight, int64_t length, double* out);
  // out = sum_k weight_k x_k; returns its largest finite magnitude
  double (*combine)(const double* const* x, const double* weight, int64_t count, double* out, int64_t length);
  // The difference of a point's image and residual from the last ones, which are then replaced.
  void (*push)(const double* point, const double* image, double* last_image, double* last_residual, double* image_step,
               double* residual_step, int64_t length);
  // Least and largest of any number of floats or doubles: of the finite ones, or NaN where one is.
  Extremes (*extremes)(const void* x, bool is_double, int64_t count, bool finite);
};

namespace baseline { const Vectors& vectors(); }
namespace avx2 { const Vectors& vectors(); }
namespace avx512 { const Vectors& vectors(); }

}  // namespace uot
