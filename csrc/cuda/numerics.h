// Arithmetic of the kernel, one number at a time.  Exponents are in base 2, split so that float32 loses nothing at
// small eps: see uotlib/kernels/numerics.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../cpu/constants.h"

// The kernel's code: on the device, or on the processor where it is tested.
#ifdef __CUDACC__
#define UOT_CODE __device__ __forceinline__
#define UOT_PHASE __device__ __noinline__  // registers are for the phase at work alone
#define UOT_UNROLL _Pragma("unroll")
#else
#define UOT_CODE inline
#define UOT_PHASE inline
#define UOT_UNROLL
#endif

namespace uot::resident {

constexpr float kNegInf = -__builtin_inff();
constexpr double kLn2 = 0.6931471805599453;
// Row sums by an expected anchor are taken where they lie in [1 / kNear, kNear]: no term above 2^-118 of the sum is
// lost, and powers are rounded where they are small.
constexpr float kNear = 256.0f;
constexpr double kLostTerms = 0x1p-93;  // 2^-118 times 2^24, and one to spare
constexpr float kLargest = 3.0e38f;     // a scale factor beyond this would turn 0 * inf into NaN

UOT_CODE float exp2_of(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
#endif
}

// -log2(e) / eps as (high, low), both negative, so that a cost of +inf gives -inf, never inf - inf or 0 * inf.
struct Scale {
  float high, low;
};

UOT_CODE Scale split_scale(double eps) {
  const double scale = -kLog2E / eps;
  const float high = float(scale * (1 - 0x1p-22));
  return {high, float(scale - double(high))};
}

// 2^(exponent - cost log2(e) / eps), and its power.
UOT_CODE float power_of(float cost, Scale scale, float exponent) {
  return fmaf(cost, scale.low, fmaf(cost, scale.high, exponent));
}

// (k, w) with e^x = w 2^k, k whole, w in [1, 2); k = -inf for -inf.
struct Split {
  float exponent, mantissa;
};

UOT_CODE Split split_exponent(double x) {
  if (!(x > -kHuge)) return {x == x ? kNegInf : float(x), 1.0f};
  const double power = x * kLog2E, whole = floor(power);
  return {float(whole), exp2_of(float(power - whole))};
}

// log2 of a number in [1, 2), to 2^-22.
UOT_CODE float log2_of_mantissa(float x) {
#ifdef __CUDACC__
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::log2(x);
#endif
}

// log2 of a positive normal number, as a whole number and the logarithm of what is left, in [0, 1).
struct Log2 {
  float whole, rest;
};

UOT_CODE Log2 log2_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t mantissa_bits = (bits & 0x7fffffu) | 0x3f800000u;
  float mantissa;
  memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
  return {float(int(bits >> 23) - 127), log2_of_mantissa(mantissa)};
}

// log(total 2^anchor); -inf where total is 0, NaN where it is NaN.
UOT_CODE double natural_log(float anchor, float total) {
  if (!(total > 0.0f)) return total == 0.0f ? -kInfinity : kNaN;
  const Log2 log2 = log2_of(total);
  return (double(anchor) + double(log2.whole) + double(log2.rest)) * kLn2;
}

// 2^k for a whole k: 0 below the normal numbers, kLargest above them.
UOT_CODE float power_of_two(float k) {
  if (!(k >= -126.0f)) return 0.0f;
  if (k > 127.0f) return kLargest;
  const uint32_t bits = uint32_t(int(k) + 127) << 23;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

// log u = offset - damping lse, -inf for a point that reaches nothing.
UOT_CODE double half_step(double offset, double damping, double lse) {
  return lse == -kInfinity ? -kInfinity : offset - damping * lse;
}

UOT_CODE double clamped(double x) { return x > kHuge ? kHuge : x < -kHuge ? -kHuge : x; }

// The marginal that a potential asks for, mass e^(-potential rate); 0 where the mass is.
UOT_CODE double asked(double mass, double potential, double rate) {
  return mass == 0 ? 0.0 : mass * exp(-clamped(potential) * rate);
}

UOT_CODE double x_log_y(double x, double y) { return x == 0 && y == y ? 0.0 : x * log(y); }

// A term of KL(p|q), never negative: near p = q, where the closed form cancels, its series in d = (p - q) / q.
UOT_CODE double kl_term(double p, double q) {
  const double d = q > 0 ? (p - q) / q : 1.0;
  if (fabs(d) < 1e-2)
    return q * d * d * (1.0 / 2 - d * (1.0 / 6 - d * (1.0 / 12 - d * (1.0 / 20 - d * (1.0 / 30 - d * (1.0 / 42))))));
  return x_log_y(p, p) - x_log_y(p, q) - p + q;
}

}  // namespace uot::resident
