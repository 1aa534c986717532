// What every pass over rows is made of: where entries lie, anchors and scales of rows, what is left of a unit of them.
#pragma once

#include "tally.h"

namespace uot::resident {

// Keeps the compiler from holding what it has made of a number: it makes it again.
UOT_CODE void anew(int& number) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(number));
#else
  (void)number;
#endif
}

// Column 4 t + c kStep + k is the entry 4 c + k of thread t of a team.
constexpr int kStep = 4 * kThreads;
UOT_CODE int column_of(int t, int c) { return 4 * t + c * kStep; }

// Where a thread's entries lie in a row, four by four.  Behind the last column it reads the first ones again: their
// scalings are 0 there.
UOT_CODE int place_of(int column, int c, int m) { return column + c * kStep < m ? column + c * kStep : 0; }

// A thread's entries of a row of the cost; `wide`: 16 bytes at a time.
template <int C> UOT_CODE void load_cost(const float* row, int column, int m, bool wide, float* out) {
  UOT_UNROLL
  for (int c = 0; c < C; ++c) {
    const int at = place_of(column, c, m);
    if (wide) {
#ifdef __CUDACC__
      const float4 loaded = __ldcg(reinterpret_cast<const float4*>(row + at));
      out[4 * c] = loaded.x, out[4 * c + 1] = loaded.y, out[4 * c + 2] = loaded.z, out[4 * c + 3] = loaded.w;
#else
      memcpy(out + 4 * c, row + at, 4 * sizeof(float));
#endif
    } else {
      UOT_UNROLL
      for (int k = 0; k < 4; ++k) out[4 * c + k] = row[at + k < m ? at + k : 0];
    }
  }
}

// Sends for a thread's entries from `at` of a row on.
template <class Block>
UOT_CODE void copy_entries(Block& block, int t, float* to, const float* row, int at, int m, bool wide) {
  if (wide) {
    block.copy_four(t, to, row + at);
  } else {
    for (int k = 0; k < 4; ++k) block.copy_one(t, to + k, row + (at + k < m ? at + k : 0));
  }
}

UOT_CODE void load_four(const float* from, float* out) {
#ifdef __CUDACC__
  const float4 four = *reinterpret_cast<const float4*>(from);
  out[0] = four.x, out[1] = four.y, out[2] = four.z, out[3] = four.w;
#else
  memcpy(out, from, 4 * sizeof(float));
#endif
}

UOT_CODE void store_four(const float* from, float* out) {
#ifdef __CUDACC__
  *reinterpret_cast<float4*>(out) = make_float4(from[0], from[1], from[2], from[3]);
#else
  memcpy(out, from, 4 * sizeof(float));
#endif
}

// The numbers of one row before and after the pass.
struct RowView {
  double log_mass, residual, offset, damping, step;

  UOT_CODE RowView(const Work& work, const Track& track, int i) {
    log_mass = work.ws.log_mass_a[i];
    damping = track.rows.damping;
    step = track.rows.step;
    residual = work.task.entropy ? log_mass : 0.0;
    offset = work.task.entropy ? damping * log_mass : log_mass;
  }
  // f; -inf where its mass is 0 and the convention is "entropy".
  UOT_CODE double potential(double lse) const { return residual < -kHuge ? residual : step * (residual - lse); }
};

// Expected anchor of a row: that of the log-sum-exp which its last potential belongs to; NaN where there is none.
UOT_CODE float expected_anchor(const Work& work, const Track& track, const RowView& row, int i, int pass) {
  if (pass == 0) return float(kNaN);
  const double before = work.ws.row_lse[(pass + 1) & 1][i];
  const double expected = row.residual < -kHuge ? before : row.residual - track.step_ratio * (row.residual - before);
  return fabs(expected) < kHuge ? float(ceil(expected * kLog2E)) : float(kNaN);
}

// Parts of log2 of a row's scale, (offset - shift) log2(e) + (1 - damping) anchor, so that no float64 is left for the
// moment when its sum is known.
UOT_CODE Split scale_base(const Track& track, const RowView& row, float anchor) {
  const double base = (row.offset - track.shift) * kLog2E + (1 - row.damping) * double(anchor);
  if (!(base > -kHuge)) return {kNegInf, 0.0f};
  const double whole = floor(base);
  return {float(whole), float(base - whole)};
}

// e^(log u - shift) 2^anchor for a row whose sum is known.
UOT_CODE float row_scale(float whole, float fraction, float damping, float total) {
  if (!(total > 0.0f)) return total == 0.0f ? 0.0f : total;
  const Log2 log2 = log2_of(total);
  // In two steps, so that only what lies between 0 and 1 is rounded.
  const float power = fmaf(-damping, log2.whole, fmaf(-damping, log2.rest, fraction)), more = floorf(power);
  return exp2_of(power - more) * power_of_two(whole + more);
}

// The scale of row `at` of a unit from its sum, which is written down; 0 where the row is to be done again.
UOT_CODE float group_scale(Shared& shared, int at, int width, float damping, float total, bool writer) {
  if (at >= width) return 0.0f;
  const bool good = total >= 1 / kNear && total <= kNear;
  if (writer) shared.sum[at] = good ? total : -1.0f;
  return good ? row_scale(shared.whole[at], shared.fraction[at], damping, total) : 0.0f;
}

// A thread's entries of a row in shared memory.
template <int C> UOT_CODE void load_held(const float* row, int column, int m, float* out) {
  UOT_UNROLL
  for (int c = 0; c < C; ++c) load_four(row + place_of(column, c, m), out + 4 * c);
}

// After a unit of rows: potentials, and what all blocks must know of them.
template <class Block>
UOT_CODE void finish_rows(Block& block, const Work& work, int first, int width, int pass, bool before,
                          int unit) {
  Shared& shared = block.shared();
  const Track& track = shared.track;
  const Workspace& ws = work.ws;
  block.each([&](int t) {
    if (t >= width) return;
    const int i = first + t;
    const RowView row(work, track, i);
    const double lse = natural_log(shared.anchor[t], shared.sum[t]), mass = work.mass_a[i];
    const double last = pass > 0 ? ws.row_lse[(pass + 1) & 1][i] : 0.0, f = row.potential(lse);
    ws.row_lse[pass & 1][i] = lse;
    ws.log_u[i] = half_step(row.offset, row.damping, lse);
    const bool nothing = lse == -kInfinity && mass > 0;
    if (nothing && (ws.row_flags[i] & kReaches)) ws.row_flags[i] |= kIsLost;

    auto& v = shared.unit.vectors;
    const double marginal = before ? exp(half_step(row.offset, row.damping, last) + lse) : 0.0;
    v[kPeak][t] = v[kTotal][t] = log_term(row.log_mass, f, track.rows.rate);
    const double size = fabs(before ? row.potential(last) : f);
    v[kSize][t] = size < kInfinity ? size : 0.0;
    v[kExtra][t] = row.offset + (1 - row.damping) * lse;
    v[kMass][t] = nothing ? mass : 0.0;
    v[kDeviation][t] = 0.0;
    v[kBeforeMass][t] = marginal;
    v[kBeforeDeviation][t] = before ? fabs(marginal - asked(mass, row.potential(last), track.rows.rate)) : 0.0;
    v[kLost][t] = ws.row_flags[i] & kIsLost ? 1.0 : 0.0;
  });
  tally_unit(block, width, 0, ws.row_tally + unit, work.task.cut.row_units);
}

// The rows of a block.
template <class Block> UOT_CODE int row_begin(Block& block) {
  return block.index() * block.shared().work.task.cut.block_rows;
}
template <class Block> UOT_CODE int row_end(Block& block) {
  const Layout& cut = block.shared().work.task.cut;
  return least_of(cut.n, row_begin(block) + cut.block_rows);
}

// What the rows of a unit are done with: expected anchors and the rest of their scales.
template <class Block> UOT_CODE void begin_unit(Block& block, const Work& work, int span, int stop) {
  Shared& shared = block.shared();
  const Track& track = shared.track;
  block.each([](int) {});  // all threads know the span
  block.each([&](int t) {
    if (t >= kUnit) return;
    if (t == 0) shared.first = span;
    shared.anchor[t] = 0.0f;
    if (t >= stop - span) return;
    const RowView row(work, track, span + t);
    shared.anchor[t] = expected_anchor(work, track, row, span + t, work.pass);
    const Split base = scale_base(track, row, shared.anchor[t]);
    shared.whole[t] = base.exponent;
    shared.fraction[t] = base.mantissa;
  });
}

// Goes on to the next pass.
template <class Block> UOT_CODE void begin_pass(Block& block) {
  block.each([](int) {});  // all threads have read what is changed here
  block.each([&](int t) {
    if (t == 0) ++block.shared().work.pass;
  });
}

// Adds a thread's sums of columns to the block's, which `first` unit of rows begins.
UOT_CODE void add_four(float* sum, bool first, float* out) {
  if (!first) {
    float before[4];
    load_four(out, before);
    for (int k = 0; k < 4; ++k) sum[k] += before[k];
  }
  store_four(sum, out);
}

}  // namespace uot::resident
