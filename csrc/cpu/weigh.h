// Blocks of W_ij = M_ij sum_k left_ik right_jk, M the plan of the job's log-scalings, and sums along its rows and columns:
// gradients of losses through the plan are made of these.  One read of the cost and one exponential per entry.
// Included by kernels.cpp alone, inside its anonymous namespace.

// Rows at a time share what they load of the right factor, and one pass over the slab's column sums.
template <class T> class WeighSlab {
 public:
  WeighSlab(const Job& job, int64_t index)
      : job_(job), slab_(chunk_of(index % job.slabs, job.slab_rows, job.n)), item_(index / job.slabs),
        slope_(splat(T(-Units<T>(job.reg[item_]).inverse))), cost_(matrix<T>(job, item_)),
        u_high_(static_cast<const T*>(job.u_high) + item_ * job.height),
        u_low_(static_cast<const T*>(job.u_low) + item_ * job.height),
        v_high_(static_cast<const T*>(job.v_high) + item_ * job.width),
        v_low_(static_cast<const T*>(job.v_low) + item_ * job.width),
        left_(static_cast<const T*>(job.left) + item_ * job.n * job.rank),
        right_(static_cast<const T*>(job.right) + item_ * job.m * job.rank),
        out_(job.plan ? static_cast<T*>(job.plan) + item_ * job.plan_batch_stride : nullptr),
        scale_(splat(T(job.plan_scale ? job.plan_scale[item_] : 1.0))),
        accum_(static_cast<T*>(job.slab_sum) + index * job.width) {
    for (int64_t j = 0; j < job.width; ++j) accum_[j] = 0;
  }

  void run() const {
    int64_t i = slab_.begin;
    for (; i + kTileRows <= slab_.end; i += kTileRows) tile<kTileRows>(i);
    for (; i < slab_.end; ++i) tile<1>(i);
  }

 private:
  static constexpr int64_t L = kLanes<T>;

  template <int64_t Rows> void tile(int64_t first) const {
    double total[Rows] = {};
    const int64_t whole = job_.m / L * L;
    for (int64_t begin = 0; begin < job_.m; begin += kBlock<T>) {
      Vec<T> sum[Rows] = {};
      const int64_t end = begin + kBlock<T> < whole ? begin + kBlock<T> : whole;
      for (int64_t j = begin; j < end; j += L) step<Rows, false>(first, j, sum);
      if (whole < job_.m && begin + kBlock<T> >= job_.m) step<Rows, true>(first, whole, sum);
      for (int64_t r = 0; r < Rows; ++r) total[r] += double(sum_of<T>(sum[r]));
    }
    for (int64_t r = 0; r < Rows; ++r) job_.row_out[item_ * job_.n + first + r] = total[r];
  }

  // One register of columns, the last of them if `Last`.
  template <int64_t Rows, bool Last> void step(int64_t first, int64_t j, Vec<T>* sum) const {
    const int64_t left = job_.m - j;
    const auto fetch = [=](const T* from) { return Last ? load_some(from, left) : load(from); };
    Vec<T> weight[Rows] = {};
    for (int64_t k = 0; k < job_.rank; ++k) {
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
      if (!out_) continue;
      T* out = out_ + i * job_.plan_row_stride + j;
      if constexpr (Last) {
        T lanes[kLanes<T>];
        store(lanes, value * scale_);
        for (int64_t l = 0; l < left; ++l) out[l] = lanes[l];
      } else {
        store(out, value * scale_);
      }
    }
    store(accum_ + j, load(accum_ + j) + column);
  }

  const Job& job_;
  const Range slab_;
  const int64_t item_;
  const Vec<T> slope_;
  const T *cost_, *u_high_, *u_low_, *v_high_, *v_low_, *left_, *right_;
  T* const out_;
  const Vec<T> scale_;
  T* const accum_;
};

template <class T> void weigh_unit(const Job& job, int64_t index, int) { WeighSlab<T>(job, index).run(); }

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
