// The first and the last look at a problem: what it is, and what is written down of its solution.
#pragma once

#include "decide.h"
#include "row.h"

namespace uot::resident {

constexpr int kSampledRows = 32;  // rows of the cost that its spread is taken from

struct Reader {
  uint32_t seen;  // bit k: column t + k kThreads of the window has an allowed pair with a row that has mass
  float low, high;
};

// Reads a window of a unit of rows: resident ones to shared memory, who can reach whom, the extremes.
template <class S>
UOT_CODE void read_window(const Work& work, int t, S& s, float* rows, float* reaching, int span, int stop, int left,
                          int right) {
  constexpr int kRows = 4, kColumns = 2;  // on their way together
  const Layout& cut = work.task.cut;
  const int begin = span / cut.block_rows * cut.block_rows, sampled = cut.n < kSampledRows ? 1 : cut.n / kSampledRows;
  for (int first = span; first < stop; first += kRows) {
    bool reaches[kRows] = {};
    for (int j = left + t, k = 0; j < right; j += kColumns * kThreads, k += kColumns) {
      float cost[kRows][kColumns];
      UOT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        UOT_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          const int column = j + c * kThreads;
          cost[r][c] = column < cut.m ? work.row(least_of(first + r, stop - 1))[column] : -kNegInf;
        }
      }
      UOT_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const int i = first + r;
        if (i >= stop) break;
        UOT_UNROLL
        for (int c = 0; c < kColumns; ++c) {
          const int column = j + c * kThreads;
          if (column >= right) break;
          const float one = cost[r][c];
          if (i - begin < cut.resident_rows) rows[(i - begin) * cut.pitch + column] = one;
          if (!(fabsf(one) < -kNegInf)) continue;
          reaches[r] = reaches[r] || work.mass_b[column] > 0;
          if (work.mass_a[i] > 0) s.seen |= 1u << (k + c);
          if (i % sampled == 0) s.low = fminf(s.low, one), s.high = fmaxf(s.high, one);
        }
      }
    }
    for (int r = 0; r < kRows; ++r)
      if (reaches[r]) reaching[first + r - span] = 1.0f;
  }
}

// Reads the whole cost once.
template <class Block> UOT_PHASE void read_cost(Block block) {
  constexpr int kWindow = 32 * kThreads;
  const Work& work = block.shared().work;
  Shared& shared = block.shared();
  const Layout& cut = work.task.cut;
  const Workspace& ws = work.ws;
  const int begin = row_begin(block), end = row_end(block);
  if (begin >= end) return;
  typename Block::template Threads<Reader> states(block);
  block.alone(states, [&](int, auto& s) { s.low = -kNegInf, s.high = kNegInf; });
  for (int left = 0; left < cut.m; left += kWindow) {
    const int right = least_of(cut.pitch, left + kWindow);
    block.alone(states, [&](int, auto& s) { s.seen = 0; });
    for (int span = begin; span < end; span += kUnit) {
      const int stop = least_of(end, span + kUnit);
      block.each([&](int t) {
        if (t < kUnit) shared.sum[t] = 0.0f;
      });
      block.each(states, [&](int t, auto& s) {
        read_window(work, t, s, block.rows(), shared.sum, span, stop, left, right);
      });
      block.each([&](int t) {
        if (t >= stop - span) return;
        ws.log_mass_a[span + t] = log(work.mass_a[span + t]);
        if (left == 0) ws.row_flags[span + t] = 0;
        if (shared.sum[t] > 0) ws.row_flags[span + t] = kReaches;
      });
    }
    block.each(states, [&](int t, auto& s) {
      for (int j = left + t, k = 0; j < least_of(cut.m, right); j += kThreads, ++k)
        ws.partial[int64_t(block.index()) * cut.pitch + j] = float(s.seen >> k & 1);
    });
  }
  const double low = block.max(states, [](int, auto& s) { return -double(s.low); });
  const double high = block.max(states, [](int, auto& s) { return double(s.high); });
  const int first = block.index() * cut.units_per_block, units = ceil_div(end - begin, kUnit);
  block.each([&](int t) {
    for (int u = first + t; u < first + units; u += kThreads) {
      ws.row_tally[kPeak * cut.row_units + u] = low;
      ws.row_tally[kSize * cut.row_units + u] = high;
    }
  });
}

template <class Block> UOT_CODE double log_total(Block& block, const double* mass, int points) {
  return log(block.sum([&](int t) {
    double sum = 0;
    for (int i = t; i < points; i += kThreads) sum += mass[i];
    return sum;
  }));
}

// The state before the first pass.
template <class Block> UOT_PHASE void begin_problem(Block block) {
  const Work& work = block.shared().work;
  Shared& shared = block.shared();
  const Task& task = work.task;
  const Layout& cut = task.cut;
  const Workspace& ws = work.ws;
  const auto extreme = [&](int kind) {
    return block.max([&](int t) {
      double most = -kInfinity;
      for (int u = t; u < cut.row_units; u += kThreads) most = fmax(most, ws.row_tally[kind * cut.row_units + u]);
      return most;
    });
  };
  const double low = -extreme(kPeak), high = extreme(kSize);
  const double log_sum_a = log_total(block, work.mass_a, cut.n), log_sum_b = log_total(block, work.mass_b, cut.m);
  block.each([&](int t) {
    if (t > 0) return;
    Track& track = shared.track;
    const auto side = [&](const SideArrays& from, double log_sum) {
      const double tau = from.tau[work.index];
      return SideNumbers{tau, 1 / tau, log_sum, 1, 1, tau == kInfinity};
    };
    track.rows = side(task.rows, log_sum_a);
    track.cols = side(task.cols, log_sum_b);
    track.reg = task.reg[work.index];
    const double middle = 0.5 * (log_sum_a + log_sum_b);
    track.shift = fabs(middle) < kInfinity ? middle : 0.0;
    track.scale = exp(track.shift);
    track.spread = low < high && !task.start ? 0.5 * high - 0.5 * low : 0.0;
    track.schedule.options = task.set.annealing;
    track.schedule.max_iter = task.set.max_iter;
    track.schedule.begin(track.reg, track.spread);
    set_eps(track, task.set.textbook ? track.reg : track.schedule.eps);
    track.step_ratio = 1;
    track.record.forget();
    track.record.pass = 0;
    track.best = kInfinity;
    track.violation = kNaN;
    track.slot = track.valid = track.known = track.newest = track.count = track.pushed = 0;
    track.fresh = true;
    track.confirming = track.done = track.at_floor = track.measure = false;
  });
  own_columns(block, cut, [&](int j) {
    bool reaches = false;
    const float* part = ws.partial + j;
    for (int p = 0; p < cut.row_blocks && !reaches; ++p, part += cut.pitch) reaches = *part > 0;
    ws.col_flags[j] = reaches ? kReaches : 0;
    ws.log_mass_b[j] = log(work.mass_b[j]);
    const double g = task.start ? task.start[work.index * cut.m + j] : 0.0;
    ws.best[j] = g;
    set_potential(work, j, g, shared.track.eps, 0, everyone_first(work));
  });
  block.each([&](int t) {
    if (block.index() > 0 || t >= cut.pitch - cut.m) return;
    ws.exponent[cut.m + t] = kNegInf;
    ws.mantissa[cut.m + t] = 1.0f;
  });
}

// A side's part of primal minus dual; see uotlib.divergences.KLPenalty.gap.
UOT_CODE double gap_term(const SideNumbers& side, double marginal, double mass, double potential) {
  const double wanted = asked(mass, potential, side.rate);
  return side.exact ? fabs(marginal - wanted) : side.tau * kl_term(marginal, wanted);
}

// Leaves the gap and the size of a potential to be added up, and nothing else.
template <class Vectors> UOT_CODE void leave_gap(Vectors& vectors, int t, double gap, double potential) {
  for (int kind = 0; kind < kTallies; ++kind) vectors[kind][t] = kind == kPeak || kind == kTotal ? -kInfinity : 0.0;
  vectors[kMass][t] = gap;
  if (fabs(potential) < kInfinity) vectors[kSize][t] = fabs(potential);
}

// Answers of the rows, whose last update is that of this pass or of the one before.
template <class Block> UOT_PHASE void answer_rows(Block block) {
  const Work& work = block.shared().work;
  const int pass = work.pass;
  const Track& track = block.shared().track;
  const Layout& cut = work.task.cut;
  const Workspace& ws = work.ws;
  const Answers& out = work.task.out;
  const int begin = row_begin(block), end = row_end(block);
  for (int span = begin; span < end; span += kUnit) {
    const int width = least_of(kUnit, end - span);
    block.each([&](int t) {
      if (t >= width) return;
      const int i = span + t;
      const int64_t to = work.index * cut.n + i;
      const RowView row(work, track, i);
      const double lse = ws.row_lse[pass & 1][i], update = track.confirmed ? ws.row_lse[(pass + 1) & 1][i] : lse;
      const double log_u = half_step(row.offset, row.damping, update), f = row.potential(update);
      ws.log_u[i] = out.log_u[to] = log_u;
      out.f[to] = f;
      out.row_lse[to] = lse;
      leave_gap(block.shared().unit.vectors, t, gap_term(track.rows, exp(log_u + lse), work.mass_a[i], f), f);
    });
    tally_unit(block, width, 0, ws.row_tally + block.index() * cut.units_per_block + (span - begin) / kUnit,
               cut.row_units);
  }
}

// Answers of the columns; those that took no part get what the rows ask of them.
template <class Block> UOT_PHASE void answer_columns(Block block) {
  const Work& work = block.shared().work;
  const int pass = work.pass;
  const Track& track = block.shared().track;
  const Layout& cut = work.task.cut;
  const Workspace& ws = work.ws;
  const Answers& out = work.task.out;
  auto& state = block.shared().columns;
  for (int unit = block.index(); unit < cut.column_units; unit += block.count()) {
    const int begin = unit * cut.unit_columns;
    const int width = least_of(cut.unit_columns, cut.m - begin);
    block.each([&](int t) {
      if (t >= width) return;
      state[t].weak = !(live_weight(work, begin + t) > -kHuge);
      state[t].lse = ws.col_lse[(pass + track.confirmed) & 1][begin + t];
    });
    if (block.any([&](int t) { return t < width && state[t].weak; }))
      exact_columns(block, work, split_scale(track.eps), begin, width);
    block.each([&](int t) {
      if (t >= width) return;
      const ColumnState& s = state[t];
      const int j = begin + t;
      const int64_t to = work.index * cut.m + j;
      const double residual = work.task.entropy ? ws.log_mass_b[j] : 0.0, mass = work.mass_b[j];
      const double answer = residual < -kHuge ? -kInfinity : track.cols.step * (residual - s.lse);
      const double g = s.weak ? answer : ws.g[pass & 1][j];
      const double log_v = s.weak ? -kInfinity : live_weight(work, j) + g / track.eps;
      out.g[to] = g;
      out.log_v[to] = log_v;
      out.col_lse[to] = s.lse;
      leave_gap(block.shared().unit.vectors, t, gap_term(track.cols, s.weak ? 0.0 : exp(log_v + s.lse), mass, g), g);
    });
    tally_unit(block, width, 0, ws.col_tally + unit, cut.column_units);
  }
}

// The numbers of the problem, by the first block.
template <class Block> UOT_PHASE void answer_numbers(Block block) {
  const Work& work = block.shared().work;
  const int pass = work.pass;
  if (block.index() > 0) return;
  Shared& shared = block.shared();
  const Settings& set = work.task.set;
  tally_all(block, work, 0);
  block.each([&](int t) {
    if (t > 0) return;
    const Track& track = shared.track;
    const Answers& out = work.task.out;
    const double largest = fmax(shared.totals.rows[kSize], shared.totals.cols[kSize]), violation = track.violation;
    const bool converged = violation <= tolerance_of(set.tol, kRoundoff, largest, track.reg);
    out.violation[work.index] = violation;
    out.gap[work.index] = violation != violation ? violation : shared.totals.rows[kMass] + shared.totals.cols[kMass];
    out.n_iter[work.index] = double(set.textbook ? pass : pass + 1);
    out.converged[work.index] = converged;
    out.at_floor[work.index] = track.at_floor && !converged;
  });
}

}  // namespace uot::resident
