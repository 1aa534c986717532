// Vectors of one register, and 2^x on them.  Included by kernels.cpp alone, inside its anonymous namespace: each
// instruction set needs its own copy, and a function that the linker could merge would run on the wrong machine.
// No include guard, no include: kernels.cpp brings what this needs.

template <class T> struct Simd;

template <> struct Simd<float> {
  typedef float Vec __attribute__((vector_size(UOT_VECTOR_BYTES)));
  typedef uint32_t Bits __attribute__((vector_size(UOT_VECTOR_BYTES)));
  static constexpr int kMantissa = 23;
  static constexpr float kMagic = 12582912.0f;     // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float kFloor = -127.0f;         // 2^floor is stored as exactly zero
  static constexpr float kCeiling = 128.0f;        // 2^ceiling is inf
  static constexpr float kLowest = -3.0e38f;       // the maximum of no entries
  static constexpr double kUnitLimit = 80.0;       // powers of two that a slab's unit leaves to its sums
  // 2^f - 1 over f on [-1/2, 1/2], for 2^f within 1.06 units in the last place, and 2 once rounded; one degree more
  // where every product is rounded by itself.
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  static constexpr float kPoly[] = {0x1.5aab6cp-10f, 0x1.3cec48p-7f, 0x1.c6babcp-5f, 0x1.ebf9b6p-3f, 0x1.62e424p-1f};
#else
  static constexpr float kPoly[] = {0x1.3eb2a0p-13f, 0x1.5f0b86p-10f, 0x1.3b320ap-7f,
                                    0x1.c6af76p-5f,  0x1.ebfbd6p-3f,  0x1.62e430p-1f};
#endif
};

template <> struct Simd<double> {
  typedef double Vec __attribute__((vector_size(UOT_VECTOR_BYTES)));
  typedef uint64_t Bits __attribute__((vector_size(UOT_VECTOR_BYTES)));
  static constexpr int kMantissa = 52;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kFloor = -1023.0;
  static constexpr double kCeiling = 1024.0;
  static constexpr double kLowest = -1.0e308;
  static constexpr double kUnitLimit = 900.0;
  // 2^f - 1 over f on [-1/2, 1/2], relative error 4e-18.
  static constexpr double kPoly[] = {
      0x1.e79babf32b975p-32, 0x1.e61b5038351adp-28, 0x1.b5267ce7e1285p-24, 0x1.62bfc79ce4b33p-20,
      0x1.ffcbfba97ca97p-17, 0x1.4309130ed8fc4p-13, 0x1.5d87fe78cd6e0p-10, 0x1.3b2ab6fba0119p-7,
      0x1.c6b08d7049fe8p-5,  0x1.ebfbdff82c5a4p-3,  0x1.62e42fefa39efp-1};
};

template <class T> using Vec = typename Simd<T>::Vec;
template <class T> constexpr int64_t kLanes = UOT_VECTOR_BYTES / sizeof(T);

template <class T> inline Vec<T> load(const T* from) {
  Vec<T> value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

template <class T> inline void store(T* to, Vec<T> value) { __builtin_memcpy(to, &value, sizeof(value)); }

// The first `count` entries (none if negative), `rest` after them.
template <class T> inline Vec<T> load_some(const T* from, int64_t count, T rest = 0) {
  T padded[kLanes<T>];
  for (int64_t l = 0; l < kLanes<T>; ++l) padded[l] = l < count ? from[l] : rest;
  return load(padded);
}

// That many entries alone.
template <class T> inline void store_some(T* to, Vec<T> value, int64_t count) {
  T lanes[kLanes<T>];
  store(lanes, value);
  for (int64_t l = 0; l < count; ++l) to[l] = lanes[l];
}

template <class T> inline Vec<T> splat(T value) { return value - Vec<T>{}; }

// The larger one, and `a` where either is NaN.
template <class T> inline Vec<T> larger(Vec<T> b, Vec<T> a) { return b > a ? b : a; }

// As `larger` with a constant `b`, which GCC would otherwise turn into a comparison and a blend.
template <class T> inline Vec<T> raised_to(Vec<T> b, Vec<T> a) { return larger<T>(b, a); }
#if defined(__AVX__) && UOT_VECTOR_BYTES == 32
template <> inline Vec<float> raised_to<float>(Vec<float> b, Vec<float> a) { return __builtin_ia32_maxps256(b, a); }
template <> inline Vec<double> raised_to<double>(Vec<double> b, Vec<double> a) { return __builtin_ia32_maxpd256(b, a); }
#endif

// The smaller of a constant `b` and `a`, and `a` where it is NaN.
template <class T> inline Vec<T> lowered_to(Vec<T> b, Vec<T> a) { return b < a ? b : a; }
#if defined(__AVX__) && UOT_VECTOR_BYTES == 32
template <> inline Vec<float> lowered_to<float>(Vec<float> b, Vec<float> a) { return __builtin_ia32_minps256(b, a); }
template <> inline Vec<double> lowered_to<double>(Vec<double> b, Vec<double> a) {
  return __builtin_ia32_minpd256(b, a);
}
#endif

template <class T> inline T max_of(Vec<T> value) {
  T lanes[kLanes<T>];
  store(lanes, value);
  T result = lanes[0];
  for (int64_t l = 1; l < kLanes<T>; ++l) result = lanes[l] > result ? lanes[l] : result;
  return result;
}

template <class T, int Bytes> struct Register { typedef T type __attribute__((vector_size(Bytes))); };

// Halves are added until four numbers (two) are left.
template <class T, int Bytes> inline T sum_of_halves(typename Register<T, Bytes>::type value) {
  if constexpr (Bytes > 16) {
    typename Register<T, Bytes / 2>::type low, high;
    __builtin_memcpy(&low, &value, Bytes / 2);
    __builtin_memcpy(&high, reinterpret_cast<const char*>(&value) + Bytes / 2, Bytes / 2);
    return sum_of_halves<T, Bytes / 2>(low + high);
  } else if constexpr (sizeof(T) == 4) {
    return (value[0] + value[2]) + (value[1] + value[3]);
  } else {
    return value[0] + value[1];
  }
}

template <class T> inline T sum_of(Vec<T> value) { return sum_of_halves<T, UOT_VECTOR_BYTES>(value); }

// 2^y for y <= 128 (1024), where it is inf; exactly 0 at and below the floor (denormals flushed), NaN for NaN.  Between
// the floor and the floor + 1 the result is some number no larger in magnitude than the smallest normal one.  On K
// vectors at once, step by step: one after the other, their chains of dependent operations fill the schedulers.
#define UOT_EACH for (int v = 0; v < K; ++v)
template <class T, int K> inline void exp2_polynomial(const Vec<T> (&f)[K], Vec<T> (&p)[K]) {
  using S = Simd<T>;
  UOT_EACH p[v] = f[v] * S::kPoly[0] + S::kPoly[1];
  for (size_t k = 2; k < sizeof(S::kPoly) / sizeof(T); ++k) UOT_EACH p[v] = p[v] * f[v] + S::kPoly[k];
  UOT_EACH p[v] = p[v] * f[v] + T(1);
}

#if defined(__AVX512DQ__) && UOT_VECTOR_BYTES == 64
// With masks that are all ones: GCC 12 warns of its own undefined vectors in the plain forms.
inline Vec<float> fraction(Vec<float> y) { return (Vec<float>)_mm512_maskz_reduce_ps(__mmask16(-1), (__m512)y, 0); }
inline Vec<double> fraction(Vec<double> y) { return (Vec<double>)_mm512_maskz_reduce_pd(__mmask8(-1), (__m512d)y, 0); }
inline Vec<float> times_exp2(Vec<float> p, Vec<float> k) {
  return (Vec<float>)_mm512_maskz_scalef_ps(__mmask16(-1), (__m512)p, (__m512)k);
}
inline Vec<double> times_exp2(Vec<double> p, Vec<double> k) {
  return (Vec<double>)_mm512_maskz_scalef_pd(__mmask8(-1), (__m512d)p, (__m512d)k);
}

// 2^(k / 32) by its low bits k, times a parabola of error 6.6e-8 over [0, 1/32): one operation in eight less than the
// polynomial over [-1/2, 1/2].  All three parts round y down, so they agree about k.
alignas(64) constexpr float kRoots[32] = {
    0x1.000000p+0f, 0x1.059b0ep+0f, 0x1.0b5586p+0f, 0x1.11301ep+0f, 0x1.172b84p+0f, 0x1.1d4874p+0f, 0x1.2387a6p+0f,
    0x1.29e9e0p+0f, 0x1.306fe0p+0f, 0x1.371a74p+0f, 0x1.3dea64p+0f, 0x1.44e086p+0f, 0x1.4bfdaep+0f, 0x1.5342b6p+0f,
    0x1.5ab07ep+0f, 0x1.6247ecp+0f, 0x1.6a09e6p+0f, 0x1.71f75ep+0f, 0x1.7a1148p+0f, 0x1.82589ap+0f, 0x1.8ace54p+0f,
    0x1.93737cp+0f, 0x1.9c4918p+0f, 0x1.a5503cp+0f, 0x1.ae89fap+0f, 0x1.b7f770p+0f, 0x1.c199bep+0f, 0x1.cb720ep+0f,
    0x1.d5818ep+0f, 0x1.dfc974p+0f, 0x1.ea4afap+0f, 0x1.f50766p+0f};

template <int K> inline void exp2_by_table(Vec<float> (&y)[K]) {
  const __m512 low = _mm512_load_ps(kRoots), high = _mm512_load_ps(kRoots + 16);
  __m512 f[K], root[K];
  const __m512 magic = _mm512_set1_ps(393216.0f);  // 1.5 * 2^23 / 32
  UOT_EACH root[v] = _mm512_maskz_add_round_ps(__mmask16(-1), (__m512)y[v], magic,
                                               _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  UOT_EACH f[v] = _mm512_maskz_reduce_ps(__mmask16(-1), (__m512)y[v], (5 << 4) | _MM_FROUND_TO_NEG_INF);
  UOT_EACH root[v] = _mm512_permutex2var_ps(low, _mm512_castps_si512(root[v]), high);
  UOT_EACH {
    const Vec<float> slope = (Vec<float>)f[v] * 0x1.f0f3e6p-3f + 0x1.62e11ep-1f;
    const Vec<float> part = (Vec<float>)root[v] * (Vec<float>)f[v];
    y[v] = times_exp2(part * slope + (Vec<float>)root[v], y[v]);
  }
}

template <class T, int K> inline void exp2_each(Vec<T> (&y)[K]) {
  if constexpr (sizeof(T) == 4) return exp2_by_table<K>(y);
  Vec<T> f[K], p[K];
  UOT_EACH f[v] = fraction(y[v]);
  exp2_polynomial<T, K>(f, p);
  UOT_EACH y[v] = times_exp2(p[v], y[v] - f[v]);
}

// As exp2_each for any y: inf above the ceiling.
template <class T, int K> inline void exp2_any(Vec<T> (&y)[K]) { exp2_each<T, K>(y); }
#else
template <class T, int K> inline void exp2_each(Vec<T> (&y)[K]) {
  using S = Simd<T>;
  using Bits = typename S::Bits;
  Vec<T> rounded[K], p[K];
  UOT_EACH y[v] = raised_to<T>(splat(S::kFloor), y[v]);
  UOT_EACH rounded[v] = y[v] + S::kMagic;
  UOT_EACH y[v] -= rounded[v] - S::kMagic;
  exp2_polynomial<T, K>(y, p);
  UOT_EACH y[v] = (Vec<T>)((Bits)p[v] + ((Bits)rounded[v] << S::kMantissa));
}

template <class T, int K> inline void exp2_any(Vec<T> (&y)[K]) {
  UOT_EACH y[v] = lowered_to<T>(splat(Simd<T>::kCeiling), y[v]);
  exp2_each<T, K>(y);
}
#endif
#undef UOT_EACH

template <class T> inline Vec<T> exp2_of(Vec<T> y) {
  Vec<T> one[1] = {y};
  exp2_each<T, 1>(one);
  return one[0];
}

inline double exp2_of(double y) {
  return exp2_of<double>(splat(y > Simd<double>::kCeiling ? Simd<double>::kCeiling : y))[0];
}
