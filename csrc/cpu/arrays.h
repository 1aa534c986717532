// Minima of blocks of the cost, and functions of arrays.  Included by kernels.cpp alone, inside its anonymous
// namespace.

// NaN in a block makes its minimum NaN, which no comparison lets pass as large.
template <class T> void block_min_unit(const Job& job, int64_t index, int) {
  constexpr int64_t L = kLanes<T>;
  const int64_t item = index / job.slabs, m = job.m, blocks = block_columns(m);
  const Range slab = chunk_of(index % job.slabs, job.slab_rows, job.n);
  const T* cost = matrix<T>(job, item);
  T* table = static_cast<T*>(job.block_min_out) + job.item(item) * block_min_entries(job.n, m);
  for (int64_t first = slab.begin; first < slab.end; first += kTileRows) {
    const int64_t rows = slab.end - first < kTileRows ? slab.end - first : kTileRows;
    for (int64_t b = 0; b < blocks; ++b) {
      const Range block = chunk_of(b, kSkipColumns, m);
      const int64_t whole = block.begin + (block.end - block.begin) / L * L;
      Vec<T> least = splat(T(INFINITY)), doubt = {};  // doubt: NaN where an entry is
      T rest = T(INFINITY);
      for (int64_t r = 0; r < rows; ++r) {
        const T* row = cost + (first + r) * job.row_stride;
        for (int64_t j = block.begin; j < whole; j += L) {
          const Vec<T> entries = load(row + j);
          least = entries < least ? entries : least;
          doubt = entries == entries ? doubt : entries;
        }
        for (int64_t j = whole; j < block.end; ++j) rest = row[j] >= rest || rest != rest ? rest : row[j];
      }
      T* out = table + first / kTileRows * blocks + b;
      const T lanes = -max_of<T>(-least), sum = sum_of<T>(doubt);
      *out = sum != sum ? sum : lanes >= rest || rest != rest ? rest : lanes;
    }
  }
}

// ---- functions of arrays ----

template <class T, class Function> void each(const T* in, T* out, int64_t count, Function function) {
  constexpr int64_t L = kLanes<T>;
  const int64_t whole = count / L * L;
  for (int64_t j = 0; j < whole; j += L) store(out + j, function(load(in + j)));
  if (whole == count) return;
  T last[kLanes<T>];
  store(last, function(load_some(in + whole, count - whole)));
  for (int64_t j = whole; j < count; ++j) out[j] = last[j - whole];
}

void exp_array(const double* in, double* out, int64_t count) {
  each<double>(in, out, count, [](Reals x) { return exp_of(x); });
}

void log_array(const double* in, double* out, int64_t count) {
  each<double>(in, out, count, [](Reals x) { return log_of(x); });
}

template <class T> void exp2_array(const void* in, void* out, int64_t count) {
  each<T>(static_cast<const T*>(in), static_cast<T*>(out), count, [](Vec<T> x) { return exp2_of<T>(x); });
}
