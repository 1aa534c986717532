// The pass over rows that are wider than threads can hold: panel by panel, for the rows' sums, and once more for the
// columns'.  Every tile, a few rows of a panel, comes through the ring; the second time from the cache.
#pragma once

#include "row.h"

namespace uot::resident {

struct PanelThread {
  static constexpr int R = rows_together(1);
  float exponent[4], mantissa[4], sum[4], now[R][4];
  float part[R], scale[R], peak;
  int row, tile, stage;  // the next tile to be copied: first row, number in these rows; the stage of the next in work
};

struct PanelSweep {
  static constexpr int R = PanelThread::R, kStage = 4 * R * kThreads;

  static UOT_CODE int panels_of(const Layout& cut) { return ceil_div(cut.m, kStep); }
  static UOT_CODE int column_at(int t, int panel) { return column_of(t, 0) + panel * kStep; }
  // Where the block adds up its columns; a thread touches its own ones alone.
  template <class Block> static UOT_CODE float* sums(Block& block, const Work& work) {
    const Layout& cut = work.task.cut;
    return cut.held_sums ? block.rows() + cut.stages * kStage : work.ws.partial + int64_t(block.index()) * cut.pitch;
  }

  template <class S> static UOT_CODE void load_scalings(const Work& work, int column, S& s) {
    UOT_UNROLL
    for (int k = 0; k < 4; ++k) s.exponent[k] = kNegInf, s.mantissa[k] = 1.0f;
    if (column >= work.task.cut.pitch) return;
    load_four(work.ws.exponent + column, s.exponent);
    load_four(work.ws.mantissa + column, s.mantissa);
  }

  // Sends for the next tile, into a stage that is free.
  template <class Block, class S>
  static UOT_CODE void copy_tile(Block& block, const Work& work, int t, int stage, int panels, int last, S& s) {
    if (s.row < last) {
      const int m = work.task.cut.m, at = place_of(column_at(t, s.tile < panels ? s.tile : s.tile - panels), 0, m);
      UOT_UNROLL
      for (int r = 0; r < R; ++r) {
        const float* const row = work.row(least_of(s.row + r, last - 1));
        float* const to = block.rows() + stage * kStage + 4 * (r * kThreads + t);
        copy_entries(block, t, to, row, at, m, work.task.wide);
      }
      if (++s.tile == 2 * panels) s.tile = 0, s.row += R;
    }
    block.commit(t);
  }

  // The tile that is next in work, to `now`.
  template <class Block, class S>
  static UOT_CODE void take_tile(Block& block, const Work& work, int t, int first, int panel, int last, S& s) {
    const int stages = work.task.cut.stages, m = work.task.cut.m;
    if (stages == 0) {
      UOT_UNROLL
      for (int r = 0; r < R; ++r)
        load_cost<1>(work.row(least_of(first + r, last - 1)), column_at(t, panel), m, work.task.wide, s.now[r]);
      return;
    }
    block.wait_copies(t, stages - 2);
    UOT_UNROLL
    for (int r = 0; r < R; ++r) load_four(block.rows() + s.stage * kStage + 4 * (r * kThreads + t), s.now[r]);
    copy_tile(block, work, t, (s.stage == 0 ? stages : s.stage) - 1, panels_of(work.task.cut), last, s);
    s.stage = s.stage + 1 < stages ? s.stage + 1 : 0;
  }

  // f(panel, column, state) for every panel of every thread.
  template <class Block, class States, class F>
  static UOT_CODE void each_panel(Block& block, const Work& work, States& states, F f) {
    const int panels = panels_of(work.task.cut);
    block.alone(states, [&](int t, auto& s) {
      for (int panel = 0; panel < panels; ++panel) f(t, panel, column_at(t, panel), s);
    });
  }

  // R rows from `first`, number `at` of their unit.
  template <class Block, class States>
  static UOT_CODE void work_tiles(Block& block, const Work& work, States& states, Scale scale, int first, int at,
                                  int width, int last) {
    Shared& shared = block.shared();
    const float damping = float(shared.track.rows.damping);
    block.alone(states, [&](int, auto& s) {
      for (int r = 0; r < R; ++r) s.part[r] = 0;
    });
    each_panel(block, work, states, [&](int t, int panel, int column, auto& s) {
      load_scalings(work, column, s);
      take_tile(block, work, t, first, panel, last, s);
      UOT_UNROLL
      for (int r = 0; r < R; ++r) {
        const float anchor = shared.anchor[at + r];
        UOT_UNROLL
        for (int k = 0; k < 4; ++k)
          s.part[r] = fmaf(exp2_of(power_of(s.now[r][k], scale, s.exponent[k] - anchor)), s.mantissa[k], s.part[r]);
      }
    });
    block.template row_scales<R>(states, kWarps, [&](auto&, int r, float total, bool writer) {
      return group_scale(shared, at + r, width, damping, total, writer);
    });
    float* const sum = sums(block, work);
    each_panel(block, work, states, [&](int t, int panel, int column, auto& s) {
      load_scalings(work, column, s);
      take_tile(block, work, t, first, panel, last, s);
      if (column >= work.task.cut.pitch) return;
      load_four(sum + column, s.sum);
      UOT_UNROLL
      for (int r = 0; r < R; ++r) {
        if (s.scale[r] == 0.0f) continue;  // where powers may be infinite
        const float anchor = shared.anchor[at + r], weight = fminf(s.scale[r], kLargest);
        UOT_UNROLL
        for (int k = 0; k < 4; ++k)
          s.sum[k] = fmaf(exp2_of(power_of(s.now[r][k], scale, s.exponent[k] - anchor)), weight, s.sum[k]);
      }
      store_four(s.sum, sum + column);
    });
  }

  // A row whose expected anchor was wrong; see exact_rows.
  template <class Block, class States>
  static UOT_CODE void exact_row(Block& block, const Work& work, States& states, Scale scale, int i, int at) {
    Shared& shared = block.shared();
    const RowView row(work, shared.track, i);
    const auto load = [&](int column, auto& s) {
      load_scalings(work, column, s);
      load_cost<1>(work.row(i), column, work.task.cut.m, work.task.wide, s.now[0]);
    };
    const auto term = [&](auto& s, int k) {
      const float anchor = s.peak == kNegInf ? 0.0f : ceilf(s.peak);
      const float power = power_of(s.now[0][k], scale, s.exponent[k] - anchor);
      return exp2_of(power > 1.0f ? 1.0f : power);
    };
    block.alone(states, [&](int, auto& s) { s.peak = kNegInf, s.part[0] = 0; });
    each_panel(block, work, states, [&](int, int, int column, auto& s) {
      load(column, s);
      for (int k = 0; k < 4; ++k) s.peak = fmaxf(s.peak, fmaf(s.now[0][k], scale.high, s.exponent[k]));
    });
    block.team_max(states, kWarps);
    each_panel(block, work, states, [&](int, int, int column, auto& s) {
      load(column, s);
      for (int k = 0; k < 4; ++k) s.part[0] = fmaf(term(s, k), s.mantissa[k], s.part[0]);
    });
    block.template row_scales<1>(states, kWarps, [&](auto& s, int, float total, bool writer) {
      const float anchor = s.peak == kNegInf ? 0.0f : ceilf(s.peak);
      if (writer) shared.sum[at] = total, shared.anchor[at] = anchor;
      const Split base = scale_base(shared.track, row, anchor);
      return row_scale(base.exponent, base.mantissa, float(row.damping), total);
    });
    float* const sum = sums(block, work);
    each_panel(block, work, states, [&](int, int, int column, auto& s) {
      if (column >= work.task.cut.pitch) return;
      load(column, s);
      const float weight = s.scale[0] > kLargest ? kLargest : s.scale[0];
      for (int k = 0; k < 4; ++k) sum[column + k] = fmaf(term(s, k), weight, sum[column + k]);
    });
  }

  template <class Block> static UOT_PHASE void run(Block block) {
    begin_pass(block);
    Shared& shared = block.shared();
    const Work& work = shared.work;
    const Layout& cut = work.task.cut;
    const int begin = row_begin(block), last = row_end(block), panels = panels_of(cut);
    if (begin >= cut.n) return;
    const Scale scale = split_scale(shared.track.eps);
    typename Block::template Threads<PanelThread> states(block);
    block.alone(states, [&](int t, auto& s) {
      s.row = begin;
      s.tile = s.stage = 0;
      for (int stage = 0; stage < cut.stages - 1; ++stage) copy_tile(block, work, t, stage, panels, last, s);
    });
    float* const sum = sums(block, work);
    each_panel(block, work, states, [&](int, int, int column, auto&) {
      const float nothing[4] = {};
      if (column < cut.pitch) store_four(nothing, sum + column);
    });
    for (int span = begin; span < last; span += kUnit) {
      const int width = least_of(last - span, kUnit);
      begin_unit(block, work, span, span + width);
      for (int at = 0; at < width; at += R) work_tiles(block, work, states, scale, span + at, at, width, last);
      block.each([&](int) {});  // all sums of rows are there
      for (int at = 0; at < width; ++at)
        if (shared.sum[at] < 0.0f) exact_row(block, work, states, scale, span + at, at);
      block.each([&](int) {});
      finish_rows(block, work, span, width, work.pass, wants_pair(work, shared.track, work.pass),
                  block.index() * cut.units_per_block + (span - begin) / kUnit);
    }
    if (!cut.held_sums) return;
    each_panel(block, work, states, [&](int, int, int column, auto& s) {
      if (column >= cut.pitch) return;
      load_four(sum + column, s.sum);
      store_four(s.sum, work.ws.partial + int64_t(block.index()) * cut.pitch + column);
    });
  }
};

}  // namespace uot::resident
