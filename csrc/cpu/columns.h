// Log-sum-exps of columns with a running maximum.  Included by kernels.cpp alone, inside its anonymous namespace.

// One tile of rows against one block of columns: the running maxima rise to the tile's, the sums follow.
template <class T> inline void column_block(const T* cost, int64_t stride, const T* high, const T* weight,
                                            int64_t rows, int64_t columns, T inverse, const T* ahead, T* x, T* peak,
                                            T* sum) {
  constexpr int64_t L = kLanes<T>;
  constexpr int K = kInterleaved;
  const int64_t whole = columns / L * L;
  const Vec<T> slope = splat(T(-inverse));
  const auto entries = [&](int64_t r, int64_t j) {
    const T* from = cost + r * stride + j;
    return j < whole ? load(from) : load_some(from, columns - j);
  };
  Vec<T> furthest = {};
  for (int64_t j = 0; j < columns; j += L) {
    const Vec<T> old = load(peak + j);
    Vec<T> top = old;
    for (int64_t r = 0; r < rows; ++r) {
      const Vec<T> value = entries(r, j) * slope + high[r];
      store(x + r * kTileBlock<T> + j, value);
      top = larger<T>(value, top);
    }
    store(peak + j, top);
    const Vec<T> seen = j + L <= columns ? top : load_some(peak + j, columns - j), size = seen < 0 ? -seen : seen;
    furthest = larger<T>(size < -Simd<T>::kLowest ? size : Vec<T>{}, furthest);
    store(sum + j, load(sum + j) * exp2_of<T>(old - top));
  }
  const bool compensated = double(max_of<T>(furthest)) < kTooFar<T>;
  for (int64_t r = 0; r < rows; ++r) {
    const T *ahead_row = ahead + r * stride, *x_row = x + r * kTileBlock<T>;
    const auto exponent = [&](int64_t j) {  // x - peak; whatever the peaks, so that masked columns have the same digits
      if (!compensated) return load(x_row + j) - load(peak + j);
      const Difference<T> above(splat(high[r]), load(peak + j));
      return multiply_add<T>(entries(r, j), slope, above.rounded) + above.lost;
    };
    int64_t j = 0;
    for (; j + K * L <= columns; j += K * L) {
      Vec<T> p[K];
      for (int v = 0; v < K; v += kPerLine) __builtin_prefetch(ahead_row + j + v * L);
      for (int v = 0; v < K; ++v) p[v] = exponent(j + v * L);
      exp2_each<T, K>(p);
      for (int v = 0; v < K; ++v) store(sum + j + v * L, load(sum + j + v * L) + p[v] * weight[r]);
    }
    for (; j < columns; j += L) {
      const Vec<T> p = exp2_of<T>(exponent(j));
      store(sum + j, load(sum + j) + p * weight[r]);
    }
  }
}

// One slab of one problem: its rows' cost and scalings, the columns' sums and running maxima, the worker's memory.
template <class T> struct ColumnSlab {
  int64_t item;
  Range rows;
  T inverse;
  const T *cost, *high, *weight;
  T *sum, *peak, *x;

  ColumnSlab(const Job& job, int64_t index, int worker)
      : item(index / job.slabs), rows(chunk_of(index % job.slabs, job.slab_rows, job.n)),
        inverse(Units<T>(job.reg[item]).inverse), cost(matrix<T>(job, item)),
        high(static_cast<const T*>(job.u_high) + item * job.height),
        weight(static_cast<const T*>(job.u_low) + item * job.height),
        sum(static_cast<T*>(job.slab_sum) + index * job.width),
        peak(static_cast<T*>(job.slab_peak) + index * job.width), x(tile_memory<T>(job, worker)) {}

  // The first `count` columns without a term.
  void clear(int64_t count) const {
    for (int64_t j = 0; j < count; ++j) {
      sum[j] = 0;
      peak[j] = Simd<T>::kLowest;
    }
  }
};

template <class T> void col_lse_unit(const Job& job, int64_t index, int worker) {
  const ColumnSlab<T> slab(job, index, worker);
  slab.clear(job.width);
  for (int64_t first = slab.rows.begin; first < slab.rows.end; first += kTileRows) {
    const int64_t rows = slab.rows.end - first < kTileRows ? slab.rows.end - first : kTileRows;
    for (int64_t b = 0; b * kTileBlock<T> < job.m; ++b) {
      const Range block = chunk_of(b, kTileBlock<T>, job.m);
      const T* entry = slab.cost + first * job.row_stride + block.begin;
      const T* next = entry + (block.end < job.m ? kTileBlock<T> : kTileRows * job.row_stride - block.begin);
      column_block<T>(entry, job.row_stride, slab.high + first, slab.weight + first, rows, block.end - block.begin,
                      slab.inverse, next, slab.x, slab.peak + block.begin, slab.sum + block.begin);
    }
  }
}

// The log-sum-exp of one column over slabs, by their running maxima.
template <class T> double merged_column(const Job& job, const Units<T>& units, int64_t item, int64_t place) {
  const T* sums = static_cast<const T*>(job.slab_sum) + item * job.slabs * job.width + place;
  const T* peaks = static_cast<const T*>(job.slab_peak) + item * job.slabs * job.width + place;
  double top = Simd<T>::kLowest, total = 0;
  for (int64_t s = 0; s < job.slabs; ++s) {
    const double peak = peaks[s * job.width];
    top = peak > top ? peak : top;
  }
  for (int64_t s = 0; s < job.slabs; ++s)
    total += double(sums[s * job.width]) * exp2_of(double(peaks[s * job.width]) - top);
  return units.log_sum(top, total);
}

template <class T> void merge_col_lse(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  const Units<T> units(job.reg[item]);
  for (int64_t j = range.begin; j < range.end; ++j) job.col_out[item * job.m + j] = merged_column(job, units, item, j);
}

// ---- some columns: their entries are gathered, and kept in order from the first place on ----

inline int64_t wanted(const bool* mask, int64_t begin, int64_t end, int32_t* list) {
  int64_t count = 0;
  for (int64_t j = begin; j < end; ++j) {
    if (list) list[count] = int32_t(j);
    count += mask[j];
  }
  return count;
}

template <class T> void col_lse_masked_unit(const Job& job, int64_t index, int worker) {
  const ColumnSlab<T> slab(job, index, worker);
  T* entries = slab.x + kTileRows * kTileBlock<T>;
  int32_t* list = reinterpret_cast<int32_t*>(entries + kTileRows * kTileBlock<T>);  // m, and one that is written over
  const int64_t count = wanted(job.mask + slab.item * job.m, 0, job.m, list);
  slab.clear(count);
  for (int64_t first = slab.rows.begin; first < slab.rows.end; first += kTileRows) {
    const int64_t rows = slab.rows.end - first < kTileRows ? slab.rows.end - first : kTileRows;
    for (int64_t b = 0; b * kTileBlock<T> < count; ++b) {
      const Range block = chunk_of(b, kTileBlock<T>, count);
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = slab.cost + (first + r) * job.row_stride;
        for (int64_t k = block.begin; k < block.end; ++k) entries[r * kTileBlock<T> + k - block.begin] = row[list[k]];
      }
      column_block<T>(entries, kTileBlock<T>, slab.high + first, slab.weight + first, rows, block.end - block.begin,
                      slab.inverse, entries, slab.x, slab.peak + block.begin, slab.sum + block.begin);
    }
  }
}

template <class T> void merge_col_lse_masked(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  const Units<T> units(job.reg[item]);
  const bool* mask = job.mask + item * job.m;
  int64_t place = wanted(mask, 0, range.begin, nullptr);
  for (int64_t j = range.begin; j < range.end; ++j)
    job.col_out[item * job.m + j] = mask[j] ? merged_column(job, units, item, place++) : -INFINITY;
}
