// Exponents: large terms that cancel, a cost and log-scalings, added up with errors of the size of the result.  Included
// by kernels.cpp alone, inside its anonymous namespace.

// a b + c of an exact product; by halves of both factors (Dekker) where no instruction does it.
template <class T> inline Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return a * b + c;
#else
  constexpr T kSplit = T((int64_t(1) << (Simd<T>::kMantissa + 2) / 2) + 1);
  const auto upper = [](Vec<T> x) {
    const Vec<T> scaled = x * kSplit;
    return scaled - (scaled - x);
  };
  const Vec<T> a_high = upper(a), b_high = upper(b), a_low = a - a_high, b_low = b - b_high, product = a * b;
  Vec<T> lost = ((a_high * b_high - product) + (a_high * b_low + a_low * b_high)) + a_low * b_low;
  lost = lost == lost ? lost : Vec<T>{};  // of factors that are infinite, or nearly
  return (product + c) + lost;
#endif
}

// How x_ij - m_i = high_j - C_ij / eps - m_i is added up.
enum class Order {
  kReferenceLast,    // errors of roundings of x_ij, small where m_i is
  kDifferenceFirst,  // high_j - m_i is a number of the type: the large terms cancel before anything is rounded
  kCompensated,      // and with what rounding high_j - m_i loses: for rows whose m_i is large, five operations more
};

// high - reference once rounded, and what that lost; 0 of a column that takes no part.
template <class T> struct Difference {
  Vec<T> rounded, lost;
  Difference(Vec<T> high, Vec<T> reference) : rounded(high - reference) {
    const Vec<T> back = rounded - high;
    lost = (high - (rounded - back)) - (reference + back);
    lost = rounded < Simd<T>::kLowest ? Vec<T>{} : lost;
  }
};

// References between which roundings of an exponent, 2^-24 (2^-53) of them at most, matter, and are 2 at most: beyond,
// a maximum, once rounded, may lie far below the true one.
template <class T> constexpr double kFar = 0x1p-11 * double(int64_t(1) << Simd<T>::kMantissa);
template <class T> constexpr double kTooFar = 4 * double(int64_t(1) << Simd<T>::kMantissa);

// The two high parts are added without error, so the large numbers cancel before anything is rounded.
template <class T> inline Vec<T> plan_exponent(Vec<T> cost, Vec<T> slope, Vec<T> u_high, Vec<T> u_low, Vec<T> v_high,
                                               Vec<T> v_low) {
  const Vec<T> both = u_high + v_high;
  const Vec<T> v_part = both - u_high;
  Vec<T> rest = ((u_high - (both - v_part)) + (v_high - v_part)) + (u_low + v_low);
  rest = both < Simd<T>::kLowest ? Vec<T>{} : rest;  // -inf - -inf
  return multiply_add<T>(cost, slope, both) + rest;
}
