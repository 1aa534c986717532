// A ring of stages in shared memory that bulk copies fill (sm_90 and later): who waits for what.
//
// Every stage has two barriers whose phases alternate between parity 0 and 1.  `full` completes a phase when the one
// thread that fills the stage has arrived, announcing bytes, and so many bytes have come.  `empty` completes one when
// every warp of the block has taken its entries to registers.  Fill k of a stage waits for phase k - 1 of `empty`,
// which for k = 0 counts as complete; readers of fill k wait for phase k of `full`.  Nothing else orders copies and
// reads.
//
// No wait can last: when the filler waits for `empty`, the fill that it waits to be read was sent for before, and what
// other warps need to read it (their barriers included) this thread has passed.
#pragma once

#include "row.h"

namespace uot::resident {

// The place after this one.
UOT_CODE Place next_place(Place at, int stages) {
  return at.stage + 1 < stages ? Place{at.stage + 1, at.parity} : Place{0, at.parity ^ 1u};
}
// The place stages - 1 further: the stage before this one, mostly a round later.
UOT_CODE Place last_place(Place at, int stages) {
  return at.stage == 0 ? Place{stages - 1, at.parity} : Place{at.stage - 1, at.parity ^ 1u};
}

// Sends for so many columns, from `column` on, of rows [first, stop), which lie `pitch` apart in the stage; by one thread
// of the block.
template <class Block>
UOT_CODE void fill_stage(Block& block, const Work& work, Place at, float* stage, int first, int stop, int column,
                         int columns, int pitch) {
  const unsigned row_bytes = unsigned(columns) * unsigned(sizeof(float)), bytes = unsigned(stop - first) * row_bytes;
  block.wait_empty(at.stage, at.parity ^ 1u);
  block.expect(at.stage, bytes);
  if (work.task.row_stride == pitch && columns == pitch) {
    block.copy_bulk(at.stage, stage, work.row(first), bytes);
  } else {
    for (int i = first; i < stop; ++i)
      block.copy_bulk(at.stage, stage + (i - first) * pitch, work.row(i) + column, row_bytes);
  }
}

}  // namespace uot::resident
