// Minima of blocks of the cost, and functions of arrays.  Included by kernels.cpp alone, inside its anonymous namespace.

// NaN in a block makes its minimum NaN, which no comparison lets pass as large.
template <class T> void block_min_unit(const Job& job, int64_t index, int) {
  const int64_t item = index / job.slabs, m = job.m, blocks = block_columns(m);
  const Range slab = chunk_of(index % job.slabs, job.slab_rows, job.n);
  const T* cost = matrix<T>(job, item);
  T* table = static_cast<T*>(job.block_min_out) + job.item(item) * block_min_entries(job.n, m);
  for (int64_t first = slab.begin; first < slab.end; first += kTileRows) {
    const int64_t rows = slab.end - first < kTileRows ? slab.end - first : kTileRows;
    for (int64_t b = 0; b < blocks; ++b) {
      const Range block = chunk_of(b, kSkipColumns, m);
      T least = T(INFINITY);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = block.begin; j < block.end; ++j) {
          const T entry = cost[(first + r) * job.row_stride + j];
          least = entry >= least || least != least ? least : entry;
        }
      table[first / kTileRows * blocks + b] = least;
    }
  }
}

// ---- functions of arrays ----

void exp_array(const double* in, double* out, int64_t count) {
  for (int64_t j = 0; j < count; ++j) out[j] = ::exp(in[j]);
}

void log_array(const double* in, double* out, int64_t count) {
  for (int64_t j = 0; j < count; ++j) out[j] = ::log(in[j]);
}

template <class T> void exp2_array(const void* in, void* out, int64_t count) {
  const T* from = static_cast<const T*>(in);
  for (int64_t j = 0; j < count; j += kLanes<T>) {
    const int64_t some = count - j < kLanes<T> ? count - j : kLanes<T>;
    T result[kLanes<T>];
    store(result, exp2_of<T>(load_some(from + j, some)));
    for (int64_t l = 0; l < some; ++l) static_cast<T*>(out)[j + l] = result[l];
  }
}

