// The cut of one problem: which block owns which rows and columns, and which rows stay in shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../hd.h"

namespace uot::resident {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kMaxDepth = 16, kMaxOrder = 8;  // of Anderson acceleration, and of the prediction of annealing
constexpr int kMaxColumns = 16 * kThreads;
// Rows or columns that are finished together, a thread each: a unit.
constexpr int kUnit = 64;

// Columns of a thread, in groups of 4, and rows that share a reduction.
UOT_HD constexpr int chunks_of(int m) { return m <= 4 * kThreads ? 1 : m <= 8 * kThreads ? 2 : 4; }
UOT_HD constexpr int rows_together(int chunks) { return chunks == 4 ? 1 : 4; }

UOT_HD int ceil_div(int a, int b) { return a / b + (a % b > 0); }
UOT_HD int least_of(int a, int b) { return a < b ? a : b; }

// Row numbers fit an int; products with a stride do not.
struct Layout {
  int n, m;
  int pitch;          // m, made a multiple of 4: a row in shared memory and in the workspace
  int block_rows;     // a block owns so many rows, the last that has any maybe fewer
  int row_blocks;     // blocks that have rows
  int resident_rows;  // of a block: its first ones, in shared memory
  int units_per_block, row_units;
  int unit_columns, column_units;  // unit u belongs to block u modulo the number of blocks

  Layout() = default;
  // `room`: bytes of shared memory for rows.
  UOT_HD Layout(int rows, int columns, int blocks, int64_t room) : n(rows), m(columns) {
    const int together = rows_together(chunks_of(m));
    pitch = ceil_div(m, 4) * 4;
    block_rows = ceil_div(n, blocks);
    row_blocks = ceil_div(n, block_rows);
    const int64_t fits = room / (pitch * int64_t(sizeof(float)));
    resident_rows = fits >= block_rows ? block_rows : int(fits) / together * together;
    units_per_block = ceil_div(block_rows, kUnit);
    row_units = (row_blocks - 1) * units_per_block + ceil_div(n - (row_blocks - 1) * block_rows, kUnit);
    unit_columns = least_of(ceil_div(ceil_div(m, blocks), 8) * 8, kUnit);
    column_units = ceil_div(m, unit_columns);
  }
};

}  // namespace uot::resident
