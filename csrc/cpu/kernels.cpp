// The kernels, compiled once per instruction set.
//
// Exponents are kept in base 2 and in units in which 1/eps is exactly a number of the cost's type:
//   x_ij = sigma (log v_j - C_ij / eps),  sigma = inverse * eps ~ log2(e),  inverse = (T)(log2(e) / eps),
// so no entry carries a systematic error, and 2^x differs from e^(x/sigma) by |x| 2^-25 only.  A log-scaling is
// stored as its rounding to T (high) and the rest (low), which enters as a factor w = 2^low near 1.
#include "level.h"
#include "scratch.h"

namespace uot {
namespace {

#include "simd.h"
#include "functions.h"

constexpr int kInterleaved = 4;                               // vectors in flight
constexpr int kPerLine = int(kAlignment / UOT_VECTOR_BYTES);  // vectors in a cache line

template <class T> constexpr int64_t kBlock = 4096 / int64_t(sizeof(T));  // columns, summed along a row in the type T
template <class T> constexpr int64_t kTileBlock = kBlock<T> / 4;          // columns, a tile of rows at a time

template <class T> struct Units {
  T inverse;
  double sigma;
  explicit Units(double reg) : inverse(T(kLog2E / reg)), sigma(double(inverse) * reg) {}
  // A log-sum-exp from its maximum in units of x and the sum of 2^(x - maximum).
  double log_sum(double peak, double sum) const { return sum > 0 ? peak / sigma + ::log(sum) : sum - INFINITY; }
};

template <class T> const T* matrix(const Job& job, int64_t index) {
  return static_cast<const T*>(job.cost) + job.item(index) * job.batch_stride;
}

struct Range {
  int64_t begin, end;
};

Range chunk_of(int64_t chunk, int64_t size, int64_t length) {
  const int64_t begin = chunk * size;
  return {begin, begin + size < length ? begin + size : length};
}

// As many numbers of type T as there are doubles in a register.
template <class T> using Halves = typename Register<T, int(sizeof(T)) * UOT_VECTOR_BYTES / 8>::type;

#include "arrays.h"
#include "skip.h"

// ---- log-scalings to high and low parts, one chunk ----

// Where one far point makes a problem's grid coarser than this, parts below it are exponents, as without a grid: they
// would leave the range of factors.
constexpr double kCoarsest = 1;

bool on_grid(const Job& job, int64_t item) { return job.grid && job.grid[item] <= kCoarsest; }

template <class T> void split(const Job& job, int64_t index, const double* logs, int64_t length, int64_t padded,
                              void* highs, void* lows) {
  const int64_t chunks = (padded + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, padded);
  const Units<T> units(job.reg[item]);
  const double* log = logs + item * length;
  T* high = static_cast<T*>(highs) + item * padded;
  T* low = static_cast<T*>(lows) + item * padded;
  const bool gridded = job.grid && (!job.coarse_exponents || on_grid(job, item));
  const bool factors = job.weights && (!job.coarse_exponents || gridded);
  const double grid = gridded ? job.grid[item] : 0, per_unit = gridded ? 1 / grid : 0;
  for (int64_t j = range.begin; j < range.end; j += kLanes<double>) {
    const Reals logs_here = j + kLanes<double> <= length ? load(log + j) : load_some(log + j, length - j, -kInfinity);
    Reals whole = logs_here * units.sigma;
    if (gridded) whole = ((whole * per_unit + Simd<double>::kMagic) - Simd<double>::kMagic) * grid;
    const Halves<T> top = __builtin_convertvector(whole, Halves<T>);
    const Reals back = __builtin_convertvector(top, Reals);
    // A point that takes no part has no rest.
    const Reals rest = back > double(Simd<T>::kLowest) ? logs_here * units.sigma - back : Reals{};
    const Halves<T> bottom = __builtin_convertvector(factors ? exp2_of<double>(rest) : rest, Halves<T>);
    __builtin_memcpy(high + j, &top, sizeof(top));
    __builtin_memcpy(low + j, &bottom, sizeof(bottom));
  }
}

template <class T> void split_columns(const Job& job, int64_t index, int) {
  split<T>(job, index, job.log_v, job.m, job.width, job.v_high, job.v_low);
  if (!job.bound_high) return;
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, chunk = index % chunks, blocks = kChunk / kSkipColumns;
  bound_columns<T>(job, index / chunks, chunk * blocks, chunk + 1 < chunks ? (chunk + 1) * blocks : job.block_width);
}

template <class T> void split_rows(const Job& job, int64_t index, int) {
  split<T>(job, index, job.log_u, job.n, job.height, job.u_high, job.u_low);
}

#include "exponents.h"
#include "rows.h"
#include "columns.h"
#include "panel.h"
#include "adjoint.h"
#include "product.h"
#include "weigh.h"

template <class T> constexpr Kernels kTable = {
    kBlock<T>, split_rows<T>, split_columns<T>, rows_unit<T, false>, rows_unit<T, true>, merge_sweep<T>,
    col_lse_unit<T>, merge_col_lse<T>, col_lse_masked_unit<T>, merge_col_lse_masked<T>, panel_unit<T>,
    block_min_unit<T>, grid_unit<T>, split_both<T>, load_operand<T>, adjoint_unit<T, false>, merge_adjoint<T, 1>,
    adjoint_unit<T, true>, merge_adjoint<T, 3>, weigh_unit<T>, merge_weigh<T>, weigh_columns_unit<T>, product_unit<T>,
    exp2_array<T>, exp_array, log_array};

}  // namespace

namespace UOT_LEVEL {
const Kernels& kernels(bool is_double) { return is_double ? kTable<double> : kTable<float>; }
}  // namespace UOT_LEVEL

}  // namespace uot
