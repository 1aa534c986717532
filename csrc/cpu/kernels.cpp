// The kernels, compiled once per instruction set: UOT_LEVEL names the namespace, UOT_VECTOR_BYTES the register.
//
// Exponents are kept in base 2 and in units in which 1/eps is exactly a number of the cost's type:
//   x_ij = sigma (log v_j - C_ij / eps),  sigma = inverse * eps ~ log2(e),  inverse = (T)(log2(e) / eps),
// so no entry carries a systematic error, and 2^x differs from e^(x/sigma) by |x| 2^-25 only.  A log-scaling is
// stored as its rounding to T (high) and the rest (low), which enters as a factor w = 2^low near 1.
#include <cmath>

#include "job.h"

#ifndef UOT_LEVEL
#error "compile with -DUOT_LEVEL=baseline|avx2|avx512 -DUOT_VECTOR_BYTES=16|32|64"
#endif

namespace uot {
namespace {

#include "simd.h"

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

constexpr int kInterleaved = 4;                                                    // vectors in flight
constexpr int kPerLine = int(kAlignment / UOT_VECTOR_BYTES);  // vectors in a cache line

template <class T> constexpr int64_t kBlock = 4096 / int64_t(sizeof(T));      // columns, one row at a time
template <class T> constexpr int64_t kTileBlock = kBlock<T> / 4;               // columns, a tile of rows at a time

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

// ---- log-scalings to high and low parts, one chunk ----

template <class T> void split(const Job& job, int64_t index, const double* logs, int64_t length, int64_t padded,
                              void* highs, void* lows) {
  const int64_t chunks = (padded + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, padded);
  const Units<T> units(job.reg[item]);
  const double* log = logs + item * length;
  T* high = static_cast<T*>(highs) + item * padded;
  T* low = static_cast<T*>(lows) + item * padded;
  for (int64_t j = range.begin; j < range.end; ++j) {
    high[j] = j < length ? T(log[j] * units.sigma) : T(-INFINITY);
    // A point that takes no part has no rest.
    const double rest = high[j] > Simd<T>::kLowest ? ::fma(log[j], units.sigma, -double(high[j])) : 0.0;
    low[j] = T(job.weights ? exp2_of(rest) : rest);
  }
}

template <class T> void split_columns(const Job& job, int64_t index, int) {
  split<T>(job, index, job.log_v, job.m, job.width, job.v_high, job.v_low);
}

template <class T> void split_rows(const Job& job, int64_t index, int) {
  split<T>(job, index, job.log_u, job.n, job.height, job.u_high, job.u_low);
}

// ---- rows: log-sum-exp, and the sweep ----

// 2^(x - max x) of one row and one block of columns into `out`; the maximum, and the weighted sum.  The cost's next
// block is at `ahead`: it comes from memory while the exponentials keep the processor busy.
template <class T> inline void row_block(const T* cost, const T* high, const T* weight, int64_t columns, T inverse,
                                         const T* ahead, T* out, T* peak, T* sum) {
  constexpr int64_t L = kLanes<T>;
  constexpr int K = kInterleaved;
  const Vec<T> slope = splat(T(-inverse));
  const int64_t whole = columns / L * L;
  Vec<T> top0 = splat(Simd<T>::kLowest), top1 = top0;
  int64_t j = 0;
  for (; j + 2 * L <= whole; j += 2 * L) {
    const Vec<T> x0 = load(cost + j) * slope + load(high + j);
    const Vec<T> x1 = load(cost + j + L) * slope + load(high + j + L);
    store(out + j, x0);
    store(out + j + L, x1);
    top0 = larger<T>(x0, top0);
    top1 = larger<T>(x1, top1);
  }
  for (; j < columns; j += L) {
    const Vec<T> entries = j < whole ? load(cost + j) : load_some(cost + j, columns - j);
    const Vec<T> x = entries * slope + load(high + j);
    store(out + j, x);
    top0 = larger<T>(x, top0);
  }
  *peak = max_of<T>(larger<T>(top0, top1));

  const Vec<T> top = splat(*peak);
  Vec<T> total[K] = {};
  for (j = 0; j + K * L <= columns; j += K * L) {
    Vec<T> p[K];
    for (int v = 0; v < K; v += kPerLine) __builtin_prefetch(ahead + j + v * L);
    for (int v = 0; v < K; ++v) p[v] = load(out + j + v * L) - top;
    exp2_each<T, K>(p);
    for (int v = 0; v < K; ++v) {
      store(out + j + v * L, p[v]);
      total[v] += p[v] * load(weight + j + v * L);
    }
  }
  for (; j < columns; j += L) {
    const Vec<T> p = exp2_of<T>(load(out + j) - top);
    store(out + j, p);
    total[0] += p * load(weight + j);
  }
  for (int v = 1; v < K; ++v) total[0] += total[v];
  *sum = sum_of<T>(total[0]);
}

// accum += sum over the rows of a tile of scale * p, one block of columns.
template <class T, int64_t Rows> inline void add_rows(const T* p, int64_t stride, const T* scale, int64_t columns,
                                                      T* accum) {
  constexpr int64_t L = kLanes<T>;
  for (int64_t j = 0; j < columns; j += L) {
    Vec<T> total = load(p + j) * scale[0];
    for (int64_t r = 1; r < Rows; ++r) total += load(p + r * stride + j) * scale[r];
    store(accum + j, load(accum + j) + total);
  }
}

// A worker's tile: kTileRows rows of `width` entries (one cache line apart from a multiple of the page, or all rows
// would fall into the same cache sets), then per row and block the maximum, the sum, the scale.
template <class T> struct Tile {
  int64_t stride, blocks;
  T *p, *peak, *sum, *scale;
  Tile(const Job& job, int worker) : stride(job.width + int64_t(kAlignment / sizeof(T))), blocks(job.blocks) {
    p = reinterpret_cast<T*>(static_cast<char*>(job.tile) + size_t(worker) * job.tile_bytes);
    peak = p + kTileRows * stride;
    sum = peak + kTileRows * blocks;
    scale = sum + kTileRows * blocks;  // block-major: the rows of a block are neighbours
  }
};

template <class T, bool Columns> void rows_unit(const Job& job, int64_t index, int worker) {
  const int64_t item = index / job.slabs, m = job.m;
  const Range slab = chunk_of(index % job.slabs, job.slab_rows, job.n);
  const Units<T> units(job.reg[item]);
  const T* cost = matrix<T>(job, item);
  const T* high = static_cast<const T*>(job.v_high) + item * job.width;
  const T* weight = static_cast<const T*>(job.v_low) + item * job.width;
  const Tile<T> tile(job, worker);
  T* accum = nullptr;
  double unit = 0;  // the slab's sums are in units of 2^unit e^shift: raised when a term would overflow
  if constexpr (Columns) {
    accum = static_cast<T*>(job.slab_sum) + index * job.width;
    for (int64_t j = 0; j < job.width; ++j) accum[j] = 0;
  }
  double exponent[kTileRows];  // log2(u_i e^-shift) - the part that the blocks' maxima bring

  for (int64_t first = slab.begin; first < slab.end; first += kTileRows) {
    const int64_t rows = slab.end - first < kTileRows ? slab.end - first : kTileRows;
    double top_exponent = -INFINITY;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = cost + (first + r) * job.row_stride;
      T *peak = tile.peak + r * tile.blocks, *sum = tile.sum + r * tile.blocks;
      T top = Simd<T>::kLowest;
      for (int64_t b = 0; b < tile.blocks; ++b) {
        const Range block = chunk_of(b, kBlock<T>, m);
        const T* next = block.end < m ? row + block.end : row + job.row_stride;
        row_block<T>(row + block.begin, high + block.begin, weight + block.begin, block.end - block.begin,
                     units.inverse, next, tile.p + (Columns ? r * tile.stride + block.begin : 0), peak + b, sum + b);
        top = peak[b] > top ? peak[b] : top;
      }
      double total = 0;
      for (int64_t b = 0; b < tile.blocks; ++b) total += double(sum[b]) * exp2_of(double(peak[b]) - double(top));
      const double lse = units.log_sum(top, total);
      job.row_out[item * job.n + first + r] = lse;
      if constexpr (Columns) {
        const double log_u = lse == -INFINITY
            ? -INFINITY : job.offset[item * job.n + first + r] - job.damping[item] * lse;
        exponent[r] = (log_u - job.shift[item]) * kLog2E;
        const double reach = exponent[r] + double(top) * (kLog2E / units.sigma);
        top_exponent = reach > top_exponent ? reach : top_exponent;
      }
    }
    if constexpr (Columns) {
      if (top_exponent - unit > Simd<T>::kUnitLimit) {
        const T factor = T(exp2_of(unit - top_exponent));
        for (int64_t j = 0; j < job.width; ++j) accum[j] *= factor;
        unit = top_exponent;
      }
      for (int64_t b = 0; b < tile.blocks; ++b) {
        T* scale = tile.scale + b * kTileRows;
        bool any = false;
        for (int64_t r = 0; r < rows; ++r) {
          const double peak = double(tile.peak[r * tile.blocks + b]) * (kLog2E / units.sigma);
          scale[r] = T(exp2_of(exponent[r] + peak - unit));
          any = any || !(scale[r] == 0);
        }
        if (!any) continue;
        const Range block = chunk_of(b, kBlock<T>, m);
        const T* p = tile.p + block.begin;
        const int64_t columns = block.end - block.begin;
        if (rows == kTileRows) {
          add_rows<T, kTileRows>(p, tile.stride, scale, columns, accum + block.begin);
        } else {
          for (int64_t r = 0; r < rows; ++r)
            add_rows<T, 1>(p + r * tile.stride, tile.stride, scale + r, columns, accum + block.begin);
        }
      }
    }
  }
  if constexpr (Columns) job.slab_unit[index] = unit;
}

// col_mass += w * the slabs' sums, one chunk of columns.
template <class T> void merge_sweep(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  const T* weight = static_cast<const T*>(job.v_low) + item * job.width;
  double total[kChunk] = {};
  for (int64_t s = item * job.slabs; s < (item + 1) * job.slabs; ++s) {
    const T* sum = static_cast<const T*>(job.slab_sum) + s * job.width;
    const double unit = job.slab_unit[s] == 0 ? 1.0 : ::exp2(job.slab_unit[s]);
    for (int64_t j = range.begin; j < range.end; ++j) total[j - range.begin] += unit * double(sum[j]);
  }
  double* out = job.col_out + item * job.m;
  for (int64_t j = range.begin; j < range.end; ++j) out[j] += double(weight[j]) * total[j - range.begin];
}

// ---- columns: log-sum-exp with a running maximum ----

// One tile of rows against one block of columns: the running maxima rise to the tile's, the sums follow.
template <class T> inline void column_block(const T* cost, int64_t stride, const T* high, const T* weight,
                                            int64_t rows, int64_t columns, T inverse, const T* ahead, T* x, T* peak,
                                            T* sum) {
  constexpr int64_t L = kLanes<T>;
  constexpr int K = kInterleaved;
  const int64_t whole = columns / L * L;
  const Vec<T> slope = splat(T(-inverse));
  for (int64_t j = 0; j < columns; j += L) {
    const Vec<T> old = load(peak + j);
    Vec<T> top = old;
    for (int64_t r = 0; r < rows; ++r) {
      const T* entry = cost + r * stride + j;
      const Vec<T> value = (j < whole ? load(entry) : load_some(entry, columns - j)) * slope + high[r];
      store(x + r * kTileBlock<T> + j, value);
      top = larger<T>(value, top);
    }
    store(peak + j, top);
    store(sum + j, load(sum + j) * exp2_of<T>(old - top));
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T *ahead_row = ahead + r * stride, *x_row = x + r * kTileBlock<T>;
    int64_t j = 0;
    for (; j + K * L <= columns; j += K * L) {
      Vec<T> p[K];
      for (int v = 0; v < K; v += kPerLine) __builtin_prefetch(ahead_row + j + v * L);
      for (int v = 0; v < K; ++v) p[v] = load(x_row + j + v * L) - load(peak + j + v * L);
      exp2_each<T, K>(p);
      for (int v = 0; v < K; ++v) store(sum + j + v * L, load(sum + j + v * L) + p[v] * weight[r]);
    }
    for (; j < columns; j += L) {
      const Vec<T> p = exp2_of<T>(load(x_row + j) - load(peak + j));
      store(sum + j, load(sum + j) + p * weight[r]);
    }
  }
}

template <class T> void col_lse_unit(const Job& job, int64_t index, int worker) {
  const int64_t item = index / job.slabs;
  const Range slab = chunk_of(index % job.slabs, job.slab_rows, job.n);
  const Units<T> units(job.reg[item]);
  const T* cost = matrix<T>(job, item);
  const T* high = static_cast<const T*>(job.u_high) + item * job.height;
  const T* weight = static_cast<const T*>(job.u_low) + item * job.height;
  T* sum = static_cast<T*>(job.slab_sum) + index * job.width;
  T* peak = static_cast<T*>(job.slab_peak) + index * job.width;
  T* x = Tile<T>(job, worker).p;
  for (int64_t j = 0; j < job.width; ++j) {
    sum[j] = 0;
    peak[j] = Simd<T>::kLowest;
  }
  for (int64_t first = slab.begin; first < slab.end; first += kTileRows) {
    const int64_t rows = slab.end - first < kTileRows ? slab.end - first : kTileRows;
    for (int64_t b = 0; b * kTileBlock<T> < job.m; ++b) {
      const Range block = chunk_of(b, kTileBlock<T>, job.m);
      const T* entry = cost + first * job.row_stride + block.begin;
      const T* next = entry + (block.end < job.m ? kTileBlock<T> : kTileRows * job.row_stride - block.begin);
      column_block<T>(entry, job.row_stride, high + first, weight + first, rows, block.end - block.begin,
                      units.inverse, next, x, peak + block.begin, sum + block.begin);
    }
  }
}

template <class T> void merge_col_lse(const Job& job, int64_t index, int) {
  const int64_t chunks = (job.width + kChunk - 1) / kChunk, item = index / chunks;
  const Range range = chunk_of(index % chunks, kChunk, job.m);
  const Units<T> units(job.reg[item]);
  const T* sums = static_cast<const T*>(job.slab_sum) + item * job.slabs * job.width;
  const T* peaks = static_cast<const T*>(job.slab_peak) + item * job.slabs * job.width;
  for (int64_t j = range.begin; j < range.end; ++j) {
    double top = Simd<T>::kLowest, total = 0;
    for (int64_t s = 0; s < job.slabs; ++s) {
      const double peak = peaks[s * job.width + j];
      top = peak > top ? peak : top;
    }
    for (int64_t s = 0; s < job.slabs; ++s)
      total += double(sums[s * job.width + j]) * exp2_of(double(peaks[s * job.width + j]) - top);
    job.col_out[item * job.m + j] = units.log_sum(top, total);
  }
}

// ---- the plan ----

// The two high parts are added without error, so the large numbers cancel before anything is rounded.
template <class T> inline Vec<T> plan_entries(Vec<T> cost, Vec<T> slope, Vec<T> u_high, Vec<T> u_low, Vec<T> v_high,
                                              Vec<T> v_low) {
  const Vec<T> both = u_high + v_high;
  const Vec<T> v_part = both - u_high;
  Vec<T> rest = ((u_high - (both - v_part)) + (v_high - v_part)) + (u_low + v_low);
  rest = both < Simd<T>::kLowest ? Vec<T>{} : rest;  // -inf - -inf
  const Vec<T> x = (cost * slope + both) + rest;
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

// ---- minima of blocks of the cost ----

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

template <class T> constexpr Kernels kTable = {
    kLanes<T>, kBlock<T>, split_rows<T>, split_columns<T>, rows_unit<T, false>, rows_unit<T, true>, merge_sweep<T>,
    col_lse_unit<T>, merge_col_lse<T>, panel_unit<T>, block_min_unit<T>, exp2_array<T>, exp_array, log_array};

}  // namespace

namespace UOT_LEVEL {
const Kernels& kernels(bool is_double) { return is_double ? kTable<double> : kTable<float>; }
}  // namespace UOT_LEVEL

}  // namespace uot
