// Between two passes: every block adds up what all have found, comes to the same decision, and moves its columns.
#pragma once

#include "columns.h"

namespace uot::resident {

constexpr double kRoundoff = 0x1p-24, kRidge = 1e-10;  // kRidge: added to the unit diagonal of the normal equations

UOT_CODE double relative(double deviation, double mass) { return deviation == 0 ? 0.0 : deviation / mass; }

// Norm of the dual's gradient relative to the plan's mass (uotlib.certificate.violation); NaN for a lost problem.
UOT_CODE double judge(const Track& track, const Totals& all, bool before) {
  if (all.rows[kLost] > 0 || all.cols[kLost] > 0) return kNaN;
  if (before)
    return relative(all.rows[kBeforeDeviation], all.rows[kBeforeMass]) +
           relative(all.cols[kBeforeDeviation], all.cols[kBeforeMass]);
  // Rows were updated last: only those which reach nothing can be wrong.
  return relative(all.cols[kDeviation], all.cols[kMass]) +
         (track.rows.exact ? relative(all.rows[kMass], all.cols[kMass]) : 0.0);
}

// Translation (f + t, g - t) that maximises the dual (uotlib.certificate.optimal_shift).
UOT_CODE double optimal_shift(const Track& track, const Totals& all) {
  const double rate = track.rows.rate + track.cols.rate;
  if (!(rate > 0)) return 0.0;
  const double left = track.rows.exact ? track.rows.log_sum : all.rows[kPeak] + log(all.rows[kTotal]);
  const double right = track.cols.exact ? track.cols.log_sum : all.cols[kPeak] + log(all.cols[kTotal]);
  const double ratio = left - right;
  return fabs(ratio) < kInfinity ? ratio / rate : 0.0;
}

// What the next step is: translation, safeguard, level of eps, history.
UOT_CODE void choose_step(Track& track, const Totals& all, const Settings& set, int64_t passes, bool close) {
  const double violation = track.violation;
  track.translation = optimal_shift(track, all);
  track.rejected = violation > set.safeguard * track.best;
  track.better = violation < track.best;
  track.best = track.rejected ? kInfinity : track.better ? violation : track.best;
  bool solved = false;
  track.leaving = track.schedule.level_done(violation, passes, &solved);

  const auto restart = [&] { track.valid = 0, track.fresh = true; };
  const int depth = set.anderson_depth;
  if (track.rejected || track.schedule.level_pass <= set.anderson_start) restart();
  track.remembers = depth > 0 && !track.rejected && !track.leaving;
  track.count = 0;
  track.reach = set.trust_region * track.eps;
  if (track.remembers && !track.fresh) {
    track.pushed = track.slot;
    track.step_size[track.slot] = all.cols[kExtra] + fabs(track.translation);
    track.slot = (track.slot + 1) % depth;
    track.valid = track.count = least_of(track.valid + 1, depth);
  }
  if (track.remembers) track.fresh = false;

  if (track.leaving) {  // Lagrange's polynomial through the last levels' ends, at the new eps
    const int levels = set.annealing.order + 1;
    track.newest = (track.newest + 1) % levels;
    track.known = solved ? least_of(track.known + 1, levels) : 1;
    track.ends_eps[track.newest] = track.eps;
    track.schedule.descend();
    for (int k = 0; k < track.known; ++k) track.nodes[k] = track.ends_eps[(track.newest + levels - k) % levels];
    for (int k = 0; k < track.known; ++k)
      track.predict[k] = lagrange_weight(track.nodes, track.known, k, track.schedule.eps);
    track.best = kInfinity;
    track.record.forget();
  }
  if (track.rejected || track.leaving) restart();
  set_eps(track, track.schedule.eps);

  // Where only the columns' marginal is exact, their update must come last, which another pass confirms.
  const bool one_sided = track.cols.exact && !track.rows.exact, last = passes == set.max_iter - 1;
  track.confirming = one_sided && (close || (track.schedule.at_target() && last));
}

// Whether to stop after so many passes, and if not what to do next; one thread.
UOT_CODE void decide_numbers(Track& track, const Totals& all, const Settings& set, int64_t passes) {
  const bool textbook = set.textbook, confirmed = textbook || track.confirming;
  const bool one_sided = track.cols.exact && !track.rows.exact, at_target = textbook || track.schedule.at_target();
  const int64_t taken = textbook ? passes - 1 : passes;
  const double largest = fmax(all.rows[kSize], all.cols[kSize]);
  track.violation = judge(track, all, confirmed);
  track.confirmed = confirmed;
  track.at_floor = track.measure = false;
  track.done = taken >= set.max_iter;
  if (track.done) return;
  const bool close = at_target && track.violation <= tolerance_of(set.tol, kRoundoff, largest, track.reg);
  if (set.synchronous && taken % set.check_every == 0) {
    const bool still = track.record.stalled(track.violation, passes, kRoundoff, largest, track.reg);
    track.at_floor = at_target && still;
    track.done = (close && (confirmed || !one_sided)) || track.at_floor || track.violation != track.violation;
  }
  if (!track.done && !textbook) choose_step(track, all, set, passes, close);
}

// Anderson's coefficients: the normal equations, whose last difference and residual are translated here, by Gauss and
// Jordan with an entry a thread.
template <class Block> UOT_CODE void solve_normal_equations(Block& block, const Settings& set) {
  Shared& shared = block.shared();
  Track& track = shared.track;
  const int count = int(track.count), vectors = count + 2;
  const double shift = track.translation;
  const auto pair = [&](int a, int b) {
    return shared.totals.pairs[a < b ? pair_index(a, b, vectors) : pair_index(b, a, vectors)];
  };
  const auto product = [&](int a, int b) {
    const double left = a >= count ? shift : 0.0, right = b >= count ? shift : 0.0;
    return pair(a, b) - right * pair(a, 0) - left * pair(b, 0) + left * right * pair(0, 0);
  };
  const auto inverse_length = [&](int k) {
    const double square = product(1 + k, 1 + k);
    return square > 0 ? 1 / sqrt(square) : 0.0;
  };
  const auto entry = [&](int t, int* k, int* l) {
    *k = t / (count + 1);
    *l = t % (count + 1);
    return *k < count;
  };
  block.each([&](int t) {
    int k, l;
    if (!entry(t, &k, &l)) return;
    const double scale = inverse_length(k);
    double value = product(1 + k, 1 + l) * scale;
    if (l < count) value *= inverse_length(l);
    if (k == l) value = scale > 0 ? value + kRidge : 1.0;
    shared.matrix[k][l] = value;
  });
  for (int pivot = 0; pivot < count; ++pivot)
    block.each([&](int t) {
      int k, l;
      if (!entry(t, &k, &l) || k == pivot || l <= pivot) return;
      shared.matrix[k][l] -= shared.matrix[k][pivot] * shared.matrix[pivot][l] / shared.matrix[pivot][pivot];
    });
  block.each([&](int t) {
    if (t < count) track.gamma[t] = shared.matrix[t][count] / shared.matrix[t][t] * inverse_length(t);
  });
  block.each([&](int t) {
    if (t > 0) return;
    double bound = 0;
    for (int k = 0; k < count; ++k)
      bound += fabs(track.gamma[k]) * track.step_size[history_slot(track.pushed, set.anderson_depth, count, k)];
    track.measure = !(bound <= track.reach);
  });
}

// Where the iteration takes column j, and how far beyond that acceleration would go.
UOT_CODE double moved(const Work& work, const Track& track, int j, int pass) {
  const Workspace& ws = work.ws;
  return live_weight(work, j) > -kHuge ? ws.answer[j] - track.translation : ws.g[pass & 1][j];
}
UOT_CODE double combination(const Work& work, const Track& track, int j, double image) {
  const Workspace& ws = work.ws;
  double sum = 0;
  for (int k = 0; k < track.count; ++k) {
    const int slot = history_slot(track.pushed, work.task.set.anderson_depth, track.count, k);
    const bool newest = k == track.count - 1;
    sum += track.gamma[k] * (newest ? image - ws.last_image[j] : ws.image_steps[slot * work.task.cut.m + j]);
  }
  return sum;
}

// f(j) for every column that the block owns, a unit at a time.
template <class Block, class F> UOT_CODE void own_columns(Block& block, const Layout& cut, F f) {
  for (int unit = block.index(); unit < cut.column_units; unit += block.count())
    block.each([&](int t) {
      const int j = unit * cut.unit_columns + t;
      if (t < cut.unit_columns && j < cut.m) f(j);
    });
}

// How far acceleration would move any column of each unit.
template <class Block> UOT_CODE void measure_step(Block& block, const Work& work, int pass) {
  const Track& track = block.shared().track;
  const Layout& cut = work.task.cut;
  for (int unit = block.index(); unit < cut.column_units; unit += block.count()) {
    const double furthest = block.max([&](int t) {
      const int j = unit * cut.unit_columns + t;
      if (t >= cut.unit_columns || j >= cut.m) return 0.0;
      const double size = fabs(combination(work, track, j, moved(work, track, j, pass)));
      return size < kInfinity ? size : 0.0;
    });
    block.each([&](int t) {
      if (t == 0) work.ws.furthest[unit] = furthest;
    });
  }
}

// The next g of the block's columns, no further from the plain step than the trust region.
template <class Block> UOT_PHASE void move_columns(Block block) {
  const Work& work = block.shared().work;
  const int pass = work.pass;
  const Track& track = block.shared().track;
  const Layout& cut = work.task.cut;
  const Workspace& ws = work.ws;
  const Settings& set = work.task.set;
  double share = 1;
  if (track.measure) {
    const double furthest = block.max([&](int t) {
      double most = 0;
      for (int u = t; u < cut.column_units; u += kThreads) most = fmax(most, ws.furthest[u]);
      return most;
    });
    if (furthest > track.reach) share = track.reach / furthest;
  }
  own_columns(block, cut, [&](int j) {
    const double g = ws.g[pass & 1][j], image = moved(work, track, j, pass);
    double next = image - share * combination(work, track, j, image);
    if (track.leaving) {
      const int levels = set.annealing.order + 1;
      ws.ends[track.newest * cut.m + j] = image;
      next = 0;
      for (int k = 0; k < track.known; ++k)
        next += track.predict[k] * ws.ends[(track.newest + levels - k) % levels * cut.m + j];
    }
    if (track.rejected) next = ws.best[j] + set.backtrack * (g - ws.best[j]);  // towards the best point so far
    if (track.remembers) {
      const double residual = image - g;
      if (track.count > 0) {
        ws.image_steps[track.pushed * cut.m + j] = image - ws.last_image[j];
        ws.residual_steps[track.pushed * cut.m + j] = residual - ws.last_residual[j];
      }
      ws.last_image[j] = image;
      ws.last_residual[j] = residual;
    }
    if (track.better) ws.best[j] = image;
    set_potential(work, j, track.confirming ? ws.answer[j] : next, track.eps, pass + 1, false);
  });
}

// Phase C of a pass; where `measure` is set, moving waits for the other blocks.
template <class Block> UOT_PHASE void decide(Block block) {
  const Work& work = block.shared().work;
  const int pass = work.pass;
  Shared& shared = block.shared();
  const Settings& set = work.task.set;
  const int vectors = gram_vectors(shared.track, set);
  tally_all(block, work, vectors * (vectors + 1) / 2);
  block.each([&](int t) {
    if (t == 0) decide_numbers(shared.track, shared.totals, set, pass + 1);
  });
  if (shared.track.done || set.textbook) return;
  if (shared.track.count > 0) solve_normal_equations(block, set);
  if (shared.track.measure) measure_step(block, work, pass);
  else move_columns(block);
}

}  // namespace uot::resident
