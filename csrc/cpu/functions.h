// e^x and log x on registers of doubles.  Included inside the anonymous namespaces of kernels.cpp and vectors.cpp, after
// simd.h.

using Reals = Vec<double>;
using RealBits = Simd<double>::Bits;
// The first has 31 digits: products with whole numbers are exact.
constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;

// e^x = 2^k 2^f, k whole; zero where the result is no normal number.
inline Reals exp_of(Reals x) {
  const Reals k = (x * kLog2E + Simd<double>::kMagic) - Simd<double>::kMagic;
  const Reals f[1] = {((x - k * kLn2High) - k * kLn2Low) * kLog2E};
  Reals p[1];
  exp2_polynomial<double, 1>(f, p);
#if defined(__AVX512DQ__) && UOT_VECTOR_BYTES == 64
  const Reals y = times_exp2(p[0], k);
#else
  // In two steps, for k = 1024.
  const RealBits half = (RealBits)(k * 0.5 + Simd<double>::kMagic) << 52, one = RealBits{} + (uint64_t(1023) << 52);
  const RealBits rest = ((RealBits)(k + Simd<double>::kMagic) << 52) - half;
  const Reals y = p[0] * (Reals)(half + one) * (Reals)(rest + one);
#endif
  const Reals low = x < -708.396418532264106 ? Reals{} : y;
  return x > 709.782712893383973 ? splat(double(INFINITY)) : low;
}

// log x = k log 2 + log z, z in [sqrt(1/2), sqrt(2)); the series in s = (z - 1) / (z + 1) is that of fdlibm.
inline Reals log_of(Reals x) {
  const auto tiny = x < 0x1p-1022;
  const RealBits bits = (RealBits)(tiny ? x * 0x1p54 : x), offset = bits - 0x3fe6a09e667f3bcdull;
  const RealBits mask = RealBits{} + (uint64_t(0xfff) << 52);
  const Reals f = (Reals)(bits - (offset & mask)) - 1.0;
  // The exponent with its sign: biased so that a logical shift does.
  const RealBits biased = (offset + (uint64_t(2048) << 52)) >> 52;
  Reals k = (Reals)(biased + (uint64_t(0x433) << 52)) - (0x1p52 + 2048);
  k = tiny ? k - 54.0 : k;
  const Reals s = f / (2.0 + f), z = s * s, w = z * z;
  const Reals even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const Reals odd = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 +
                    w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const Reals half = 0.5 * f * f;
  Reals y = k * kLn2High - ((half - (s * (half + (even + odd)) + k * kLn2Low)) - f);
  y = x == double(INFINITY) ? x : y;
  y = x == 0.0 ? splat(double(-INFINITY)) : y;
  return x >= 0.0 ? y : splat(double(NAN));
}
