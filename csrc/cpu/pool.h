// Fork-join over phases of independent units of work, on threads of our own.
#pragma once

#include <cstdint>

#include "job.h"

namespace uot {

struct Phase {
  Unit unit;
  int64_t units;
};

struct PhaseList {
  static constexpr int kMost = 5;
  Phase phases[kMost];
  int count;
};

// Runs every unit of a phase before the first of the next, on the calling thread and up to `threads - 1` others.
// Safe to call from several threads at once, and in a child after fork().  Units must not throw.
void run_phases(const Job& job, const PhaseList& phases, int threads);

}  // namespace uot
