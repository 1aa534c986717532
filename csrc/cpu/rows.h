// Rows: log-sum-exps, and the sweep.  Included by kernels.cpp alone, inside its anonymous namespace.
//
// A tile is kTileRows rows.  Row i is stabilised by a reference m_i known before its cost is read, p_ij = 2^(x_ij -
// m_i): its expected log-sum-exp where there is a hint, else its maximum, found by reading it once more.  While the
// exponentials of a tile are taken, those of the tile before it, whose scalings are known by now, are added to the
// column sums: the same place is read, then overwritten, and the cost comes from memory at an even pace.
//
// Without a hint the maximum of the row's first kPreview columns is tried, a lower bound of its log-sum-exp.  Where
// that is too low, the rest of the slab goes by its maxima.

constexpr int kGroup = UOT_VECTOR_BYTES == 64 ? 8 : 4;  // rows in one pass over a run of columns: registers decide

// A hint is taken as kHeadroom powers of two too large, and was good enough where the row's sum then lies in a range in
// which neither its terms nor those of its columns can have left the type's: else the row is done again by its maximum.
// Terms below 2^-126 are lost: against sums of kLeastSum that is 2^-122 of the row's mass.  A row of mass e^shift whose
// sum is kMostSum has the scaling 1 in the unit that the column sums start with, 2^kFirstUnit e^shift.
constexpr double kHeadroom = 15, kLeastSum = 0x1p-4, kMostSum = 0x1p60, kFirstUnit = -60;
constexpr int64_t kPreview = 256;

template <class T> T* tile_memory(const Job& job, int worker) {
  return reinterpret_cast<T*>(static_cast<char*>(job.tile) + size_t(worker) * job.tile_bytes);
}

// A worker's memory: the tile's exponentials, vector by vector of columns, the rows of each side by side; and what is
// skipped of it and of the tile before.
template <class T> struct Tile {
  T* p;
  TilePlan<T> plan[2];
  Tile(const Job& job, int worker) : p(tile_memory<T>(job, worker)) {
    T* next = p + kTileRows * job.width;
    for (TilePlan<T>& one : plan) {
      one.padded = job.block_width;
      one.columns = job.m;
      one.skip = reinterpret_cast<typename TilePlan<T>::Flag*>(next);
      one.bound = next + job.block_width;
      next += 2 * job.block_width;
      one.skipped_columns = 0;
      for (int64_t b = 0; b < one.padded; ++b) one.skip[b] = 0;
    }
  }
};

// Rows of the cost over one run of columns, and what belongs to the columns.
template <class T> struct Run {
  const T* cost;
  int64_t stride;
  const T *high, *weight;
  T* accum;
  int64_t columns;
  T slope;
};

// What belongs to the rows: references and scalings in, exponentials out, their weighted sums.
template <class T> struct RowGroup {
  T* p;
  const Vec<T> *reference, *scale;
  Vec<T>* total;
};

// New: exponentials of these rows, into p and the totals.  Old: what p held before, into the column sums.
template <class T, int Rows, bool New, bool Old, bool Keep, Order How>
inline void run_rows(const Run<T>& run, const RowGroup<T>& rows) {
  constexpr int64_t L = kLanes<T>;
  constexpr int K = Rows < kInterleaved ? Rows : kInterleaved;
  const int64_t whole = run.columns / L * L, stride = run.stride;
  const Vec<T> slope = splat(run.slope);
  Vec<T> total[Rows];
  if constexpr (New)
    for (int r = 0; r < Rows; ++r) total[r] = rows.total[r];
  const auto step = [&](int64_t j, auto entries) __attribute__((always_inline)) {
    Vec<T> sum = {}, high = {}, weight = {};
    if constexpr (Old) sum = load(run.accum + j);
    if constexpr (New) {
      high = load(run.high + j);
      weight = load(run.weight + j);
    }
    T* p = rows.p + j * kTileRows;
    for (int first = 0; first < Rows; first += K) {
      const T* from = run.cost + first * stride + j;
      Vec<T> y[K];
      if constexpr (New) {
        if constexpr (How == Order::kDifferenceFirst) {
          for (int r = 0; r < K; ++r)
            y[r] = multiply_add<T>(entries(from + r * stride), slope, high - rows.reference[first + r]);
        } else if constexpr (How == Order::kCompensated) {
          for (int r = 0; r < K; ++r) {
            const Difference<T> above(high, rows.reference[first + r]);
            y[r] = multiply_add<T>(entries(from + r * stride), slope, above.rounded) + above.lost;
          }
        } else {
          for (int r = 0; r < K; ++r) y[r] = entries(from + r * stride) * slope + high;
          for (int r = 0; r < K; ++r) y[r] -= rows.reference[first + r];
        }
        exp2_any<T, K>(y);
      }
      for (int r = 0; r < K; ++r) {
        if constexpr (Old) sum += load(p + (first + r) * L) * rows.scale[first + r];
        if constexpr (New) {
          if constexpr (Keep) store(p + (first + r) * L, y[r]);
          total[first + r] += y[r] * weight;
        }
      }
    }
    if constexpr (Old) store(run.accum + j, sum);
  };
  for (int64_t j = 0; j < whole; j += L) step(j, [](const T* from) { return load(from); });
  if (whole < run.columns) {
    const int64_t rest = run.columns - whole;
    step(whole, [rest](const T* from) { return load_some(from, rest); });
  }
  if constexpr (New)
    for (int r = 0; r < Rows; ++r) rows.total[r] = total[r];
}

template <class T, bool New, bool Old, bool Keep, Order How = Order::kReferenceLast>
void run_group(Run<T> run, RowGroup<T> rows, int64_t count) {
  const auto advance = [&](int64_t by) {
    run.cost += by * run.stride;
    rows.p += by * kLanes<T>;
    rows.reference += by;
    rows.scale += by;
    rows.total += by;
    count -= by;
  };
  if constexpr (kGroup >= 8)
    for (; count >= 8; advance(8)) run_rows<T, 8, New, Old, Keep, How>(run, rows);
  for (; count >= 4; advance(4)) run_rows<T, 4, New, Old, Keep, How>(run, rows);
  for (; count >= 2; advance(2)) run_rows<T, 2, New, Old, Keep, How>(run, rows);
  if (count) run_rows<T, 1, New, Old, Keep, How>(run, rows);
}

// The largest x of one row.
template <class T> T row_peak(const T* cost, const T* high, int64_t columns, T inverse) {
  constexpr int64_t L = kLanes<T>;
  const int64_t whole = columns / L * L;
  const Vec<T> slope = splat(T(-inverse));
  Vec<T> top[4];
  for (Vec<T>& one : top) one = splat(Simd<T>::kLowest);
  int64_t j = 0;
  for (; j + 4 * L <= whole; j += 4 * L)
    for (int v = 0; v < 4; ++v) top[v] = larger<T>(load(cost + j + v * L) * slope + load(high + j + v * L), top[v]);
  for (; j < whole; j += L) top[0] = larger<T>(load(cost + j) * slope + load(high + j), top[0]);
  if (whole < columns)
    top[1] = larger<T>(load_some(cost + whole, columns - whole) * slope + load(high + whole), top[1]);
  return max_of<T>(larger<T>(larger<T>(top[0], top[1]), larger<T>(top[2], top[3])));
}

// One slab of rows.  `Columns`: a sweep; else row log-sum-exps alone.
template <class T, bool Columns> class Slab {
 public:
  Slab(const Job& job, int64_t index, int worker)
      : job_(job), index_(index), item_(index / job.slabs), units_(job.reg[item_]),
        cost_(matrix<T>(job, item_)), high_(static_cast<const T*>(job.v_high) + item_ * job.width),
        weight_(static_cast<const T*>(job.v_low) + item_ * job.width), tile_(job, worker) {
    if constexpr (Columns) {
      accum_ = static_cast<T*>(job.slab_sum) + index * job.width;
      for (int64_t j = 0; j < job.width; ++j) accum_[j] = 0;
      if (job.block_min) {
        missed_ = static_cast<T*>(job.slab_missed) + index * job.block_width;
        for (int64_t b = 0; b < job.block_width; ++b) missed_[b] = 0;
      }
    }
  }

  void run() {
    const Range slab = chunk_of(index_ % job_.slabs, job_.slab_rows, job_.n);
    for (int64_t first = slab.begin; first < slab.end; first += kTileRows) {
      const int64_t rows = slab.end - first < kTileRows ? slab.end - first : kTileRows;
      if (rows < kTileRows) flush();
      new_tile(first, rows);
    }
    flush();
    if constexpr (Columns) job_.slab_unit[index_] = unit_;
  }

 private:
  // Adds what is pending to the column sums.
  void flush() {
    if constexpr (Columns) {
      if (pending_) pass<false, true>(0, pending_, old(), old());
      pending_ = 0;
    }
  }

  void new_tile(int64_t first, int64_t rows) {
    T reference[kTileRows];
    bool tried[kTileRows];
    fresh().skipped_columns = 0;
    refer(first, rows, reference, tried);
    const bool skipping = fresh().skipped_columns > 0;
    for (int64_t r = 0; r < kTileRows; ++r) sum_[r] = 0;
    furthest_ = 0;
    for (int64_t r = 0; r < rows; ++r) take(r, reference[r]);
    if (Columns && pending_) pass<true, true>(first, rows, fresh(), old());
    else pass<true, false>(first, rows, fresh(), old());
    if (skipping && !skipping_held(rows, reference, tried)) {
      pass_skipped(first, rows);
      fresh().skipped_columns = 0;
    }
    if (rows < kTileRows || !all_in_range())
      for (int64_t r = 0; r < rows; ++r)
        if (tried[r] && !in_range(sum_[r])) redo(first, r, reference);
    finish_rows(first, rows, reference);
  }

  // Log-sum-exps of a tile's rows, and what they are scaled by in the column sums; all rows in a register or two.
  void finish_rows(int64_t first, int64_t rows, const T* reference) {
    constexpr int64_t L = kLanes<double>;
    const int64_t row = item_ * job_.n + first;
    const bool whole = rows == kTileRows;
    double lse[kTileRows], some[kTileRows] = {}, exponent[kTileRows];
    const double* offset = nullptr;
    if constexpr (Columns) {
      offset = whole ? job_.offset + row : some;
      if (!whole) __builtin_memcpy(some, job_.offset + row, size_t(rows) * sizeof(double));
    }
    Reals top = splat(-kInfinity);
    for (int64_t r = 0; r < kTileRows; r += L) {
      const Reals log = reals(reference + r) / units_.sigma + log_of(load(sum_ + r));
      store(lse + r, log);
      if constexpr (Columns) {
        const Reals log_u = log == -kInfinity ? log : load(offset + r) - log * job_.damping[item_];
        const Reals power = (log_u - job_.shift[item_]) * kLog2E;
        store(exponent + r, power);
        top = larger<double>(power + log * kLog2E, top);
      }
    }
    __builtin_memcpy(job_.row_out + row, lse, size_t(rows) * sizeof(double));
    if constexpr (Columns) {
      const double top_mass = max_of<double>(top);
      if (top_mass - unit_ > Simd<T>::kUnitLimit) {
        const T factor = T(exp2_of(unit_ - top_mass));
        for (int64_t j = 0; j < job_.width; ++j) accum_[j] *= factor;
        unit_ = top_mass;
      }
      T scale[kTileRows];
      for (int64_t r = 0; r < kTileRows; r += L) {
        Reals power[1] = {load(exponent + r) + reals(reference + r) * (kLog2E / units_.sigma) - unit_};
        exp2_any<double, 1>(power);
        const auto rounded = __builtin_convertvector(power[0], Halves<T>);
        __builtin_memcpy(scale + r, &rounded, sizeof(rounded));
      }
      for (int64_t r = 0; r < rows; ++r) scale_[r] = splat(scale[r]);
      if (fresh().skipped_columns > 0) {
        double top_scale = -INFINITY;
        for (int64_t r = 0; r < rows; ++r) top_scale = greater(exponent[r], top_scale);
        // log2(2^x) = x kLog2E / sigma differs from x by 2^-24 of it at most, which `raised` covers.
        fresh().add_missed(top_scale + 3, missed_);
      }
      pending_ = rows;
      current_ ^= 1;
    }
  }

  static Reals reals(const T* from) {
    Halves<T> values;
    __builtin_memcpy(&values, from, sizeof(values));
    return __builtin_convertvector(values, Reals);
  }

  static bool in_range(double sum) { return sum >= kLeastSum && sum <= kMostSum; }

  bool all_in_range() const {
    Reals outside = {};
    for (int64_t r = 0; r < kTileRows; r += kLanes<double>) {
      const Reals sum = load(sum_ + r);
      outside += sum >= kLeastSum && sum <= kMostSum ? Reals{} : splat(1.0);
    }
    return max_of<double>(outside) == 0;
  }

  // References of the tile's rows, 0 behind the last, and the blocks to leave out.  `tried`: may turn out to be no good.
  void refer(int64_t first, int64_t rows, T* reference, bool* tried) {
    const double* hint = job_.row_hint ? job_.row_hint + item_ * job_.n + first : nullptr;
    const bool expected = hint && rows == kTileRows && expect(hint, reference);
    for (int64_t r = 0; r < kTileRows; ++r) tried[r] = expected;
    for (int64_t r = 0; r < kTileRows && !expected; ++r) {
      reference[r] = 0;
      if (r >= rows) continue;
      const double one = hint ? hint[r] * units_.sigma : -INFINITY;
      const bool part = preview_ && job_.m > kPreview;
      tried[r] = part || std::fabs(one) < kFurthest;
      reference[r] = std::fabs(one) < kFurthest ? T(one - kHeadroom)
          : row_peak(cost_ + (first + r) * job_.row_stride, high_, part ? kPreview : job_.m, units_.inverse);
    }
    if constexpr (Columns)
      if (hint && job_.block_min && job_.col_hint) leave_out(first, rows, hint);
  }

  // References from the hints of a whole tile; false where one is no number to go by.
  bool expect(const double* hint, T* reference) const {
    Reals outside = {};
    for (int64_t r = 0; r < kTileRows; r += kLanes<double>) {
      const Reals expected = load(hint + r) * units_.sigma;
      outside += expected < kFurthest && expected > -kFurthest ? Reals{} : splat(1.0);
      const auto rounded = __builtin_convertvector(expected - kHeadroom, Halves<T>);
      __builtin_memcpy(reference + r, &rounded, sizeof(rounded));
    }
    return max_of<double>(outside) == 0;
  }

  // Blocks that the hints of the tile's rows, if all are numbers, show to be negligible.
  void leave_out(int64_t first, int64_t rows, const double* hint) {
    const double* offset = job_.offset + item_ * job_.n + first;
    double least = INFINITY, scale = -INFINITY;
    for (int64_t r = 0; r < rows; ++r) {
      const double expected = hint[r] * units_.sigma;
      if (!(std::fabs(expected) < kFurthest)) return;
      least = -greater(-expected, -least);
      scale = greater(offset[r] - job_.damping[item_] * hint[r], scale);
    }
    fresh().choose(job_, item_, first / kTileRows, units_.inverse, least, scale * units_.sigma);
  }

  bool skipping_held(int64_t rows, const T* reference, const bool* tried) {
    for (int64_t r = 0; r < rows; ++r)
      if ((tried[r] && !in_range(sum_[r])) || !fresh().negligible(double(reference[r]), sum_[r], block_columns(job_.m)))
        return false;
    return true;
  }

  void take(int64_t r, T reference) {
    reference_[r] = splat(reference);
    furthest_ = greater(std::fabs(double(reference)), furthest_);
  }

  // A row whose hint was no good, by its maximum.
  void redo(int64_t first, int64_t r, T* reference) {
    const T* row = cost_ + (first + r) * job_.row_stride;
    reference[r] = row_peak(row, high_, job_.m, units_.inverse);
    take(r, reference[r]);
    sum_[r] = 0;
    preview_ = false;
    for (int64_t begin = 0; begin < job_.m; begin += kBlock<T>) {
      const int64_t columns = job_.m - begin < kBlock<T> ? job_.m - begin : kBlock<T>;
      run_some<true, false>(first + r, r, 1, begin, columns);
    }
  }

  // One run of columns: New of rows [first, first + rows), places [place, place + rows) of the tile.
  template <bool New, bool Old>
  void run_some(int64_t first, int64_t place, int64_t rows, int64_t begin, int64_t columns) {
    Vec<T> total[kTileRows] = {};
    const Run<T> run{cost_ + first * job_.row_stride + begin, job_.row_stride, high_ + begin, weight_ + begin,
                     accum_ + begin, columns, T(-units_.inverse)};
    const RowGroup<T> group{tile_.p + begin * kTileRows + place * kLanes<T>, reference_ + place, scale_ + place, total};
    const bool far = furthest_ > kFar<T> && furthest_ < kTooFar<T>;
    if (New && far) run_group<T, New, Old, Columns, Order::kCompensated>(run, group, rows);
    else run_group<T, New, Old, Columns>(run, group, rows);
    if constexpr (New)
      for (int64_t r = 0; r < rows; ++r) sum_[place + r] += double(sum_of<T>(total[r]));
  }

  // All columns, in runs of at most kBlock: exponentials where `fresh` skips nothing, column sums where `old` did not.
  template <bool New, bool Old>
  void pass(int64_t first, int64_t rows, const TilePlan<T>& fresh, const TilePlan<T>& old) {
    const bool any_new = New && fresh.skipped_columns > 0, any_old = Old && old.skipped_columns > 0;
    if (!any_new && !any_old) {
      for (int64_t begin = 0; begin < job_.m; begin += kBlock<T>)
        run_some<New, Old>(first, 0, rows, begin, job_.m - begin < kBlock<T> ? job_.m - begin : kBlock<T>);
      return;
    }
    const auto kind = [&](int64_t b) {
      return (New && !(any_new && fresh.skip[b]) ? 1 : 0) + (Old && !(any_old && old.skip[b]) ? 2 : 0);
    };
    runs_of_blocks(job_.m, kBlock<T>, kind, [&](int what, int64_t begin, int64_t columns) {
      if constexpr (New && Old)
        if (what == 3) run_some<true, true>(first, 0, rows, begin, columns);
      if constexpr (New)
        if (what == 1) run_some<true, false>(first, 0, rows, begin, columns);
      if constexpr (Old)
        if (what == 2) run_some<false, true>(first, 0, rows, begin, columns);
    });
  }

  // What was left out, after all.
  void pass_skipped(int64_t first, int64_t rows) {
    const int64_t blocks = block_columns(job_.m);
    for (int64_t b = 0; b < blocks; ++b)
      if (fresh().skip[b]) {
        const Range block = chunk_of(b, kSkipColumns, job_.m);
        run_some<true, false>(first, 0, rows, block.begin, block.end - block.begin);
      }
  }

  TilePlan<T>& fresh() { return tile_.plan[current_]; }
  TilePlan<T>& old() { return tile_.plan[current_ ^ 1]; }

  static constexpr double kFurthest = -Simd<T>::kLowest;  // a reference must lie nearer

  const Job& job_;
  const int64_t index_, item_;
  const Units<T> units_;
  const T* cost_;
  const T *high_, *weight_;
  Tile<T> tile_;
  T *accum_ = nullptr, *missed_ = nullptr;
  double unit_ = kFirstUnit;  // the column sums are in units of 2^unit e^shift: raised when a term would overflow
  double sum_[kTileRows];
  Vec<T> reference_[kTileRows];  // of this tile's rows
  Vec<T> scale_[kTileRows];      // of the pending tile's rows
  double furthest_ = 0;  // of this tile's references, which says whether its exponents are compensated
  int64_t pending_ = 0;  // rows whose exponentials are not yet in the column sums
  int current_ = 0;
  bool preview_ = true;
};

template <class T, bool Columns> void rows_unit(const Job& job, int64_t index, int worker) {
  Slab<T, Columns>(job, index, worker).run();
}

// col_mass += w * the slabs' sums, one chunk of columns; and the bounds of what they miss.
template <class T> void merge_sweep(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  const T* weight = static_cast<const T*>(job.v_low) + item * job.width;
  double total[kChunk] = {};
  for (int64_t s = item * job.slabs; s < (item + 1) * job.slabs; ++s) {
    const T* sum = static_cast<const T*>(job.slab_sum) + s * job.width;
    const double unit = ::exp2(job.slab_unit[s]);
    for (int64_t j = range.begin; j < range.end; ++j) total[j - range.begin] += unit * double(sum[j]);
  }
  double* out = job.col_out + item * job.m;
  for (int64_t j = range.begin; j < range.end; ++j) out[j] += double(weight[j]) * total[j - range.begin];
  if (!job.block_min) return;
  const int64_t blocks = block_columns(job.m), first = range.begin / kSkipColumns, last = block_columns(range.end);
  for (int64_t s = item * job.slabs; s < (item + 1) * job.slabs; ++s) {
    const T* missed = static_cast<const T*>(job.slab_missed) + s * job.block_width;
    for (int64_t b = first; b < last; ++b) job.missed[item * blocks + b] += double(missed[b]);
  }
}
