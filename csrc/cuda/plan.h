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

// A device: blocks that it runs at a time, bytes of shared memory that each has for rows, and of the cache.
struct Chip {
  int blocks;
  int64_t room, cache;
  bool bulk;  // whether it has bulk copies
  int clusters[kMaxCluster + 1];  // of so many blocks that it runs at a time; 0: none
};

// Whether all rows can be read 16 bytes at a time.
inline bool wide(const Request& from) {
  return reinterpret_cast<uintptr_t>(from.cost) % 16 == 0 && from.row_stride % 4 == 0 && from.batch_stride % 4 == 0 &&
         from.m % 4 == 0;
}

// How a launch is divided: groups work on a problem each, with so many blocks.
struct Division {
  int groups, blocks;
  Way way;
  Layout cut;
  bool bulk;  // whether bulk copies fill the ring
  bool cluster;  // whether a group is a cluster, which has a barrier of its own
};

// The division into groups of so many blocks; as clusters, which may be fewer, only where the chip has some.
inline Division divide(const Request& from, const Chip& chip, int blocks, bool cluster) {
  const int most = cluster ? least_of(chip.clusters[blocks], chip.blocks / blocks) : chip.blocks / blocks;
  const int groups = int(from.count < most ? from.count : most);
  const int64_t cache = chip.cache / groups;
  const auto laid = [&](Way way) { return Layout(from.n, from.m, blocks, chip.room, cache, way); };
  const auto bulk = [&](const Layout& cut) { return chip.bulk && wide(from) && cut.stages > 0; };
  if (from.m > kMaxHeld) {
    const Layout panels = laid(Way::kPanels);
    return {groups, blocks, Way::kPanels, panels, bulk(panels), cluster};
  }
  const Layout ahead = laid(Way::kAhead), ring = laid(Way::kRing);
  const bool registers = wide(from) && chunks_of(from.m) < 4 && ring.team_warps == kWarps;
  // Memory is further away than the cache: a ring for it, unless that takes the place of many resident rows.
  const bool far = ahead.beyond(cache) && ring.stages > 0 && ring.read_rows() * 10.0 <= ahead.read_rows() * 11.0;
  if (registers && !far) return {groups, blocks, Way::kAhead, ahead, false, cluster};
  return {groups, blocks, Way::kRing, ring, bulk(ring), cluster};
}

// Microseconds of a pass, roughly: counted in an H100's instructions and guessed where it waits, see docs/performance.md.
// Only to compare divisions.
inline double pass_time(const Division& division, int64_t cache) {
  constexpr double kGroup = 0.6, kWideGroup = 1.1, kRowUnit = 0.5, kColumnUnit = 1, kDecision = 2, kAddUnit = 0.01;
  constexpr double kBarriers = 4.5, kClusterBarriers = 1.5;  // three of them: both guessed
  constexpr double kCache = 40e3, kMemory = 20e3;  // to a block, in a microsecond
  const Layout& cut = division.cut;
  const double panels = division.way == Way::kPanels ? 2.0 * ceil_div(cut.m, 4 * kThreads) : 1.0;
  const double group = chunks_of(cut.m) == 2 ? kWideGroup : kGroup * panels;
  const double working = ceil_div(cut.block_rows, cut.together) * group;
  const double bytes = double(cut.read_rows()) * double(cut.row_bytes());
  const double reading = bytes / (cut.beyond(cache) ? kMemory : kCache);
  return (working > reading ? working : reading) + ceil_div(cut.block_rows, kUnit) * kRowUnit +
         ceil_div(cut.column_units, division.blocks) * kColumnUnit + kDecision +
         (cut.row_units + cut.column_units) * kAddUnit +
         (division.blocks == 1 ? 0 : division.cluster ? kClusterBarriers : kBarriers);
}

// The division that is done first by that measure, of the smallest groups; of large ones not every size is tried.
inline Division best_division(const Request& from, const Chip& chip) {
  Division best{};
  double least = INFINITY;
  for (int blocks = 1;; blocks = least_of(blocks + 1 + blocks / 16, chip.blocks)) {
    for (const bool cluster : {false, true}) {
      if (cluster && (blocks == 1 || blocks > kMaxCluster || chip.clusters[blocks] == 0)) continue;
      const Division one = divide(from, chip, blocks, cluster);
      const double time = double((from.count + one.groups - 1) / one.groups) * pass_time(one, chip.cache / one.groups);
      if (time < least) best = one, least = time;
    }
    if (blocks == chip.blocks) return best;
  }
}

// The task of a launch.  `memory` may be null; `bytes` is what it must have.
inline Task plan(const Request& from, const Division& division, char* memory, int64_t* bytes) {
  Workspace parts;
  const int64_t group_bytes = carve(nullptr, division.cut, from.set, parts);
  *bytes = group_bytes * division.groups;
  return {from.cost, from.batch_stride, from.row_stride, from.items, from.count, from.entropy, from.rows, from.cols,
          from.reg, from.start, answers_in(from.out, from.count, from.n, from.m), from.set, wide(from), division.cut,
          division.groups, division.blocks, division.cluster, memory, group_bytes};
}

}  // namespace uot::resident
