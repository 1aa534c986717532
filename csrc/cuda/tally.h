// A unit's maxima and sums: threads leave one number each, a few threads add up each kind in a fixed order.
#pragma once

#include "track.h"

namespace uot::resident {

// log of a term of sum mass e^(-potential rate), and -inf for what is not in it.
UOT_CODE double log_term(double log_mass, double potential, double rate) {
  return log_mass == -kInfinity ? -kInfinity : log_mass - clamped(potential) * rate;
}

// Vectors a <= b of pair k in the order (0, 0), (0, 1), ..., (0, count - 1), (1, 1), ...
UOT_CODE void pair_of(int k, int count, int* a, int* b) {
  int row = 0;
  while (k >= count - row) k -= count - row++;
  *a = row;
  *b = row + k;
}
UOT_CODE int pair_index(int a, int b, int count) { return a * count - a * (a - 1) / 2 + (b - a); }

// From vectors[kind][point], kinds as in Tally with kTotal given by its logarithms, and `count` vectors behind them
// with their weight: out[kind * stride], and the pairs' products behind those.
template <class Block>
UOT_CODE void tally_unit(Block& block, int width, int count, double* out, int stride) {
  auto& unit = block.shared().unit;
  block.each([&](int t) {
    if (t >= kMaxima * kTallyLanes) return;
    double most = -kInfinity;
    for (int c = t % kTallyLanes; c < width; c += kTallyLanes) most = fmax(most, unit.vectors[t / kTallyLanes][c]);
    unit.lanes[t] = most;
  });
  block.each([&](int t) {
    const auto most = [&](int kind) {
      const double* lane = unit.lanes + kind * kTallyLanes;
      return fmax(fmax(lane[0], lane[1]), fmax(lane[2], lane[3]));
    };
    if (t < width) {
      const double peak = most(kPeak), x = unit.vectors[kTotal][t];
      unit.vectors[kTotal][t] = x == -kInfinity ? 0.0 : exp(x - peak);
    }
    if (t < kMaxima) out[t * stride] = most(t);
  });
  const int sums = kTallies - kMaxima + count * (count + 1) / 2;
  block.each([&](int t) {
    for (int at = t; at < sums * kTallyLanes; at += kThreads) {
      const int k = at / kTallyLanes, lane = at % kTallyLanes;
      double sum = 0;
      if (k < kTallies - kMaxima) {
        for (int c = lane; c < width; c += kTallyLanes) sum += unit.vectors[kMaxima + k][c];
      } else {
        int a, b;
        pair_of(k - (kTallies - kMaxima), count, &a, &b);
        const double *x = unit.vectors[kTallies + a], *y = unit.vectors[kTallies + b];
        const double* weight = unit.vectors[kTallies + count];
        for (int c = lane; c < width; c += kTallyLanes) sum += weight[c] * x[c] * y[c];
      }
      unit.lanes[at] = sum;
    }
  });
  block.each([&](int t) {
    if (t >= sums) return;
    const double* lane = unit.lanes + t * kTallyLanes;
    out[(kMaxima + t) * stride] = (lane[0] + lane[1]) + (lane[2] + lane[3]);
  });
}

// The same over all units of both sides, in every block: `pairs` products of Anderson's vectors.
template <class Block> UOT_CODE void tally_all(Block& block, const Work& work, int pairs) {
  Shared& shared = block.shared();
  const Layout& cut = work.task.cut;
  const double *rows = work.ws.row_tally, *cols = work.ws.col_tally;
  block.each([&](int t) {
    if (t >= 2 * kMaxima * kLanes) return;
    const int kind = t / kLanes % kMaxima;
    const bool row = t < kMaxima * kLanes;
    const int units = row ? cut.row_units : cut.column_units;
    const double* from = (row ? rows : cols) + kind * units;
    double most = -kInfinity;
    for (int u = t % kLanes; u < units; u += kLanes) most = fmax(most, from[u]);
    shared.lanes[t] = most;
  });
  block.each([&](int t) {
    if (t >= 2 * kMaxima) return;
    double most = -kInfinity;
    for (int lane = 0; lane < kLanes; ++lane) most = fmax(most, shared.lanes[t * kLanes + lane]);
    (t < kMaxima ? shared.totals.rows : shared.totals.cols)[t % kMaxima] = most;
  });
  constexpr int kSums = kTallies - kMaxima;
  block.each([&](int t) {
    for (int at = t; at < (2 * kSums + pairs) * kLanes; at += kThreads) {
      const int k = at / kLanes;
      const bool row = k < kSums;
      const int kind = kMaxima + (row ? k : k - kSums);
      const int units = row ? cut.row_units : cut.column_units;
      const double* side = row ? rows : cols;
      const double peak = (row ? shared.totals.rows : shared.totals.cols)[kPeak];
      double sum = 0;
      for (int u = at % kLanes; u < units; u += kLanes) {
        double term = side[kind * units + u];
        if (kind == kTotal) {
          const double here = side[kPeak * units + u];
          term = here == -kInfinity ? 0.0 : term * exp(here - peak);
        }
        sum += term;
      }
      shared.lanes[at] = sum;
    }
  });
  block.each([&](int t) {
    if (t >= 2 * kSums + pairs) return;
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += shared.lanes[t * kLanes + lane];
    if (t < kSums) shared.totals.rows[kMaxima + t] = sum;
    else if (t < 2 * kSums) shared.totals.cols[kMaxima + t - kSums] = sum;
    else shared.totals.pairs[t - 2 * kSums] = sum;
  });
}

}  // namespace uot::resident
