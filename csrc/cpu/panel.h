// Blocks of the plan.  Included by kernels.cpp alone, inside its anonymous namespace.

template <class T> inline Vec<T> plan_entries(Vec<T> cost, Vec<T> slope, Vec<T> u_high, Vec<T> u_low, Vec<T> v_high,
                                              Vec<T> v_low) {
  const Vec<T> x = plan_exponent<T>(cost, slope, u_high, u_low, v_high, v_low);
  return exp2_of<T>(x > Simd<T>::kCeiling ? splat(Simd<T>::kCeiling) : x);
}

template <class T> void panel_unit(const Job& job, int64_t index, int) {
  constexpr int64_t L = kLanes<T>;
  const int64_t item = index / job.slabs, m = job.m, whole = m / L * L;
  const Range slab = chunk_of(index % job.slabs, job.slab_rows, job.n);
  const Units<T> units(job.reg[item]);
  const Vec<T> slope = splat(T(-units.inverse));
  const T* u_high = static_cast<const T*>(job.u_high) + item * job.height;
  const T* u_low = static_cast<const T*>(job.u_low) + item * job.height;
  const T* v_high = static_cast<const T*>(job.v_high) + item * job.width;
  const T* v_low = static_cast<const T*>(job.v_low) + item * job.width;
  for (int64_t i = slab.begin; i < slab.end; ++i) {
    const T* row = matrix<T>(job, item) + i * job.row_stride;
    T* out = static_cast<T*>(job.plan) + (item * job.n + i) * m;
    const Vec<T> high = splat(u_high[i]), low = splat(u_low[i]);
    for (int64_t j = 0; j < whole; j += L)
      store(out + j, plan_entries<T>(load(row + j), slope, high, low, load(v_high + j), load(v_low + j)));
    if (whole < m) {
      T last[kLanes<T>];
      store(last, plan_entries<T>(load_some(row + whole, m - whole), slope, high, low, load(v_high + whole),
                                  load(v_low + whole)));
      for (int64_t j = whole; j < m; ++j) out[j] = last[j - whole];
    }
  }
}

