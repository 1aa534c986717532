// Blocks of W_ij = s M_ij sum_k left_ik right_jk, M the plan of the job's log-scalings; without factors, W = M.  Gradients
// of losses through the plan are made of W's sums along rows and columns (of W / s), of its entries, and of its products
// with another matrix.  One read of the cost and one exponential per entry; log-scalings as in adjoint.h
// but where one far point makes their grid coarse: then as in panel.h.
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
        right_(job.right ? static_cast<const T*>(job.right) + item * right_entries(job.m, job.rank) : nullptr),
        on_grid_(on_grid(job, item)), scale_(splat(T(job.plan_scale ? job.plan_scale[item] : 1.0))) {}

  // The product of the factors for rows and the panels of columns `begin` to `end`, where it is a matrix product: to a
  // tile.
  void weights(int64_t first, int64_t rows, int64_t begin, int64_t end, T* tile) const {
    for (int64_t j = begin; j < end; j += kPanelColumns)
      multiply<T, true>(left_ + first * job_.rank, job_.rank, 1, rows, job_.rank,
                        Strided<const T>{right_ + j * job_.rank, kPanelColumns},
                        Strided<T>{tile + j - begin, kBatchColumns}, kPanelColumns);
  }

  // Columns begin to end, begin a multiple of a register's, of `Rows` rows from `first`: to out + r stride + j if there
  // is an out, added to sum[r] and, if there is one, to accum[j].  `weights`, if there are any: of those rows and
  // columns, weights + r kBatchColumns + j, where out may be too.
  template <int64_t Rows>
  void run(int64_t first, int64_t begin, int64_t end, Vec<T>* sum, T* accum, T* out, int64_t stride,
           const T* weights) const {
    const int64_t whole = begin + (end - begin) / L * L;
    for (int64_t j = begin; j < whole; j += L) step<Rows, false>(first, j, end, sum, accum, out, stride, weights);
    if (whole < end) step<Rows, true>(first, whole, end, sum, accum, out, stride, weights);
  }

 private:
  static constexpr int64_t L = kLanes<T>;

  template <int64_t Rows, bool Last>
  void step(int64_t first, int64_t j, int64_t end, Vec<T>* sum, T* accum, T* out, int64_t stride,
            const T* weights) const {
    const int64_t left = end - j;
    const auto fetch = [=](const T* from) { return Last ? load_some(from, left) : load(from); };
    constexpr int64_t K = Rows < kInterleaved ? Rows : kInterleaved;
    const Vec<T> v_high = load(v_high_ + j), v_low = load(v_low_ + j);  // padded: nothing behind the last column
    const Vec<T> v_weight = on_grid_ ? v_low : splat(T(1));
    Vec<T> weight[Rows];
    if (weights) {
      for (int64_t r = 0; r < Rows; ++r) weight[r] = load(weights + r * kBatchColumns + j) * v_weight;
    } else {
      for (int64_t r = 0; r < Rows; ++r) weight[r] = right_ ? Vec<T>{} : v_weight;
      const T* panel = right_ ? right_ + j / kPanelColumns * kPanelColumns * job_.rank + j % kPanelColumns : nullptr;
      for (int64_t k = 0; panel && k < job_.rank; ++k) {
        const Vec<T> right = load(panel + k * kPanelColumns) * v_weight;
        for (int64_t r = 0; r < Rows; ++r) weight[r] += splat(left_[(first + r) * job_.rank + k]) * right;
      }
    }
    for (int64_t r = 0; r < Rows; r += K) {
      Vec<T> entry[K];
      for (int64_t k = 0; k < K; ++k) {
        const int64_t i = first + r + k;
        const Vec<T> cost = fetch(cost_ + i * job_.row_stride + j), u_high = splat(u_high_[i]);
        entry[k] = on_grid_ ? multiply_add<T>(cost, slope_, u_high + v_high)
                            : plan_exponent<T>(cost, slope_, u_high, splat(u_low_[i]), v_high, v_low);
      }
      exp2_any<T, int(K)>(entry);
      for (int64_t k = 0; k < K; ++k) weight[r + k] *= on_grid_ ? entry[k] * splat(u_low_[first + r + k]) : entry[k];
    }
    const bool add = job_.plan_added;
    Vec<T> column = {};
    for (int64_t r = 0; r < Rows; ++r) {
      const Vec<T> value = weight[r];
      sum[r] += value;
      column += value;
      if (!out) continue;
      T* to = out + r * stride + j;
      const Vec<T> scaled = add ? value * scale_ + fetch(to) : value * scale_;
      if constexpr (Last) store_some(to, scaled, left);
      else store(to, scaled);
    }
    if (accum) store(accum + j, load(accum + j) + column);
  }

  const Job& job_;
  const int64_t item_;
  const Vec<T> slope_;
  const T *cost_, *u_high_, *u_low_, *v_high_, *v_low_, *left_, *right_;
  const bool on_grid_;  // u_low and v_low are factors, else exponents
  const Vec<T> scale_;
};

// Entries of up to kBatchRows rows, kTileRows of them at a time: `some(rows, row)`, the first a constant.
template <class Some> void in_tiles(int64_t first, int64_t end, Some some) {
  for (; first + kTileRows <= end; first += kTileRows) some(std::integral_constant<int64_t, kTileRows>{}, first);
  for (; first < end; ++first) some(std::integral_constant<int64_t, 1>{}, first);
}

// The job's factor and product, from a row on.
template <class T> Strided<const T> factor_rows(const Job& job, int64_t item, int64_t row) {
  const T* data = static_cast<const T*>(job.factor);
  return {data + item * job.factor_batch_stride + row * job.factor_row_stride, job.factor_row_stride};
}

template <class T> Strided<T> product_rows(const Job& job, int64_t item, int64_t row) {
  T* data = static_cast<T*>(job.product);
  return {data + item * job.product_batch_stride + row * job.product_row_stride, job.product_row_stride};
}

// One slab of rows: sums and entries where they are wanted, and W times the factor if there is one.
template <class T> class WeighSlab {
 public:
  WeighSlab(const Job& job, int64_t index, int worker)
      : job_(job), slab_(chunk_of(index % job.slabs, job.slab_rows, job.n)), item_(index / job.slabs),
        weighed_(job, item_), tile_(job.tile ? tile_memory<T>(job, worker) : nullptr),
        accum_(job.col_out ? static_cast<T*>(job.slab_sum) + index * job.width : nullptr) {
    for (int64_t j = 0; accum_ && j < job.width; ++j) accum_[j] = 0;
  }

  void run() const {
    for (int64_t first = slab_.begin; first < slab_.end; first += kBatchRows)
      rows(first, first + kBatchRows < slab_.end ? first + kBatchRows : slab_.end);
  }

 private:
  void rows(int64_t first, int64_t end) const {
    double total[kBatchRows] = {};
    T* plan = job_.plan ? static_cast<T*>(job_.plan) + item_ * job_.plan_batch_stride : nullptr;
    if (plan && !job_.plan_added && job_.plan_row_stride >= job_.m)
      populate(plan + first * job_.plan_row_stride,
               size_t((end - first - 1) * job_.plan_row_stride + job_.m) * sizeof(T));
    const int64_t wide = tile_ ? kBatchColumns : kBlock<T>;
    for (int64_t begin = 0; begin < job_.m; begin += wide) {
      const int64_t stop = begin + wide < job_.m ? begin + wide : job_.m;
      const bool weights = product_of_factors(job_);
      if (weights) weighed_.weights(first, end - first, begin, stop, tile_);
      in_tiles(first, end, [&](auto together, int64_t i) {
        constexpr int64_t Rows = decltype(together)::value;
        Vec<T> sum[Rows] = {};
        T* tile = tile_ ? tile_ + (i - first) * kBatchColumns - begin : nullptr;
        T* out = job_.factor ? tile : plan ? plan + i * job_.plan_row_stride : nullptr;
        weighed_.template run<Rows>(i, begin, stop, sum, accum_, out,
                                    job_.factor ? kBatchColumns : job_.plan_row_stride, weights ? tile : nullptr);
        for (int64_t r = 0; job_.row_out && r < Rows; ++r) total[i - first + r] += double(sum_of<T>(sum[r]));
      });
      if (!job_.factor) continue;
      const auto factor = factor_rows<T>(job_, item_, begin);
      multiply<T>(tile_, kBatchColumns, 1, end - first, stop - begin, factor, product_rows<T>(job_, item_, first),
                  job_.factor_columns);
    }
    if (!job_.row_out) return;
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
  const Range stripe = chunk_of(index % stripes, kBatchColumns, job.m);
  const Weighed<T> weighed(job, item);
  const bool weights = product_of_factors(job);
  T* tile = tile_memory<T>(job, worker);
  for (int64_t first = 0; first < job.n; first += kBatchRows) {
    const int64_t end = first + kBatchRows < job.n ? first + kBatchRows : job.n;
    if (weights) weighed.weights(first, end - first, stripe.begin, stripe.end, tile);
    in_tiles(first, end, [&](auto together, int64_t i) {
      constexpr int64_t Rows = decltype(together)::value;
      Vec<T> ignored[Rows] = {};
      T* out = tile + (i - first) * kBatchColumns - stripe.begin;
      weighed.template run<Rows>(i, stripe.begin, stripe.end, ignored, nullptr, out, kBatchColumns,
                                 weights ? out : nullptr);
    });
    multiply<T>(tile, 1, kBatchColumns, stripe.end - stripe.begin, end - first, factor_rows<T>(job, item, first),
                product_rows<T>(job, item, stripe.begin), job.factor_columns);
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
