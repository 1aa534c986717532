// What follows a pass over the rows: blocks put together the columns that they own, and answer with a potential.
#pragma once

#include "tally.h"

namespace uot::resident {

// Log-weight of a column that takes part, -inf for one that does not.
UOT_CODE double live_weight(const Work& work, int j) {
  const bool takes_part = work.mass_b[j] > 0 && !(work.ws.col_flags[j] & kDropped);
  return !takes_part ? -kInfinity : work.task.entropy ? 0.0 : work.ws.log_mass_b[j];
}

// Writes g of the pass to come, and log v as the rows need it.
UOT_CODE void set_potential(const Work& work, int j, double g, double eps, int pass, bool everyone) {
  const Workspace& ws = work.ws;
  const Split v = split_exponent(everyone ? g / eps : live_weight(work, j) + g / eps);
  ws.g[pass & 1][j] = g;
  ws.exponent[j] = v.exponent;
  ws.mantissa[j] = v.mantissa;
}

// g as it is shown: +inf for a column that no row reaches.
UOT_CODE double shown(const Work& work, int j, double g) {
  return work.mass_b[j] > 0 && (work.ws.col_flags[j] & kDropped) ? kInfinity : g;
}

// The lse, the answer and the marginal that belong to a column's sum.
UOT_CODE void answer_column(const Work& work, const Track& track, int j, ColumnState& s, double log_sum) {
  const double residual = work.task.entropy ? work.ws.log_mass_b[j] : 0.0;
  s.lse = s.alive() ? log_sum + track.shift - s.log_v : -kInfinity;
  s.answer = s.alive() ? track.cols.step * (residual - s.lse) : s.g;
}

// A unit's columns flagged `weak` once more, with a running maximum: log sum e^(log u - C / eps) to s.lse.
template <class Block>
UOT_CODE void exact_columns(Block& block, const Work& work, Scale scale, int begin, int width) {
  auto& part = block.shared().column;
  auto& state = block.shared().columns;
  const int columns = int(work.task.cut.unit_columns), lanes = kThreads / columns;
  block.each([&](int t) {
    const int c = t % columns, lane = t / columns;
    float anchor = 0, sum = 0;
    bool any = false;
    if (lane < lanes && c < width && state[c].weak) {
      for (int i = lane; i < work.task.cut.n; i += lanes) {
        const Split u = split_exponent(work.ws.log_u[i]);
        const float cost = work.row(i)[begin + c], power = power_of(cost, scale, u.exponent);
        if (power != power) sum = power;
        if (!(power > kNegInf)) continue;
        const float here = ceilf(power);
        if (!any || here > anchor) {
          if (any) sum *= exp2_of(anchor - here);
          anchor = here;
          any = true;
        }
        // Relative to the anchor before it is rounded.
        sum = fmaf(u.mantissa, exp2_of(power_of(cost, scale, u.exponent - anchor)), sum);
      }
    }
    part.anchor[t] = any || sum != sum ? anchor : kNegInf;
    part.sum[t] = sum;
  });
  block.each([&](int t) {
    if (t >= width || !state[t].weak) return;
    float anchor = kNegInf;
    double sum = 0;
    for (int lane = 0; lane < lanes; ++lane) anchor = fmaxf(anchor, part.anchor[lane * columns + t]);
    for (int lane = 0; lane < lanes && anchor > kNegInf; ++lane) {
      const float here = part.anchor[lane * columns + t];
      if (here > kNegInf) sum += double(part.sum[lane * columns + t]) * double(exp2_of(here - anchor));
    }
    state[t].lse = sum == 0 ? -kInfinity : (double(anchor) + log2(sum)) * kLn2;
  });
}

// What Anderson's Gram matrix of this pass is made of: vectors 1, the older differences of residuals, the newest and
// the residual itself, the last two without the translation, which is not known yet.  0: nothing is wanted.
UOT_CODE int gram_vectors(const Track& track, const Settings& set) {
  if (set.textbook || set.anderson_depth == 0 || track.fresh) return 0;
  if (track.schedule.level_pass + 1 <= set.anderson_start) return 0;
  return (least_of(track.valid + 1, set.anderson_depth)) + 2;
}

// The slot of difference k of `count`, the oldest first, when the newest is in `newest`.
UOT_CODE int history_slot(int newest, int depth, int count, int k) {
  return (newest + depth - (count - 1) + k) % depth;
}

// Phase B.
template <class Block>
UOT_PHASE void merge_columns(Block block) {
  const Work& work = block.shared().work;
  const int pass = work.pass;
  Shared& shared = block.shared();
  const Track& track = shared.track;
  const Layout& cut = work.task.cut;
  const Workspace& ws = work.ws;
  const int vectors = gram_vectors(track, work.task.set);
  const bool before = wants_pair(work, track, pass), everyone = pass == 0 && everyone_first(work);
  const int depth = work.task.set.anderson_depth;
  if (block.index() >= cut.column_units) return;

  const double top = block.max([&](int t) {
    double most = -kInfinity;
    for (int u = t; u < cut.row_units; u += kThreads) most = fmax(most, ws.row_tally[kExtra * cut.row_units + u]);
    return most;
  });
  const double weak_below = fmax(kWeak, double(cut.n) * kLostTerms * exp2((top - track.shift) * kLog2E));
  const int columns = int(cut.unit_columns), lanes = kThreads / columns;

  for (int unit = block.index(); unit < cut.column_units; unit += block.count()) {
    const int begin = unit * columns;
    const int width = least_of(columns, cut.m - begin);
    auto& v = shared.unit.vectors;
    block.each([&](int t) {
      const int c = t % columns, lane = t / columns;
      double sum = 0;
      if (lane < lanes && c < width) {
        const float* part = ws.partial + int64_t(lane) * cut.pitch + begin + c;
        const int64_t apart = int64_t(lanes) * cut.pitch;
        for (int p = lane; p < cut.partials(); p += lanes, part += apart) sum += double(*part);
      }
      shared.unit.lanes[t] = sum;
    });
    block.each([&](int t) {
      if (t >= width) return;
      const int j = begin + t;
      ColumnState s;
      s.g = ws.g[pass & 1][j];
      s.log_v = everyone ? s.g / track.eps : live_weight(work, j) + s.g / track.eps;
      s.sum = 0;
      for (int lane = 0; lane < lanes; ++lane) s.sum += shared.unit.lanes[lane * columns + t];
      const double power = s.log_v * kLog2E;
      if (s.alive()) s.sum *= exp2(power - floor(power));
      s.weak = s.alive() && !(s.sum >= weak_below && s.sum <= 1 / kWeak);
      answer_column(work, track, j, s, s.weak ? 0.0 : log(s.sum));
      shared.columns[t] = s;
    });
    if (block.any([&](int t) { return t < width && shared.columns[t].weak; })) {
      exact_columns(block, work, split_scale(track.eps), begin, width);
      block.each([&](int t) {
        if (t >= width || !shared.columns[t].weak) return;
        ColumnState& s = shared.columns[t];
        const double log_sum = s.lse + s.log_v - track.shift;
        s.sum = exp(log_sum);
        answer_column(work, track, begin + t, s, log_sum);
      });
    }
    block.each([&](int t) {
      for (int at = t; at < (vectors - 3) * columns; at += kThreads) {
        const int k = at / columns, here = at % columns;
        if (here < width)
          v[kTallies + 1 + k][here] =
              ws.residual_steps[history_slot(track.slot, depth, vectors - 2, k) * cut.m + begin + here];
      }
      if (t >= width) return;
      const int j = begin + t;
      const double mass = work.mass_b[j];
      ColumnState& s = shared.columns[t];
      bool live = live_weight(work, j) > -kHuge, alive = s.alive();
      if (alive && !(fabs(s.answer) < kInfinity)) {
        if (live) {  // takes no part from here on
          ws.col_flags[j] |= kDropped | (ws.col_flags[j] & kReaches ? kIsLost : 0);
          alive = live = false;
          s.lse = -kInfinity;
        }
        s.answer = s.g;
      }
      const double plan = alive ? s.sum * track.scale : 0.0, live_mass = live || track.cols.exact ? mass : 0.0;
      const double wanted = asked(live_mass, s.g, track.cols.rate);
      const double g = shown(work, j, s.g), last = pass > 0 ? ws.col_lse[(pass + 1) & 1][j] : 0.0;
      const double marginal = before && alive ? exp(s.log_v + last) : 0.0;
      v[kPeak][t] = v[kTotal][t] = log_term(live ? ws.log_mass_b[j] : -kInfinity, s.answer, track.cols.rate);
      v[kSize][t] = fabs(g) < kInfinity ? fabs(g) : 0.0;
      v[kExtra][t] = 0.0;
      v[kMass][t] = plan;
      v[kDeviation][t] = fabs(plan - wanted);
      v[kBeforeMass][t] = marginal;
      v[kBeforeDeviation][t] = before ? fabs(marginal - asked(mass, g, track.cols.rate)) : 0.0;
      v[kLost][t] = ws.col_flags[j] & kIsLost ? 1.0 : 0.0;
      if (vectors) {
        const double residual = live ? s.answer - s.g : 0.0, image = live ? s.answer : s.g;
        const double length = fabs(image - ws.last_image[j]);
        v[kTallies][t] = live ? 1.0 : 0.0;
        v[kTallies + vectors - 2][t] = residual - ws.last_residual[j];
        v[kTallies + vectors - 1][t] = residual;
        v[kTallies + vectors][t] = wanted;
        v[kExtra][t] = length < kInfinity ? length : 0.0;
      }
      ws.col_lse[pass & 1][j] = s.lse;
      ws.answer[j] = s.answer;
      if (work.task.set.textbook) set_potential(work, j, s.answer, track.eps, pass + 1, false);
    });
    tally_unit(block, width, vectors, ws.col_tally + unit, cut.column_units);
  }
}

}  // namespace uot::resident
