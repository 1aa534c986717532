// The whole of a launch, as phases of the grid: every block does its part of one, then all wait for each other.
//
// A grid has phase(f), which calls f(block) for every block, and track(), the numbers that all blocks have alike.  A
// block has its shared memory and a few ways for its threads to work together; see host_grid.h, which is the one to read, and
// device_grid.h.
#pragma once

#include "ends.h"

namespace uot::resident {

// One problem after the other.  Source of the method: uotlib/solver.py, csrc/cpu/methods.cpp.
template <int C, bool W, class Grid> UOT_CODE void solve_all(Grid& grid, const Task& task) {
  constexpr int R = rows_together(C);
  for (int64_t index = 0; index < task.count; index = grid.work().index + 1) {
    grid.phase([&](auto& block) {
      block.each([](int) {});  // all threads know the index
      block.each([&](int t) {
        if (t == 0) block.shared().work.set(task, index);
      });
      read_cost(block);
    });
    grid.phase([&](auto& block) { begin_problem(block); });
    for (;;) {
      grid.phase([&](auto& block) { sweep_rows<C, R, W>(block); });
      grid.phase([&](auto& block) { merge_columns(block); });
      if (task.set.textbook && !is_due(task.set, grid.work().pass)) continue;
      grid.phase([&](auto& block) { decide(block); });
      if (grid.track().done) break;
      if (grid.track().measure) grid.phase([&](auto& block) { move_columns(block); });
    }
    grid.phase([&](auto& block) { answer_rows(block); });
    grid.phase([&](auto& block) { answer_columns(block); });
    grid.phase([&](auto& block) { answer_numbers(block); });
  }
}

}  // namespace uot::resident
