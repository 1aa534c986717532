// Which blocks of the cost a sweep may leave out, and a bound of what that costs.  Included by kernels.cpp alone,
// inside its anonymous namespace.
//
// Block (I, J): kTileRows rows, kSkipColumns columns, c_IJ <= C_ij the table's minimum.  In units of x (kernels.cpp)
//   x_ij = sigma log v_j - inverse C_ij <= B_IJ = max_J (sigma log v_j) - inverse c_IJ,
// since inverse > 0; sigma log v_j = high_j + log2 w_j.  This holds for every eps and v, with c_IJ = +inf too
// (B = -inf); a NaN in the block makes c_IJ NaN, and a comparison with NaN never skips.  From it follow two bounds:
//
// Rows.  What skipping leaves out of the sum of row i is at most sum_{J skipped} |J| 2^{B_IJ}.  This is compared with
// the sum of what was kept once that is known: where it is above 2^-24 (2^-53) of it, the tile's skipped blocks are
// computed after all.  So a row's sum is right to 2^-24 whatever the hints were.
//
// Columns.  What is left out of col_mass_j, j in J, is at most
//   sum_{I skips J} sum_{i in I} u_i e^-shift v_j e^{-C_ij/eps} <= sum_{I skips J} |I| 2^{L_I + B_IJ} =: missed_J,
// with L_I = max_{i in I} log2(u_i e^-shift) of the u that the rows were given, not of a prediction.  The caller
// compares missed_J with col_mass_j.  It holds for the largest v_j of the block; column j misses at most missed_J v_j /
// max_J v.
//
// The hints only choose: a block is skipped where by last time's row and column sums each entry is below
// 2^-26 / max(n, m) (2^-55) of both, two bits under what the first comparison allows in total.  Blocks of rows and
// columns whose sums have fallen by less than a factor of four since therefore pass it.
//
// B is rounded in the cost's type: every term is raised by 2^-20 of its size, sixteen units in the last place of
// float32; and every term of missed_J by 2^-10, for the rounding of up to 2^13 tiles' sum.

template <class T> constexpr T kRaise = T(0x1p-20);
template <class T> constexpr double kTolerance = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;

// The larger of two, NaN if either is: so NaN reaches a comparison, and nothing is skipped.
inline double greater(double a, double b) { return a > b || a != a ? a : b; }

// -inf, the bound of nothing, stays that.
inline double raised(double value) {
  return value == -kInfinity ? value : value + std::fabs(value) * 0x1p-20 + 0x1p-20;
}

// Per problem and block of columns: the largest sigma log v_j, and the least expected column sum of those that have
// mass.
template <class T> struct ColumnBounds {
  int64_t padded;
  T *high, *sum;
  ColumnBounds(const Job& job, int64_t item)
      : padded(job.block_width), high(static_cast<T*>(job.bound_high) + item * padded),
        sum(static_cast<T*>(job.bound_sum) + item * padded) {}
};

// Blocks [begin, end) of the padded ones; padding bounds nothing.
template <class T> void bound_columns(const Job& job, int64_t item, int64_t begin, int64_t end) {
  const Units<T> units(job.reg[item]);
  const ColumnBounds<T> bounds(job, item);
  const double* log_v = job.log_v + item * job.m;
  const double* hint = job.col_hint ? job.col_hint + item * job.m : nullptr;
  for (int64_t b = begin; b < end; ++b) {
    const Range block = chunk_of(b, kSkipColumns, job.m);
    double most = -INFINITY, least = INFINITY;
    for (int64_t j = block.begin; j < block.end; ++j) {
      most = greater(log_v[j], most);
      if (hint && log_v[j] != -INFINITY) least = -greater(-hint[j], -least);
    }
    bounds.high[b] = T(raised(most * units.sigma));
    bounds.sum[b] = hint ? T(least * units.sigma) : T(-INFINITY);
  }
}

// The blocks of one tile of rows.
template <class T> struct TilePlan {
  using Bits = typename Simd<T>::Bits;
  using Flag = typename std::remove_reference<decltype(Bits{}[0])>::type;
  int64_t padded, columns, skipped_columns;
  Flag* skip;  // all ones where skipped
  T* bound;    // B_IJ
  double most;  // the largest B_IJ skipped

  // `row_sum` and `row_scale`: the least expected row sum and the largest expected log2 u_i, in units of x.
  void choose(const Job& job, int64_t item, int64_t tile, T inverse, double row_sum, double row_scale) {
    constexpr int64_t L = kLanes<T>;
    const ColumnBounds<T> bounds(job, item);
    const int64_t blocks = block_columns(job.m);
    const T* table = static_cast<const T*>(job.block_min) + job.item(item) * block_min_entries(job.n, job.m) +
                     tile * blocks;
    const double size = double(job.n > job.m ? job.n : job.m);
    const double margin = -std::log2(kTolerance<T>) + 2 + std::log2(size);
    const Vec<T> row_limit = splat(T(row_sum - margin)), col_limit = splat(T(-row_scale - margin));
    const Vec<T> slope = splat(T(-inverse)), lowest = splat(T(-INFINITY));
    Vec<T> top = lowest;
    skipped_columns = 0;
    for (int64_t b = 0; b < padded; b += L) {
      const Vec<T> least = b + L <= blocks ? load(table + b) : load_some(table + b, blocks - b);
      const Vec<T> x = least * slope;
      const Vec<T> reach = load(bounds.high + b) + larger<T>(x * (1 + kRaise<T>), x * (1 - kRaise<T>));
      const Bits out = (Bits)(reach <= row_limit) & (Bits)(x <= load(bounds.sum + b) + col_limit);
      store_bits(skip + b, out);
      store(bound + b, reach);
      top = larger<T>(out ? reach : lowest, top);
    }
    most = double(max_of<T>(top));
    for (int64_t b = 0; b < blocks; ++b)
      if (skip[b]) skipped_columns += (b + 1) * kSkipColumns <= job.m ? kSkipColumns : job.m - b * kSkipColumns;
      else skip[b] = 0;
  }

  static void store_bits(Flag* to, Bits value) { __builtin_memcpy(to, &value, sizeof(value)); }

  // Whether what is skipped is below the tolerance beside `sum`, a row's kept entries in units of 2^unit.
  bool negligible(double unit, double sum, int64_t blocks) const {
    if (!(sum > 0)) return most == -INFINITY;
    const double limit = kTolerance<T> * sum;
    if (double(skipped_columns) * exp2_of(raised(most - unit)) <= limit) return true;
    double total = 0;
    for (int64_t b = 0; b < blocks; ++b)
      if (skip[b]) total += double(kSkipColumns) * exp2_of(raised(double(bound[b]) - unit));
    return total <= limit;
  }

  // missed_J += 2^{L_I + B_IJ} over the skipped blocks, `log2_scale` being L_I + log2 |I|, k = 1 in units of x.
  void add_missed(double log2_scale, T* missed) const {
    constexpr int64_t L = kLanes<T>;
    const Vec<T> scale = splat(T(raised(log2_scale)));
    for (int64_t b = 0; b < padded; b += L) {
      Bits out;
      __builtin_memcpy(&out, skip + b, sizeof(out));
      // Not below the floor, where the power of two would be no bound but zero.
      Vec<T> power[1] = {raised_to<T>(splat(T(Simd<T>::kFloor + 2)), load(bound + b) + scale)};
      exp2_any<T, 1>(power);
      store(missed + b, load(missed + b) + (Vec<T>)((Bits)(power[0] * T(1 + 0x1p-10)) & out));
    }
  }
};

// Calls visit(kind, first column, columns) for every run of neighbouring blocks of one kind, `most` columns at most.
template <class Kind, class Visit> void runs_of_blocks(int64_t m, int64_t most, Kind kind, Visit visit) {
  const int64_t blocks = block_columns(m);
  for (int64_t b = 0; b < blocks;) {
    const int what = kind(b);
    int64_t end = b + 1;
    while (end < blocks && (end - b) * kSkipColumns < most && kind(end) == what) ++end;
    const int64_t begin = b * kSkipColumns, stop = end * kSkipColumns < m ? end * kSkipColumns : m;
    visit(what, begin, stop - begin);
    b = end;
  }
}
