// The adjoint's passes over N_ij = e^(x_i + y_j - C_ij / eps), whose entries are 1 at most (gradients/adjoint.py): one
// read of the cost and one exponential per entry.  Included by kernels.cpp alone, inside its anonymous namespace.
//
// The log-scalings of both sides are rounded to multiples of one power of two, coarse enough for the sum of any two to
// be exact in the cost's type: the large terms of the exponent cancel before anything is rounded.  The rest, at most
// half that unit, is a factor of a whole row or column and stays outside the loops:
//   N_ij = w_i w_j 2^(high_i + high_j - inverse C_ij),  w = 2^low.

// The unit of one problem: 2^-22 (2^-51) of what the sum of two log-scalings can be.
template <class T> void grid_unit(const Job& job, int64_t item, int) {
  const auto largest = [](const double* logs, int64_t length) {
    double top = 0;
    for (int64_t k = 0; k < length; ++k) {
      const double size = std::fabs(logs[k]);
      if (size > top && size < kInfinity) top = size;
    }
    return top;
  };
  const double most = largest(job.log_u + item * job.n, job.n) + largest(job.log_v + item * job.m, job.m);
  int exponent;
  std::frexp(1 + most * Units<T>(job.reg[item]).sigma, &exponent);
  job.grid[item] = std::ldexp(1.0, exponent - Simd<T>::kMantissa + 1);
}

template <class T> void split_both(const Job& job, int64_t index, int worker) {
  const int64_t columns = job.count * ((job.width + kChunk - 1) / kChunk);
  if (index < columns) split_columns<T>(job, index, worker);
  else split_rows<T>(job, index - columns, worker);
}

// Of the roots of some points, those that take part; of none, inf and 0: they have no entries.
struct Extent {
  double least, most;
};

Extent extent(const double* root, Range range) {
  double least = kInfinity, most = 0;
  for (int64_t k = range.begin; k < range.end; ++k) {
    if (root[k] > most) most = root[k];
    if (root[k] > 0 && root[k] < least) least = root[k];
  }
  return {least, most};
}

// w_j p_j, in the cost's type; 0 behind the last column.  If blocks are to be marked, also the extent of p in each.
template <class T> void load_operand(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.width);
  const double* from = job.operand + item * job.m;
  const T* weight = static_cast<const T*>(job.v_low) + item * job.width;
  T* to = static_cast<T*>(job.operand_scaled) + item * job.width;
  for (int64_t j = range.begin; j < range.end; ++j) to[j] = j < job.m ? T(from[j] * double(weight[j])) : T(0);
  if (!job.empty_out) return;
  Extent* extents = static_cast<Extent*>(job.extents) + item * block_columns(job.m);
  const int64_t end = range.end < job.m ? range.end : job.m;
  for (int64_t b = range.begin / kSkipColumns; b * kSkipColumns < end; ++b)
    extents[b] = extent(from, chunk_of(b, kSkipColumns, job.m));
}

// One slab of rows.  With t = N p,
//   Schur:      columns += N' (t / diagonal), and t itself where it is wanted;
//   Eliminate:  diagonal_i = ratio t_i / root_i (ratio alone where the quotient is far from 1: `near_one` of
//               backends/base.py), and columns += N' root, N' (side / diagonal), (N * N)' (1 / diagonal).
// The former adds a tile to the column sums while it takes the exponentials of the next, as the sweep does; the latter
// marks blocks for it to skip, those in which every entry has
//   N_ij <= d min(root_i / root_j, root_j / root_i),  d = 2^-24 / max(n, m)  (2^-53).
// As sum_j N_ij root_j = root_i, and likewise down a column, they are together below 2^-24 of the sum of their row and
// of their column; and as none is above d, leaving them out moves N by 2^-24 at most in the Frobenius norm, beside a
// largest singular value of 1: in both respects by a rounding of the type.
template <class T, bool Eliminate> class AdjointSlab {
 public:
  AdjointSlab(const Job& job, int64_t index, int worker)
      : job_(job), slab_(chunk_of(index % job.slabs, job.slab_rows, job.n)), item_(index / job.slabs),
        slope_(T(-Units<T>(job.reg[item_]).inverse)), cost_(matrix<T>(job, item_)),
        u_high_(static_cast<const T*>(job.u_high) + item_ * job.height),
        u_weight_(static_cast<const T*>(job.u_low) + item_ * job.height),
        v_high_(static_cast<const T*>(job.v_high) + item_ * job.width),
        v_weight_(static_cast<const T*>(job.v_low) + item_ * job.width),
        operand_(static_cast<const T*>(job.operand_scaled) + item_ * job.width),
        accum_(static_cast<T*>(job.slab_sum) + index * kSums * job.width), tile_(tile_memory<T>(job, worker)) {
    for (int64_t j = 0; j < kSums * job.width; ++j) accum_[j] = 0;
  }

  void run() {
    for (int64_t first = slab_.begin; first < slab_.end; first += kTileRows) {
      const int64_t rows = slab_.end - first < kTileRows ? slab_.end - first : kTileRows;
      if (rows < kTileRows) flush();
      for (int64_t r = 0; r < rows; ++r) {
        reference_[r] = splat(T(-u_high_[first + r]));
        sum_[r] = 0;
      }
      const uint8_t* empty = Eliminate ? nullptr : empty_of(job_.empty, first);
      if (pending_) pass<true, true>(first, rows, empty);
      else pass<true, false>(first, rows, empty);
      if constexpr (Eliminate) eliminate(first, rows);
      else scale(first, rows);
      pending_empty_ = empty;
    }
    flush();
  }

 private:
  static constexpr int64_t kSums = Eliminate ? 3 : 1;

  template <class Flag> Flag* empty_of(Flag* table, int64_t first) const {
    return table ? table + item_ * block_min_entries(job_.n, job_.m) + first / kTileRows * block_columns(job_.m)
                 : nullptr;
  }

  void flush() {
    if (pending_) pass<false, true>(0, pending_, nullptr);
    pending_ = 0;
  }

  // Where `empty` says so, exponentials are not taken, nor added to the columns a tile later.
  template <bool New, bool Old> void pass(int64_t first, int64_t rows, const uint8_t* empty) {
    const uint8_t* old = Old ? pending_empty_ : nullptr;
    const auto kind = [=](int64_t b) { return (New && !(empty && empty[b])) + 2 * (Old && !(old && old[b])); };
    runs_of_blocks(job_.m, kBlock<T>, kind, [&](int what, int64_t begin, int64_t columns) {
      if constexpr (New && Old)
        if (what == 3) run_some<true, true>(first, rows, begin, columns);
      if constexpr (New)
        if (what == 1) run_some<true, false>(first, rows, begin, columns);
      if constexpr (Old)
        if (what == 2) run_some<false, true>(first, rows, begin, columns);
    });
  }

  template <bool New, bool Old> void run_some(int64_t first, int64_t rows, int64_t begin, int64_t columns) {
    Vec<T> total[kTileRows] = {};
    const Run<T> run{cost_ + first * job_.row_stride + begin, job_.row_stride, v_high_ + begin, operand_ + begin,
                     accum_ + begin, columns, slope_};
    const RowGroup<T> group{tile_ + begin * kTileRows, reference_, scale_, total};
    run_group<T, New, Old, true, Order::kDifferenceFirst>(run, group, rows);
    if constexpr (New)
      for (int64_t r = 0; r < rows; ++r) sum_[r] += double(sum_of<T>(total[r]));
  }

  void scale(int64_t first, int64_t rows) {
    const double* diagonal = job_.row_diagonal + item_ * job_.n + first;
    double* through = job_.row_out ? job_.row_out + item_ * job_.n + first : nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      const double weight = double(u_weight_[first + r]), total = sum_[r] * weight;
      if (through) through[r] = total;
      scale_[r] = splat(T(total / diagonal[r] * weight));
    }
    pending_ = rows;
  }

  void eliminate(int64_t first, int64_t rows) {
    const int64_t row = item_ * job_.n + first;
    Vec<T> root_scale[kTileRows] = {}, side_scale[kTileRows] = {}, square_scale[kTileRows] = {};
    for (int64_t r = 0; r < rows; ++r) {
      const double weight = double(u_weight_[first + r]), root = job_.row_root[row + r];
      const double total = sum_[r] * weight, ratio = total / (root > 0 ? root : 1.0);
      const double diagonal = (ratio > 0.5 && ratio < 2.0 ? ratio : 1.0) * job_.row_ratio[item_];
      job_.row_out[row + r] = diagonal;
      row_weight_[r] = splat(u_weight_[first + r]);
      root_scale[r] = splat(T(root * weight));
      side_scale[r] = splat(T(job_.row_side[row + r] / diagonal * weight));
      square_scale[r] = splat(T(weight * weight / diagonal));
    }
    uint8_t* empty = empty_of(job_.empty_out, first);
    const Extent roots = empty ? extent(job_.row_root + item_ * job_.n, {first, first + rows}) : Extent{};
    for (int64_t b = 0; b < block_columns(job_.m); ++b) {
      const Range block = chunk_of(b, kSkipColumns, job_.m);
      if (empty) empty[b] = add_block<true>(block, rows, root_scale, side_scale, square_scale) <= limit(roots, b);
      else add_block<false>(block, rows, root_scale, side_scale, square_scale);
    }
  }

  // What an entry of a block is at most if it is to be skipped.
  double limit(const Extent& rows, int64_t b) const {
    const Extent columns = (static_cast<const Extent*>(job_.extents) + item_ * block_columns(job_.m))[b];
    const double across = rows.least / columns.most, down = columns.least / rows.most;
    return kTolerance<T> / double(job_.n > job_.m ? job_.n : job_.m) * (across < down ? across : down);
  }

  // Adds a block of the tile to the column sums; if `Peak`, returns its largest entry.
  template <bool Peak> double add_block(Range block, int64_t rows, const Vec<T>* root_scale, const Vec<T>* side_scale,
                                        const Vec<T>* square_scale) {
    constexpr int64_t L = kLanes<T>;
    T *roots = accum_, *sides = accum_ + job_.width, *squares = accum_ + 2 * job_.width;
    Vec<T> peak = {};
    for (int64_t j = block.begin; j < block.end; j += L) {
      Vec<T> by_root = load(roots + j), by_side = load(sides + j), by_square = load(squares + j), top = {};
      for (int64_t r = 0; r < rows; ++r) {
        const Vec<T> entry = load(tile_ + j * kTileRows + r * L);
        by_root += entry * root_scale[r];
        by_side += entry * side_scale[r];
        by_square += entry * entry * square_scale[r];
        if constexpr (Peak) top = larger<T>(entry * row_weight_[r], top);
      }
      store(roots + j, by_root);
      store(sides + j, by_side);
      store(squares + j, by_square);
      if constexpr (Peak) peak = larger<T>(top * load(v_weight_ + j), peak);
    }
    return double(max_of<T>(peak));
  }

  const Job& job_;
  const Range slab_;
  const int64_t item_;
  const T slope_;
  const T *cost_, *u_high_, *u_weight_, *v_high_, *v_weight_, *operand_;
  T *accum_, *tile_;
  double sum_[kTileRows];
  Vec<T> reference_[kTileRows];  // of this tile's rows
  Vec<T> scale_[kTileRows];      // of the pending tile's rows
  Vec<T> row_weight_[kTileRows];
  int64_t pending_ = 0;          // rows whose exponentials are not yet in the column sums
  const uint8_t* pending_empty_ = nullptr;
};

template <class T, bool Eliminate> void adjoint_unit(const Job& job, int64_t index, int worker) {
  AdjointSlab<T, Eliminate>(job, index, worker).run();
}

// col_out += w_j times the slabs' sums, or w_j^2 for those of squares; one chunk of columns.
template <class T, int64_t Sums> void merge_adjoint(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  const T* weight = static_cast<const T*>(job.v_low) + item * job.width;
  for (int64_t k = 0; k < Sums; ++k) {
    double total[kChunk] = {};
    for (int64_t s = item * job.slabs; s < (item + 1) * job.slabs; ++s) {
      const T* sum = static_cast<const T*>(job.slab_sum) + (s * Sums + k) * job.width;
      for (int64_t j = range.begin; j < range.end; ++j) total[j - range.begin] += double(sum[j]);
    }
    double* out = job.col_out + (item * Sums + k) * job.m;
    for (int64_t j = range.begin; j < range.end; ++j) {
      const double factor = double(weight[j]);
      out[j] += (k == 2 ? factor * factor : factor) * total[j - range.begin];
    }
  }
}
