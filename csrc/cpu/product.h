// Matrix products, in tiles that registers and the nearest cache hold.  Included by kernels.cpp alone, inside its
// anonymous namespace.

constexpr int64_t kDepth = 64;
constexpr int64_t kFarBytes = 2048;  // rows this far apart fall into the same few lines of the nearest cache
constexpr int64_t kTogether = UOT_VECTOR_BYTES >= 64 ? 8 : 4;  // rows of a product in registers, two of each

// A matrix by the address of its first entry and the entries from one row to the next.
template <class T> struct Strided {
  T* data;
  int64_t stride;
};

// C += A B (C = A B if `Fresh`) for `Rows` rows of C, `Registers` registers wide, of which the last is written to
// `width` entries only; A by the strides of its rows and of its columns.
template <class T, int64_t Rows, int64_t Registers, bool Partial, bool Fresh>
inline void multiply_some(const T* a, int64_t row_stride, int64_t column_stride, int64_t depth, Strided<const T> b,
                          Strided<T> c, int64_t width) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> total[Rows][Registers] = {};  // added to C at the end: errors grow with the pieces, not with their terms
  for (int64_t j = 0; j < depth; ++j) {
    Vec<T> row[Registers];
    for (int64_t v = 0; v < Registers; ++v) row[v] = load(b.data + j * b.stride + v * L);
    for (int64_t r = 0; r < Rows; ++r) {
      const Vec<T> factor = splat(a[r * row_stride + j * column_stride]);
      for (int64_t v = 0; v < Registers; ++v) total[r][v] += factor * row[v];
    }
  }
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t v = 0; v < Registers; ++v) {
      T* to = c.data + r * c.stride + v * L;
      if constexpr (Partial) store_some(to, Fresh ? total[r][v] : load_some(to, width) + total[r][v], width);
      else store(to, Fresh ? total[r][v] : load(to) + total[r][v]);
    }
}

// C += A B (C = A B if `Fresh`, for an A of at least one column) for any number of rows and columns.
template <class T, bool Fresh = false>
void multiply(const T* a, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t all, Strided<const T> b,
              Strided<T> c, int64_t columns) {
  constexpr int64_t L = kLanes<T>;
  const int64_t whole = columns / L * L;
  const bool far = b.stride * int64_t(sizeof(T)) >= kFarBytes && rows >= 2 * kTogether;  // then a copy of B pays
  for (int64_t done = 0; done < all; done += kDepth) {  // as much of B as a core's nearest memory holds
    const int64_t depth = all - done < kDepth ? all - done : kDepth;
    const Strided<const T> piece{b.data + done * b.stride, b.stride};
    alignas(kAlignment) T last[kDepth * L];  // the columns behind the last whole register
    for (int64_t j = 0; whole < columns && j < depth; ++j)
      store(last + j * L, load_some(piece.data + j * piece.stride + whole, columns - whole));
    const auto all_rows = [&](auto registers, auto partial, Strided<const T> from_b, int64_t k) {
      constexpr int64_t Registers = decltype(registers)::value;
      constexpr bool Partial = decltype(partial)::value;
      int64_t r = 0;
      const auto some = [&](auto together) {
        constexpr int64_t Rows = decltype(together)::value;
        const T* from_a = a + r * row_stride + done * column_stride;
        const Strided<T> to{c.data + r * c.stride + k, c.stride};
        if (Fresh && done == 0)
          multiply_some<T, Rows, Registers, Partial, Fresh>(from_a, row_stride, column_stride, depth, from_b, to,
                                                            columns - whole);
        else
          multiply_some<T, Rows, Registers, Partial, false>(from_a, row_stride, column_stride, depth, from_b, to,
                                                            columns - whole);
      };
      for (; r + kTogether <= rows; r += kTogether) some(std::integral_constant<int64_t, kTogether>{});
      for (; r < rows; ++r) some(std::integral_constant<int64_t, 1>{});
    };
    constexpr std::integral_constant<int64_t, 1> one{};
    constexpr std::integral_constant<int64_t, 2> two{};
    constexpr std::false_type complete{};
    alignas(kAlignment) T near[kDepth * 2 * L];
    int64_t k = 0;
    for (; k + 2 * L <= whole; k += 2 * L) {
      Strided<const T> from_b{piece.data + k, piece.stride};
      if (far) {
        for (int64_t j = 0; j < depth; ++j)
          for (int64_t v = 0; v < 2 * L; v += L) store(near + j * 2 * L + v, load(from_b.data + j * from_b.stride + v));
        from_b = {near, 2 * L};
      }
      all_rows(two, complete, from_b, k);
    }
    if (k < whole) all_rows(one, complete, Strided<const T>{piece.data + k, piece.stride}, k);
    if (whole < columns) all_rows(one, std::true_type{}, Strided<const T>{last, L}, whole);
  }
}

// job.plan = left right; kBatchRows x kBatchColumns entries of one problem.
template <class T> void product_unit(const Job& job, int64_t index, int) {
  const int64_t stripes = (job.m + kBatchColumns - 1) / kBatchColumns, tiles = (job.n + kBatchRows - 1) / kBatchRows;
  const int64_t item = index / (stripes * tiles);
  const Range columns = chunk_of(index % stripes, kBatchColumns, job.m);
  const Range rows = chunk_of(index / stripes % tiles, kBatchRows, job.n);
  const T* left = static_cast<const T*>(job.left) + (item * job.n + rows.begin) * job.rank;
  const T* right = static_cast<const T*>(job.right) + item * right_entries(job.m, job.rank);
  T* out = static_cast<T*>(job.plan) + item * job.plan_batch_stride + rows.begin * job.plan_row_stride;
  for (int64_t i = 0; job.rank == 0 && i < rows.end - rows.begin; ++i)
    for (int64_t j = columns.begin; j < columns.end; ++j) out[i * job.plan_row_stride + j] = 0;
  for (int64_t j = columns.begin; j < columns.end; j += kPanelColumns)
    multiply<T, true>(left, job.rank, 1, rows.end - rows.begin, job.rank,
                      Strided<const T>{right + j * job.rank, kPanelColumns}, Strided<T>{out + j, job.plan_row_stride},
                      columns.end - j < kPanelColumns ? columns.end - j : kPanelColumns);
}
