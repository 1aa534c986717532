// What a kernel needs to know of one call: the caller's arrays, the cut into slabs, the scratch memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "constants.h"

namespace uot {

// Rows are summed in the cost's type inside a slab and in double over slabs.  The cut depends on the shape alone,
// so results do not depend on the number of threads.
constexpr int64_t kSlabRows = 64;
constexpr int64_t kMaxSlabs = 64;
constexpr int64_t kLongRow = 1024;    // columns from which on slabs may have kSlabRows / 4 rows
constexpr int64_t kTileRows = 8;      // rows that share one pass over a slab's column sums, or are skipped
constexpr int64_t kSkipColumns = 64;  // columns of a block that is skipped
constexpr int64_t kChunk = 2048;      // entries of a vector that are one unit of work
constexpr int64_t kBatchRows = 32;      // rows and columns of W that are made before they are multiplied; a stripe of
constexpr int64_t kBatchColumns = 512;  // so many columns is one thread's in kWeighColumns
constexpr int64_t kPanelColumns = 32;   // of a panel of the right factor: whole registers
constexpr int64_t kFewFactors = 4;      // rank up to which W's factors are multiplied entry by entry
constexpr size_t kAlignment = 64;

// Blocks of the cost that a sweep may skip, kTileRows x kSkipColumns, counted from its first row and column.
constexpr int64_t block_rows(int64_t n) { return (n + kTileRows - 1) / kTileRows; }
constexpr int64_t block_columns(int64_t m) { return (m + kSkipColumns - 1) / kSkipColumns; }
// Entries of a table of block minima, per entry of the cost's batch: block_rows(n) x block_columns(m), row-major.
constexpr int64_t block_min_entries(int64_t n, int64_t m) { return block_rows(n) * block_columns(m); }

struct Job {
  // The cost: strides in entries, unit stride along columns.
  const void* cost;
  int64_t batch_stride, row_stride;
  const int64_t* items;  // null: the whole batch
  int64_t count, n, m;   // count: problems worked on

  // Vectors over the problems worked on, contiguous; null where the operation has none.
  const double *reg, *log_u, *log_v, *offset, *damping, *shift;
  double *row_out, *col_out;
  void* plan;

  // What a sweep is told beforehand.  Right or wrong, it changes the time and not the result.
  const double* row_hint;  // (count, n) expected row log-sum-exps (natural log), or null: no expectation; an entry that
                           // is not finite is none.  May be row_out itself
  const double* col_hint;  // (count, m) expected column log-sum-exps of log u - C / eps, or null
  const void* block_min;   // minima of the cost's blocks in its type, per entry of the cost's batch (index item(i)); or
                           // null: no skipping
  double* missed;          // (count, block_columns(m)) out, added to: bound of what skipping left out of any column of
                           // the block, in units of col_out; null iff block_min is
  void* block_min_out;     // where kBlockMin writes such a table
  const bool* mask;        // (count, m) columns that kColLseMasked is asked for

  // The adjoint's passes (adjoint.h), for which log_u and log_v are those of N.
  const double* operand;              // (count, m) what N is applied to
  const double* row_diagonal;         // (count, n), of kSchur; kEliminate finds it
  const double *row_root, *row_side;  // (count, n), of kEliminate; its operand is the columns' root
  const double* row_ratio;            // (count)
  uint8_t* empty_out;                 // (count, block_rows(n), block_columns(m)) 1 where N has nothing that matters, or
  const uint8_t* empty;               // null; as kEliminate finds it, and as kSchur then skips

  // kWeigh's and kProduct's factors in the cost's type, (count, n, rank) and, m padded with zeros to whole panels,
  // (count, panels, rank, kPanelColumns); where `plan` has its rows, and what they are multiplied by, (count) or null.
  // `plan`, and its sums row_out and col_out, may be null.
  const void *left, *right;
  int64_t rank, plan_batch_stride, plan_row_stride;
  const double* plan_scale;
  bool plan_added;  // to what `plan` holds
  // What W is multiplied by, (count, m, factor_columns), or for kWeighColumns, which takes W', (count, n, ...), and
  // where that is added, (count, n or m, ...); unit stride along columns.  null: nothing.
  const void* factor;
  void* product;
  int64_t factor_columns, factor_batch_stride, factor_row_stride, product_batch_stride, product_row_stride;

  // The cut of one problem.
  int64_t slabs, slab_rows;
  int64_t width, height;  // m and n, padded to whole vectors
  int64_t block_width;    // block_columns(m), padded to whole vectors
  bool weights;           // low parts of the log-scalings stored as weights exp(low)
  bool coarse_exponents;  // of an item whose grid is coarse they stay exponents (kernels.cpp)

  // Scratch: log-scalings in the cost's type, high and low parts (count x width, count x height) ...
  void *v_high, *v_low, *u_high, *u_low;
  // ... per slab, the columns' sums and running maxima (count x slabs x width) and their unit, as a power of two ...
  void *slab_sum, *slab_peak;
  double* slab_unit;
  // ... for skipping, per block of columns bounds of its scalings and sums (count x block_width), and per slab what it
  // misses (count x slabs x block_width) ...
  void *bound_high, *bound_sum, *slab_missed;
  // ... for the adjoint, the unit of the log-scalings (count), the operand in the cost's type (count x width), and the
  // least and largest root of each block of columns (count x block_columns(m)) ...
  double* grid;
  void *operand_scaled, *extents;
  // ... and per worker, one tile.
  void* tile;
  size_t tile_bytes;

  int64_t item(int64_t index) const { return items ? items[index] : index; }
};

// From one problem's right factor to the next, and to the panel of a column that begins one.
constexpr int64_t right_entries(int64_t m, int64_t rank) {
  return (m + kPanelColumns - 1) / kPanelColumns * kPanelColumns * rank;
}

// Whether W's factors are multiplied as matrices, into a tile.  Internal linkage, as each instruction set has its copy.
static inline bool product_of_factors(const Job& job) { return job.right && job.rank > kFewFactors; }

// One unit of work: `index` in [0, units of its phase), `worker` in [0, workers of the call).
using Unit = void (*)(const Job& job, int64_t index, int worker);

// The kernels for one type of cost and one instruction set.
struct Kernels {
  int64_t block;  // columns that are summed in the cost's type along a row
  Unit split_rows, split_columns;
  Unit row_lse, sweep, merge_sweep, col_lse, merge_col_lse, col_lse_masked, merge_col_lse_masked, panel, block_min;
  Unit grid, split_both, load_operand, schur, merge_schur, eliminate, merge_eliminate;
  Unit weigh, merge_weigh, weigh_columns, product;
  void (*exp2)(const void* in, void* out, int64_t count);
  void (*exp)(const double* in, double* out, int64_t count);  // exp(-inf) = 0, as all below 2^-1022
  void (*log)(const double* in, double* out, int64_t count);  // log(0) = -inf, NaN of what is negative
};

namespace baseline { const Kernels& kernels(bool is_double); }
namespace avx2 { const Kernels& kernels(bool is_double); }
namespace avx512 { const Kernels& kernels(bool is_double); }

}  // namespace uot
