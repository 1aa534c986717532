// From what a caller has to what a launch is given.
#pragma once

#include "work.h"

namespace uot::resident {

// The problems, with addresses on the device.
struct Request {
  const float* cost;
  int64_t batch_stride, row_stride;
  const int64_t* items;
  int64_t count;
  int n, m;
  bool entropy;
  SideArrays rows, cols;
  const double *reg, *start;
  double* out;  // as uotlib.outcome.StoredOutcome has it
  Settings set;
};

// The task of a grid of so many blocks, each with `room` bytes of shared memory for rows.  `memory` may be null;
// `bytes` is what it must have.
inline Task plan(const Request& from, int blocks, int64_t room, char* memory, int64_t* bytes) {
  Task task{from.cost, from.batch_stride, from.row_stride, from.items, from.count, from.entropy, from.rows, from.cols,
            from.reg, from.start, answers_in(from.out, from.count, from.n, from.m), from.set,
            Layout(from.n, from.m, blocks, room), Workspace{}};
  *bytes = carve(memory, task.cut, from.set, task.ws);
  return task;
}

// Whether all rows can be read 16 bytes at a time.
inline bool wide(const Request& from) {
  return reinterpret_cast<uintptr_t>(from.cost) % 16 == 0 && from.row_stride % 4 == 0 && from.batch_stride % 4 == 0 &&
         from.m % 4 == 0;
}

}  // namespace uot::resident
