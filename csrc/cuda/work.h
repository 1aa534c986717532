// What the kernel reads and writes in global memory.
#pragma once

#include "../task.h"
#include "layout.h"
#include "numerics.h"

namespace uot::resident {

// What is added up, or compared, over a unit of rows or columns.  Maxima first.
enum Tally {
  kPeak,   // largest log of a term of kTotal
  kSize,   // |potential|
  kExtra,  // rows: log of the mass, columns: length of Anderson's newest difference
  kMaxima,
  kTotal = kMaxima,  // mass that the potentials ask for, as the translation needs it, in units of e^peak
  kMass,             // rows: mass of rows that reach nothing, columns: of the plan; at the end the gap
  kDeviation,        // of kMass from what is asked for
  kBeforeMass,       // the same for the pair with the rows of the pass before
  kBeforeDeviation,
  kLost,  // points that should have found a partner
  kTallies
};
// Products of Anderson's vectors: all pairs of 1, the differences and the residual.
constexpr int kMaxVectors = kMaxDepth + 2, kMaxPairs = kMaxVectors * (kMaxVectors + 1) / 2;

enum Flag : uint8_t { kReaches = 1, kDropped = 2, kIsLost = 4 };

// One problem's vectors, reused by the next one.  Written by the block that owns the row or column.
struct Workspace {
  double *log_mass_a, *row_lse[2], *log_u;
  double *log_mass_b, *g[2], *col_lse[2], *answer, *best;
  double *last_image, *last_residual, *image_steps, *residual_steps;  // steps: (depth, m)
  double* ends;                                                        // (order + 1, m)
  double *row_tally, *col_tally;                                       // (kTallies [+ kMaxPairs], units)
  double* furthest;                                                    // (units of columns)
  float *exponent, *mantissa;                                          // of v, (pitch)
  float* partial;                                                      // (partials, pitch)
  uint8_t *row_flags, *col_flags;
  int64_t* turn;                                                       // the next problem
};

// Hands out parts of one array, or counts what they take: its start may be null.
class Carver {
 public:
  UOT_HD explicit Carver(char* start) : start_(start) {}
  template <class T> UOT_HD void take(T*& part, int64_t entries) {
    part = start_ ? reinterpret_cast<T*>(start_ + used_) : nullptr;
    used_ += (entries * int64_t(sizeof(T)) + 255) / 256 * 256;
  }
  UOT_HD int64_t used() const { return used_; }

 private:
  char* start_;
  int64_t used_ = 0;
};

// Returns the bytes that it takes.
UOT_HD int64_t carve(char* start, const Layout& cut, const Settings& set, Workspace& out) {
  const int64_t n = cut.n, m = cut.m;
  Carver carver(start);
  double** const rows[] = {&out.log_mass_a, &out.row_lse[0], &out.row_lse[1], &out.log_u};
  double** const cols[] = {&out.log_mass_b, &out.g[0], &out.g[1], &out.col_lse[0], &out.col_lse[1], &out.answer,
                           &out.best, &out.last_image, &out.last_residual};
  for (double** part : rows) carver.take(*part, n);
  for (double** part : cols) carver.take(*part, m);
  const bool textbook = set.textbook;
  carver.take(out.image_steps, textbook ? 0 : set.anderson_depth * m);
  carver.take(out.residual_steps, textbook ? 0 : set.anderson_depth * m);
  carver.take(out.ends, textbook ? 0 : (set.annealing.order + 1) * m);
  carver.take(out.row_tally, int64_t(kTallies) * cut.row_units);
  carver.take(out.col_tally, int64_t(kTallies + kMaxPairs) * cut.column_units);
  carver.take(out.furthest, cut.column_units);
  carver.take(out.exponent, cut.pitch);
  carver.take(out.mantissa, cut.pitch);
  carver.take(out.partial, int64_t(cut.partials()) * cut.pitch);
  carver.take(out.row_flags, n);
  carver.take(out.col_flags, m);
  carver.take(out.turn, 1);
  return carver.used();
}

// Everything that a launch is given.
struct Task {
  const float* cost;
  int64_t batch_stride, row_stride;  // entries; unit stride along columns
  const int64_t* items;              // entries of the cost's batch, or null for all
  int64_t count;
  bool entropy;
  SideArrays rows, cols;
  const double* reg;
  const double* start;  // (count, m) column potential to start from, which is then not annealed to; or null
  Answers out;
  Settings set;
  bool wide;  // rows can be read 16 bytes at a time
  Layout cut;
  int groups, blocks;  // so many groups of so many blocks solve a problem each at a time
  bool cluster;        // whether a group is a cluster
  char* memory;
  int64_t group_bytes;  // of the memory
};

// The problem at hand, in every block's shared memory.
struct Work {
  Task task;
  Workspace ws;
  int64_t index;
  int pass;  // at hand, from 0
  const float* cost;
  const double *mass_a, *mass_b;

  UOT_PHASE void set(const Task& from, int64_t at, int group) {
    task = from;
    carve(from.memory + group * from.group_bytes, from.cut, from.set, ws);
    index = at;
    pass = -1;
    cost = from.cost + (from.items ? from.items[at] : at) * from.batch_stride;
    mass_a = from.rows.mass + at * from.cut.n;
    mass_b = from.cols.mass + at * from.cut.m;
  }
  UOT_CODE const float* row(int i) const { return cost + i * task.row_stride; }
};

}  // namespace uot::resident
