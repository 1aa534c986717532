// The state of one problem between passes: numbers that every block keeps its own, equal copy of, and scratch memory.
#pragma once

#include "work.h"

namespace uot::resident {

struct SideNumbers {
  double tau, rate, log_sum;  // rate = 1 / tau
  double damping, step;       // tau / (tau + eps), and that times eps
  bool exact;
};

struct Track {
  SideNumbers rows, cols;
  double reg, shift, scale, spread;  // scale = e^shift
  Schedule schedule;
  double eps, step_ratio;  // step_ratio: the rows' step of the pass before over that of the pass to come
  Record record;
  double best, violation;
  // Anderson acceleration: where the next difference goes, how many are valid, whether the next point is the first.
  int slot, valid;
  bool fresh;
  int known;                     // ends of levels to predict from,
  double ends_eps[kMaxOrder + 1];  // and their eps, newest first; `newest` is where the newest lies
  int newest;
  bool confirming;
  bool done, at_floor, confirmed;  // confirmed: the pair at the end has the rows of the pass before

  // What the last decision asks of the columns: `count` differences are combined by gamma, the oldest first; the newest
  // goes to slot `pushed`; `remembers` what the next one is taken from.
  double translation, reach;
  bool rejected, better, leaving, remembers, measure;
  int count, pushed;
  double gamma[kMaxDepth], nodes[kMaxOrder + 1], predict[kMaxOrder + 1];  // nodes, predict: newest first
  double step_size[kMaxDepth];                      // bounds of differences, by slot
};

// Makes eps that of the pass to come.
UOT_CODE void set_eps(Track& track, double eps) {
  const double before = track.rows.step;
  track.eps = eps;
  for (SideNumbers* side : {&track.rows, &track.cols}) {
    side->damping = 1 / (1 + eps * side->rate);
    side->step = eps * side->damping;
  }
  track.step_ratio = before / track.rows.step;
}

// Whether the textbook looks at its pair, which is known one pass later.
UOT_CODE bool is_due(const Settings& set, int pass) {
  return pass > 0 && (pass >= set.max_iter || (set.synchronous && pass % set.check_every == 0));
}

// Whether this pass is to tell the marginals of its columns with the rows of the pass before.
UOT_CODE bool wants_pair(const Work& work, const Track& track, int pass) {
  return work.task.set.textbook ? is_due(work.task.set, pass) : track.confirming;
}

// Whether columns without mass take part in the first pass: textbook v_0 has an entry for every column.
UOT_CODE bool everyone_first(const Work& work) { return work.task.set.textbook && work.task.entropy; }

// Maxima and sums over all units.
struct Totals {
  double rows[kTallies], cols[kTallies], pairs[kMaxPairs];
};

constexpr int kLanes = 8, kTallyLanes = 4;  // threads that add up one number of C and of a unit
constexpr int kVectorRows = kTallies + kMaxVectors + 1;

// A column between two barriers of B: here, because the registers of some variants are all taken.
struct ColumnState {
  double sum, log_v, g, lse, answer;
  bool weak;
  UOT_CODE bool alive() const { return log_v > -kHuge; }
};

// Where the ring of bulk copies stands: a stage, and the parity of its phase.  See ring.h.
struct Place {
  int stage;
  unsigned parity;
};

struct Shared {
  uint64_t full[kMaxStages], empty[kMaxStages];  // barriers of the ring, on a device
  Place place;                                   // of the first group of rows of the next pass
  unsigned expected;        // arrivals at the group's barrier on a device, so far
  int index, count, group;  // of a device's block in its group, of blocks there, of the group
  bool cluster;             // whether that is one
  Work work;
  Track track;
  Totals totals;
  // The unit of rows at hand.
  int first;  // its first row
  float anchor[kUnit], whole[kUnit], fraction[kUnit], sum[kUnit];
  // What threads hand to each other: row sums of warps; doubles of warps; one number.
  float row_part[2][4][kWarps];
  double warp_part[kWarps];
  ColumnState columns[kUnit];
  union {
    struct {
      double vectors[kVectorRows][kUnit];  // kTallies, Anderson's, their weight
      double lanes[(kTallies + kMaxPairs) * kTallyLanes];  // and before that partial sums, kThreads
    } unit;
    double lanes[(2 * kTallies + kMaxPairs) * kLanes];
    double matrix[kMaxDepth][kMaxDepth + 1];
    struct {
      float anchor[kThreads], sum[kThreads];
    } column;
  };
};

// What Shared takes of a block's shared memory; rows lie behind it.
constexpr int64_t kSharedBytes = (int64_t(sizeof(Shared)) + 15) / 16 * 16;

static_assert((kTallies + kMaxPairs) * kTallyLanes >= kThreads, "partial sums of a unit's columns must fit");

}  // namespace uot::resident
