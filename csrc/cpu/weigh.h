// Blocks of W_ij = s M_ij sum_k left_ik right_jk, M the plan of the job's log-scalings; without factors, W = M.  Gradients
// of losses through the plan are made of W's sums along rows and columns (of W / s), of its entries, and of its products
// with another matrix.  One read of the cost and one exponential per entry.
// Included by kernels.cpp alone, inside its anonymous namespace.

// Entries of W, a register of columns of some rows at a time, which share what they load of the right factor.
template <class T> class Weighed {
 public:
  Weighed(const Job& job, int64_t item)
      : job_(job), item_(item), slope_(splat(T(-Units<T>(job.reg[item]).inverse))), cost_(matrix<T>(job, item)),
        u_high_(static_cast<const T*>(job.u_high) + item * job.height),
        u_low_(static_cast<const T*>(job.u_low) + item * job.height),
        v_high_(static_cast<const T*>(job.v_high) + item * job.width),
        v_low_(static_cast<const T*>(job.v_low) + item * job.width),
        left_(job.left ? static_cast<const T*>(job.left) + item * job.n * job.rank : nullptr),
        right_(job.right ? static_cast<const T*>(job.right) + item * job.m * job.rank : nullptr),
        scale_(splat(T(job.plan_scale ? job.plan_scale[item] : 1.0))) {}

  // Columns begin to end, begin a multiple of a register's, of `Rows` rows from `first`: to out + r stride + j if there is
  // an out, added to sum[r] and, if there is one, to accum[j].
  template <int64_t Rows>
  void run(int64_t first, int64_t begin, int64_t end, Vec<T>* sum, T* accum, T* out, int64_t stride) const {
    const int64_t whole = begin + (end - begin) / L * L;
    for (int64_t j = begin; j < whole; j += L) step<Rows, false>(first, j, end, sum, accum, out, stride);
    if (whole < end) step<Rows, true>(first, whole, end, sum, accum, out, stride);
  }

 private:
  static constexpr int64_t L = kLanes<T>;

  template <int64_t Rows, bool Last>
  void step(int64_t first, int64_t j, int64_t end, Vec<T>* sum, T* accum, T* out, int64_t stride) const {
    const int64_t left = end - j;
    const auto fetch = [=](const T* from) { return Last ? load_some(from, left) : load(from); };
    Vec<T> weight[Rows];
    for (int64_t r = 0; r < Rows; ++r) weight[r] = splat(T(right_ ? 0 : 1));
    for (int64_t k = 0; right_ && k < job_.rank; ++k) {
      const Vec<T> right = fetch(right_ + k * job_.m + j);
      for (int64_t r = 0; r < Rows; ++r) weight[r] += splat(left_[(first + r) * job_.rank + k]) * right;
    }
    const Vec<T> v_high = load(v_high_ + j), v_low = load(v_low_ + j);  // padded: nothing behind the last column
    Vec<T> column = {};
    for (int64_t r = 0; r < Rows; ++r) {
      const int64_t i = first + r;
      const Vec<T> entry = plan_entries<T>(fetch(cost_ + i * job_.row_stride + j), slope_, splat(u_high_[i]),
                                           splat(u_low_[i]), v_high, v_low);
      const Vec<T> value = entry * weight[r];
      sum[r] += value;
      column += value;
      if (!out) continue;
      T* to = out + r * stride + j;
      if constexpr (Last) {
        T lanes[kLanes<T>];
        store(lanes, value * scale_);
        for (int64_t l = 0; l < left; ++l) to[l] = lanes[l];
      } else {
        store(to, value * scale_);
      }
    }
    if (accum) store(accum + j, load(accum + j) + column);
  }

  const Job& job_;
  const int64_t item_;
  const Vec<T> slope_;
  const T *cost_, *u_high_, *u_low_, *v_high_, *v_low_, *left_, *right_;
  const Vec<T> scale_;
};

// ---- products of W with a matrix whose rows are whole registers ----

constexpr int64_t kDepth = 64;
constexpr int64_t kTogether = UOT_VECTOR_BYTES >= 64 ? 8 : 4;  // rows of a result in registers, two of each

// C += A B for `Rows` rows of C, `Registers` registers wide, A given by the strides of its rows and of its columns.
template <class T, int64_t Rows, int64_t Registers>
inline void multiply_some(const T* a, int64_t row_stride, int64_t column_stride, int64_t depth, const T* b, T* c,
                          int64_t columns) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> total[Rows][Registers];
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t v = 0; v < Registers; ++v) total[r][v] = load(c + r * columns + v * L);
  for (int64_t j = 0; j < depth; ++j) {
    Vec<T> row[Registers];
    for (int64_t v = 0; v < Registers; ++v) row[v] = load(b + j * columns + v * L);
    for (int64_t r = 0; r < Rows; ++r) {
      const Vec<T> factor = splat(a[r * row_stride + j * column_stride]);
      for (int64_t v = 0; v < Registers; ++v) total[r][v] += factor * row[v];
    }
  }
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t v = 0; v < Registers; ++v) store(c + r * columns + v * L, total[r][v]);
}

// C += A B for any number of rows, and any number of registers in a row of B and C.
template <class T>
void multiply(const T* a, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t depth, const T* b, T* c,
              int64_t columns) {
  constexpr int64_t L = kLanes<T>;
  int64_t r = 0;
  const auto some = [&](auto together) {
    constexpr int64_t Rows = decltype(together)::value;
    const T* from = a + r * row_stride;
    T* to = c + r * columns;
    int64_t k = 0;
    for (; k + 2 * L <= columns; k += 2 * L)
      multiply_some<T, Rows, 2>(from, row_stride, column_stride, depth, b + k, to + k, columns);
    for (; k < columns; k += L)
      multiply_some<T, Rows, 1>(from, row_stride, column_stride, depth, b + k, to + k, columns);
  };
  for (; r + kTogether <= rows; r += kTogether) some(std::integral_constant<int64_t, kTogether>{});
  for (; r < rows; ++r) some(std::integral_constant<int64_t, 1>{});
}

// Entries of up to kBatchRows rows, kTileRows of them at a time: `some(rows, row)`, the first a constant.
template <class Some> void in_tiles(int64_t first, int64_t end, Some some) {
  for (; first + kTileRows <= end; first += kTileRows) some(std::integral_constant<int64_t, kTileRows>{}, first);
  for (; first < end; ++first) some(std::integral_constant<int64_t, 1>{}, first);
}

// One slab of rows: sums, entries if they are wanted, and W times the factor if there is one.
template <class T> class WeighSlab {
 public:
  WeighSlab(const Job& job, int64_t index, int worker)
      : job_(job), slab_(chunk_of(index % job.slabs, job.slab_rows, job.n)), item_(index / job.slabs),
        weighed_(job, item_), tile_(job.factor ? tile_memory<T>(job, worker) : nullptr),
        accum_(static_cast<T*>(job.slab_sum) + index * job.width) {
    for (int64_t j = 0; j < job.width; ++j) accum_[j] = 0;
  }

  void run() const {
    for (int64_t first = slab_.begin; first < slab_.end; first += kBatchRows)
      rows(first, first + kBatchRows < slab_.end ? first + kBatchRows : slab_.end);
  }

 private:
  void rows(int64_t first, int64_t end) const {
    double total[kBatchRows] = {};
    T* plan = job_.plan ? static_cast<T*>(job_.plan) + item_ * job_.plan_batch_stride : nullptr;
    const int64_t wide = tile_ ? kBatchColumns : kBlock<T>;
    for (int64_t begin = 0; begin < job_.m; begin += wide) {
      const int64_t stop = begin + wide < job_.m ? begin + wide : job_.m;
      in_tiles(first, end, [&](auto together, int64_t i) {
        constexpr int64_t Rows = decltype(together)::value;
        Vec<T> sum[Rows] = {};
        T* out = tile_ ? tile_ + (i - first) * kBatchColumns - begin : plan ? plan + i * job_.plan_row_stride : nullptr;
        weighed_.template run<Rows>(i, begin, stop, sum, accum_, out, tile_ ? kBatchColumns : job_.plan_row_stride);
        for (int64_t r = 0; r < Rows; ++r) total[i - first + r] += double(sum_of<T>(sum[r]));
      });
      if (!tile_) continue;
      // In pieces of the factor that a core's nearest memory holds for all of these rows.
      const int64_t columns = job_.factor_columns;
      const T* factor = static_cast<const T*>(job_.factor) + (item_ * job_.m + begin) * columns;
      T* product = static_cast<T*>(job_.product) + (item_ * job_.n + first) * columns;
      for (int64_t j = 0; j < stop - begin; j += kDepth)
        multiply<T>(tile_ + j, kBatchColumns, 1, end - first, j + kDepth < stop - begin ? kDepth : stop - begin - j,
                    factor + j * columns, product, columns);
    }
    for (int64_t i = first; i < end; ++i) job_.row_out[item_ * job_.n + i] = total[i - first];
  }

  const Job& job_;
  const Range slab_;
  const int64_t item_;
  const Weighed<T> weighed_;
  T *const tile_, *const accum_;
};

template <class T> void weigh_unit(const Job& job, int64_t index, int worker) { WeighSlab<T>(job, index, worker).run(); }

// W' times the factor, for one stripe of columns: every result belongs to one thread.
template <class T> void weigh_columns_unit(const Job& job, int64_t index, int worker) {
  const int64_t stripes = (job.m + kBatchColumns - 1) / kBatchColumns, item = index / stripes;
  const int64_t columns = job.factor_columns;
  const Range stripe = chunk_of(index % stripes, kBatchColumns, job.m);
  const Weighed<T> weighed(job, item);
  T* tile = tile_memory<T>(job, worker);
  const T* factor = static_cast<const T*>(job.factor) + item * job.n * columns;
  T* product = static_cast<T*>(job.product) + (item * job.m + stripe.begin) * columns;
  for (int64_t first = 0; first < job.n; first += kBatchRows) {
    const int64_t end = first + kBatchRows < job.n ? first + kBatchRows : job.n;
    in_tiles(first, end, [&](auto together, int64_t i) {
      constexpr int64_t Rows = decltype(together)::value;
      Vec<T> ignored[Rows] = {};
      weighed.template run<Rows>(i, stripe.begin, stripe.end, ignored, nullptr,
                                 tile + (i - first) * kBatchColumns - stripe.begin, kBatchColumns);
    });
    multiply<T>(tile, 1, kBatchColumns, stripe.end - stripe.begin, end - first, factor + first * columns, product,
                columns);
  }
}

// col_out += the slabs' sums, in their order.
template <class T> void merge_weigh(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  double total[kChunk] = {};
  for (int64_t s = item * job.slabs; s < (item + 1) * job.slabs; ++s) {
    const T* sum = static_cast<const T*>(job.slab_sum) + s * job.width;
    for (int64_t j = range.begin; j < range.end; ++j) total[j - range.begin] += double(sum[j]);
  }
  for (int64_t j = range.begin; j < range.end; ++j) job.col_out[item * job.m + j] += total[j - range.begin];
}
