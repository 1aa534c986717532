// The whole of a launch, as phases of the grid: every block does its part of one, then all wait for each other.
//
// The grid here is a group of blocks that work on one problem; others do the same beside it with theirs.  It has
// phase(f), which calls f(block) for every block, track(), the numbers that all blocks have alike, and draw(), the next
// problem that nobody has.  A block has its shared memory and a few ways for its threads to work together; see
// host_grid.h, which is the one to read, and device_grid.h.
#pragma once

#include "ends.h"
#include "panels.h"
#include "rows.h"

namespace uot::resident {

// Problems until none is left.  Source of the method: uotlib/solver.py, csrc/cpu/methods.cpp.
template <class Sweep, class Grid> UOT_CODE void solve_all(Grid& grid, const Task& task) {
  for (int64_t index = grid.number(); index < task.count; index = *grid.work().ws.turn) {
    grid.phase([&](auto& block) {
      block.each([](int) {});  // all threads know the index
      block.each([&](int t) {
        if (t == 0) block.shared().work.set(task, index, grid.number());
      });
      read_cost(block);
    });
    grid.phase([&](auto& block) { begin_problem(block); });
    for (;;) {
      grid.phase([&](auto& block) { Sweep::run(block); });
      grid.phase([&](auto& block) { merge_columns(block); });
      if (task.set.textbook && !is_due(task.set, grid.work().pass)) continue;
      grid.phase([&](auto& block) { decide(block); });
      if (grid.track().done) break;
      if (grid.track().measure) grid.phase([&](auto& block) { move_columns(block); });
    }
    grid.phase([&](auto& block) { answer_rows(block); });
    grid.phase([&](auto& block) { answer_columns(block); });
    grid.phase([&](auto& block) {
      if (block.index() > 0) return;
      answer_numbers(block);
      block.each([&](int t) {
        if (t == 0) *block.shared().work.ws.turn = grid.draw();
      });
    });
  }
}

// f of the pass that a division asks for.
template <class F> auto with_sweep(Way way, bool bulk, int m, F f) {
  if (way == Way::kPanels) return bulk ? f(PanelSweep<true>{}) : f(PanelSweep<false>{});
  const int chunks = chunks_of(m);
  if (way == Way::kAhead) return chunks == 1 ? f(RowSweep<1, true>{}) : f(RowSweep<2, true>{});
  if (bulk)
    return chunks == 1 ? f(RowSweep<1, false, true>{})
                       : chunks == 2 ? f(RowSweep<2, false, true>{}) : f(RowSweep<4, false, true>{});
  return chunks == 1 ? f(RowSweep<1, false>{}) : chunks == 2 ? f(RowSweep<2, false>{}) : f(RowSweep<4, false>{});
}

}  // namespace uot::resident
