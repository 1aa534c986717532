// The pass over a block's rows: their log-sum-exps, and what they add to every column.
#pragma once

#include "tally.h"

namespace uot::resident {

// Whether registers are left to hold rows that are on their way.
template <int C, bool W> constexpr bool kAhead = W && C < 4;

template <int C, int R, bool W> struct RowThread {
  float exponent[4 * C], mantissa[4 * C], sum[4 * C];  // of v, and the columns' sums
  float now[R][4 * C], next[kAhead<C, W> ? R : 1][4 * C];  // rows in work, and on their way
  float row[4 * C];                                    // a row that is done again
  float part[R], scale[R], peak;
  int column;         // its first column
  const float* from;  // the next row that is not resident
};

// Column 4 t + c kStep + k is thread t's entry 4 c + k.
constexpr int kStep = 4 * kThreads;
UOT_CODE int column_of(int t, int c) { return 4 * t + c * kStep; }

// Where a thread's entries lie in a row, four by four.  Behind the last column it reads the first ones again: their
// scalings are 0 there.
UOT_CODE int place_of(int column, int c, int m) { return column + c * kStep < m ? column + c * kStep : 0; }

// A thread's entries of a row of the cost.  W: 16 bytes at a time, which takes rows that lie so and have a multiple of 4
// entries; else +inf behind the last.
template <int C, bool W> UOT_CODE void load_cost(const float* row, int column, int m, float* out) {
  UOT_UNROLL
  for (int c = 0; c < C; ++c) {
    const int at = place_of(column, c, m);
    if constexpr (W) {
#ifdef __CUDACC__
      const float4 loaded = __ldcg(reinterpret_cast<const float4*>(row + at));
      out[4 * c] = loaded.x, out[4 * c + 1] = loaded.y, out[4 * c + 2] = loaded.z, out[4 * c + 3] = loaded.w;
#else
      memcpy(out + 4 * c, row + at, 4 * sizeof(float));
#endif
    } else {
      UOT_UNROLL
      for (int k = 0; k < 4; ++k) out[4 * c + k] = at + k < m ? row[at + k] : -kNegInf;
    }
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
    log_mass = work.task.ws.log_mass_a[i];
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
  const double before = work.task.ws.row_lse[(pass + 1) & 1][i];
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

// The same from a row in shared memory.
template <int C> UOT_CODE void load_held(const float* row, int column, int m, float* out) {
  UOT_UNROLL
  for (int c = 0; c < C; ++c) load_four(row + place_of(column, c, m), out + 4 * c);
}

// A row whose expected anchor was wrong, by its maximum; adds it to the columns.
template <int C, bool W, class Block, class States>
UOT_CODE void exact_row(Block& block, const Work& work, States& states, Scale scale, int i, int at) {
  Shared& shared = block.shared();
  const RowView row(work, shared.track, i);
  block.alone(states, [&](int, auto& s) {
    load_cost<C, W>(work.row(i), s.column, work.task.cut.m, s.row);
    s.peak = kNegInf;
    UOT_UNROLL
    for (int e = 0; e < 4 * C; ++e) s.peak = fmaxf(s.peak, fmaf(s.row[e], scale.high, s.exponent[e]));
  });
  const float peak = block.row_max(states);
  const float anchor = peak == kNegInf ? 0.0f : ceilf(peak);
  block.alone(states, [&](int, auto& s) {
    float part = 0;
    UOT_UNROLL
    for (int e = 0; e < 4 * C; ++e) {
      const float power = power_of(s.row[e], scale, s.exponent[e] - anchor);
      s.row[e] = exp2_of(power > 1.0f ? 1.0f : power);  // acts where |cost| / eps exceeds 2^24 only; NaN stays
      part = fmaf(s.row[e], s.mantissa[e], part);
    }
    s.part[0] = part;
  });
  block.template row_scales<1>(states, [&](int, float total, bool writer) {
    if (writer) shared.sum[at] = total, shared.anchor[at] = anchor;
    const Split base = scale_base(shared.track, row, anchor);
    return row_scale(base.exponent, base.mantissa, float(row.damping), total);
  });
  block.alone(states, [&](int, auto& s) {
    const float weight = s.scale[0] > kLargest ? kLargest : s.scale[0];
    UOT_UNROLL
    for (int e = 0; e < 4 * C; ++e) s.sum[e] = fmaf(s.row[e], weight, s.sum[e]);
  });
}

// R rows from `first`, whose entries are in `now`; a row whose anchor was no good gets the sum -1.
template <int C, int R, class Block, class States>
UOT_CODE void work_group(Block& block, States& states, Scale scale, float damping, int at, int width) {
  Shared& shared = block.shared();
  block.alone(states, [&](int, auto& s) {
    UOT_UNROLL
    for (int r = 0; r < R; ++r) {
      const float anchor = shared.anchor[at + r];
      float part = 0;
      UOT_UNROLL
      for (int e = 0; e < 4 * C; ++e) {
        s.now[r][e] = exp2_of(power_of(s.now[r][e], scale, s.exponent[e] - anchor));
        part = fmaf(s.now[r][e], s.mantissa[e], part);
      }
      s.part[r] = part;
    }
  });
  block.template row_scales<R>(states, [&](int r, float total, bool writer) {
    if (at + r >= width) return 0.0f;
    const bool good = total >= 1 / kNear && total <= kNear;
    if (writer) shared.sum[at + r] = good ? total : -1.0f;
    return good ? row_scale(shared.whole[at + r], shared.fraction[at + r], damping, total) : 0.0f;
  });
  block.alone(states, [&](int, auto& s) {
    UOT_UNROLL
    for (int r = 0; r < R; ++r) {
      if (s.scale[r] == 0.0f) continue;  // where powers may be infinite
      const float weight = fminf(s.scale[r], kLargest);
      UOT_UNROLL
      for (int e = 0; e < 4 * C; ++e) s.sum[e] = fmaf(s.now[r][e], weight, s.sum[e]);
    }
  });
}

// After a unit of rows: potentials, and what all blocks must know of them.
template <class Block>
UOT_CODE void finish_rows(Block& block, const Work& work, int first, int width, int pass, bool before,
                          int unit) {
  Shared& shared = block.shared();
  const Track& track = shared.track;
  const Workspace& ws = work.task.ws;
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

// Phase A of a pass.
template <int C, int R, bool W, class Block>
UOT_CODE void sweep_rows(Block block) {
  Shared& shared = block.shared();
  const Work& work = shared.work;
  block.each([](int) {});  // all threads have read what is changed here
  block.each([&](int t) {
    if (t == 0) ++shared.work.pass;
  });
  const Track& track = shared.track;
  const Layout& cut = work.task.cut;
  const Workspace& ws = work.task.ws;
  const int begin = row_begin(block);
  if (begin >= cut.n) return;
  const Scale scale = split_scale(track.eps);
  const float damping = float(track.rows.damping);
  typename Block::template Threads<RowThread<C, R, W>> states(block);
  const int m = cut.m, pitch = cut.pitch, resident_end = begin + cut.resident_rows;
  const int64_t stride = work.task.row_stride;
  // Behind the last row it is read again, for nothing.
  const auto load_group = [&](int first, int stop, auto& s, float (*out)[4 * C]) {
    UOT_UNROLL
    for (int r = 0; r < R; ++r) {
      load_cost<C, W>(s.from, s.column, m, out[r]);
      s.from += first + r + 1 < stop ? stride : 0;
    }
  };

  // What is needed behind the loop over groups is read anew there: no register holds it meanwhile.
  for (int span = begin; span < row_end(block); span = shared.first + kUnit) {
    const int stop = least_of(row_end(block), span + kUnit);
    const int resident = resident_end < span ? span : least_of(stop, resident_end);
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
    block.alone(states, [&](int t, auto& s) {
      UOT_UNROLL
      for (int c = 0; c < C; ++c) {
        const int j = column_of(t, c);
        UOT_UNROLL
        for (int k = 0; k < 4; ++k)
          s.exponent[4 * c + k] = kNegInf, s.mantissa[4 * c + k] = 1.0f, s.sum[4 * c + k] = 0.0f;
        if (j >= cut.pitch) continue;
        load_four(ws.exponent + j, s.exponent + 4 * c);
        load_four(ws.mantissa + j, s.mantissa + 4 * c);
      }
    });
    // Resident rows and the others take turns, so that reading the latter never stops.
    int held = span, streamed = resident;
    block.alone(states, [&](int t, auto& s) {
      s.column = column_of(t, 0);
      s.from = work.row(least_of(streamed, stop - 1));
      if constexpr (kAhead<C, W>) load_group(streamed, stop, s, s.next);
    });
    for (bool turn = true; held < resident || streamed < stop; turn = !turn) {
      const bool from_shared = held < resident && (turn || streamed >= stop);
      block.alone(states, [&](int, auto& s) {
        if (from_shared) {
          UOT_UNROLL
          for (int r = 0; r < R; ++r)
            load_held<C>(block.rows() + (least_of(held + r, resident - 1) - begin) * pitch, s.column, m, s.now[r]);
        } else if constexpr (kAhead<C, W>) {
          UOT_UNROLL
          for (int r = 0; r < R; ++r) {
            UOT_UNROLL
            for (int e = 0; e < 4 * C; ++e) s.now[r][e] = s.next[r][e];
          }
          load_group(streamed + R, stop, s, s.next);
        } else {
          load_group(streamed, stop, s, s.now);
        }
      });
      const int first = from_shared ? held : streamed;
      work_group<C, R>(block, states, scale, damping, first - span, (from_shared ? resident : stop) - span);
      (from_shared ? held : streamed) += R;
    }
    block.each([&](int) {});  // all sums of rows are there
    const int width = least_of(row_end(block) - shared.first, kUnit);
    for (int at = 0; at < width; ++at)
      if (shared.sum[at] < 0.0f) exact_row<C, W>(block, work, states, scale, shared.first + at, at);
    block.each([&](int) {});
    block.alone(states, [&](int t, auto& s) {
      UOT_UNROLL
      for (int c = 0; c < C; ++c) {
        if (column_of(t, c) >= cut.pitch) continue;
        float* const out = ws.partial + block.index() * cut.pitch + column_of(t, c);
        if (shared.first > row_begin(block)) {
          float before[4];
          load_four(out, before);
          for (int k = 0; k < 4; ++k) s.sum[4 * c + k] += before[k];
        }
        store_four(s.sum + 4 * c, out);
      }
    });
    finish_rows(block, work, shared.first, width, work.pass, wants_pair(work, track, work.pass),
                block.index() * cut.units_per_block + (shared.first - row_begin(block)) / kUnit);
  }
}

}  // namespace uot::resident
