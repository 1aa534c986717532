// The cut of one problem: which block owns which rows and columns, which rows stay in shared memory, and how the others
// come.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../hd.h"

namespace uot::resident {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kMaxDepth = 16, kMaxOrder = 8;  // of Anderson acceleration, and of the prediction of annealing
constexpr int kMaxHeld = 16 * kThreads;       // columns whose scalings threads hold in registers
constexpr int kMaxColumns = 1 << 24;
// Rows or columns that are finished together, a thread each: a unit.
constexpr int kUnit = 64;
constexpr int kMaxStages = 4;  // of the ring
constexpr int kMaxCluster = 8;  // blocks of a cluster that every device with clusters has

// How rows that are not resident reach the threads.
enum class Way {
  kAhead,  // in registers, a group ahead: from the cache
  kRing,   // through a ring in shared memory, some groups ahead
  kPanels  // the same for rows wider than kMaxHeld, panel by panel, twice
};

// Columns of a thread, in groups of 4, and rows that share a reduction.
UOT_HD constexpr int chunks_of(int m) {
  return m <= 4 * kThreads || m > kMaxHeld ? 1 : m <= 8 * kThreads ? 2 : 4;
}
UOT_HD constexpr int rows_together(int chunks) { return chunks == 4 ? 1 : 4; }
// Warps that a row needs, 1, 2, 4, 8 or 16.
UOT_HD constexpr int warps_of(int m) { return m <= 128 ? 1 : m <= 256 ? 2 : m <= 512 ? 4 : m <= 1024 ? 8 : kWarps; }

UOT_HD int ceil_div(int a, int b) { return a / b + (a % b > 0); }
UOT_HD int least_of(int a, int b) { return a < b ? a : b; }

// Row numbers fit an int; products with a stride do not.
struct Layout {
  int n, m;
  int pitch;          // m, made a multiple of 4: a row in shared memory and in the workspace
  int block_rows;     // a block owns so many rows, the last that has any maybe fewer
  int row_blocks;     // blocks that have rows
  int team_warps;     // warps that work on a row; a block has kWarps / team_warps such teams
  int together;       // rows that a block works on at a time
  int resident_rows;  // of a block: its first ones, in shared memory
  int stages;         // of the ring behind them, each for `together` rows; 0: none
  bool held_sums;     // panels: whether the columns' sums are in shared memory, behind the ring
  int units_per_block, row_units;
  int unit_columns, column_units;  // unit u belongs to block u modulo the number of blocks

  Layout() = default;
  // `room`: bytes of shared memory for rows, `cache`: of the device's cache for what has none there.
  UOT_HD Layout(int rows, int columns, int blocks, int64_t room, int64_t cache, Way way) : n(rows), m(columns) {
    const int chunks = chunks_of(m);
    team_warps = way == Way::kRing ? warps_of(m) : kWarps;
    together = rows_together(chunks) * teams();
    pitch = ceil_div(m, 4) * 4;
    block_rows = ceil_div(n, blocks);
    row_blocks = ceil_div(n, block_rows);
    units_per_block = ceil_div(block_rows, kUnit);
    row_units = (row_blocks - 1) * units_per_block + ceil_div(n - (row_blocks - 1) * block_rows, kUnit);
    unit_columns = least_of(ceil_div(ceil_div(m, blocks), 8) * 8, kUnit);
    column_units = ceil_div(m, unit_columns);

    stages = 0;
    held_sums = false;
    if (way == Way::kPanels) {
      resident_rows = 0;
      held_sums = room >= 2 * stage_bytes() + row_bytes();
      stages = stages_in(held_sums ? room - row_bytes() : room, kMaxStages);
      return;
    }
    resident_rows = rows_in(room);
    if (way == Way::kAhead || resident_rows == block_rows) return;
    stages = stages_in(room, beyond(cache) ? kMaxStages : 2);
    resident_rows = rows_in(room - stages * stage_bytes());
  }

  UOT_HD int teams() const { return kWarps / team_warps; }
  UOT_HD int partials() const { return row_blocks * teams(); }
  UOT_HD int64_t row_bytes() const { return int64_t(pitch) * int64_t(sizeof(float)); }
  UOT_HD int64_t stage_bytes() const {
    return int64_t(sizeof(float)) * 4 * chunks_of(m) * rows_together(chunks_of(m)) * kThreads;
  }
  // What a block needs behind Shared.
  UOT_HD int64_t used() const {
    return resident_rows * row_bytes() + stages * stage_bytes() + (held_sums ? row_bytes() : 0);
  }
  // Of a block, in every pass.
  UOT_HD int read_rows() const { return block_rows - resident_rows; }
  // Whether the rows that are not resident are more than a cache can keep from one pass to the next.
  UOT_HD bool beyond(int64_t cache) const {
    return row_blocks * int64_t(read_rows()) * row_bytes() > cache - cache / 8;
  }

 private:
  UOT_HD int rows_in(int64_t room) const {
    const int64_t fits = room / row_bytes();
    return fits >= block_rows ? block_rows : int(fits) / together * together;
  }
  UOT_HD int stages_in(int64_t room, int most) const {
    const int64_t fits = room / stage_bytes();
    return fits < 2 ? 0 : fits < most ? int(fits) : most;
  }
};

}  // namespace uot::resident
