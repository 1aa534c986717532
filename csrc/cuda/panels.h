// The pass over rows that are wider than threads can hold: panel by panel, for the rows' sums, and once more for the
// columns'.  Every tile, a few rows of a panel, comes through the ring; the second time from the cache.
#pragma once

#include "ring.h"

namespace uot::resident {

struct PanelThread {
  static constexpr int R = rows_together(1);
  float exponent[4], mantissa[4], sum[4], now[R][4];
  float part[R], scale[R], peak;
  int row, tile;  // the next tile to be copied: first row, number in these rows
};

// B: bulk copies fill the ring.
template <bool B> struct PanelSweep {
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
  static UOT_CODE void copy_tile(Block& block, const Work& work, int t, Place to, int last, S& s) {
    if (B && t > 0) return;
    const int m = work.task.cut.m, panels = panels_of(work.task.cut);
    float* const stage = block.rows() + to.stage * kStage;
    if (s.row < last) {
      const int panel = s.tile < panels ? s.tile : s.tile - panels;
      if constexpr (B) {
        const int column = panel * kStep;
        fill_stage(block, work, to, stage, s.row, least_of(last, s.row + R), column, least_of(kStep, m - column), kStep);
      } else {
        const int at = place_of(column_at(t, panel), 0, m);
        UOT_UNROLL
        for (int r = 0; r < R; ++r) {
          const float* const row = work.row(least_of(s.row + r, last - 1));
          copy_entries(block, t, stage + 4 * (r * kThreads + t), row, at, m, work.task.wide);
        }
      }
      if (++s.tile == 2 * panels) s.tile = 0, s.row += R;
    }
    if constexpr (!B) block.commit(t);
  }

  // The tile that is next in work, to `now`; and sends for one more.
  template <class Block, class S>
  static UOT_CODE void take_tile(Block& block, const Work& work, int t, int first, int panel, int last, Place place,
                                 S& s) {
    const int stages = work.task.cut.stages, m = work.task.cut.m, column = column_at(t, panel);
    if (stages == 0) {
      UOT_UNROLL
      for (int r = 0; r < R; ++r)
        load_cost<1>(work.row(least_of(first + r, last - 1)), column, m, work.task.wide, s.now[r]);
      return;
    }
    // With bulk copies there is nothing behind the last column, where the panel's first entries are read again.
    const float* const from = block.rows() + place.stage * kStage + (B && column >= m ? 0 : 4 * t);
    if constexpr (B) block.wait_full(t, place.stage, place.parity);
    else block.wait_copies(t, stages - 2);
    UOT_UNROLL
    for (int r = 0; r < R; ++r) load_four(from + r * kStep, s.now[r]);
    if constexpr (B) block.release(t, place.stage);
    copy_tile(block, work, t, last_place(place, stages), last, s);
  }

  // f(panel, column, state) for every panel of every thread.
  template <class Block, class States, class F>
  static UOT_CODE void each_panel(Block& block, const Work& work, States& states, F f) {
    const int panels = panels_of(work.task.cut);
    for (int panel = 0; panel < panels; ++panel)
      block.alone(states, [&](int t, auto& s) { f(t, panel, column_at(t, panel), s); });
  }

  // The same with the scalings and the next tile of each panel, which are the next to come through the ring.
  template <class Block, class States, class F>
  static UOT_CODE void each_tile(Block& block, const Work& work, States& states, int first, int last, Place& place,
                                 F f) {
    const int stages = work.task.cut.stages;
    for (int panel = 0; panel < panels_of(work.task.cut); ++panel) {
      block.alone(states, [&](int t, auto& s) {
        load_scalings(work, column_at(t, panel), s);
        take_tile(block, work, t, first, panel, last, place, s);
        f(column_at(t, panel), s);
      });
      if (stages > 0) place = next_place(place, stages);
    }
  }

  // R rows from `first`, number `at` of their unit.
  template <class Block, class States>
  static UOT_CODE void work_tiles(Block& block, const Work& work, States& states, Scale scale, int first, int at,
                                  int width, int last, Place& place) {
    Shared& shared = block.shared();
    const float damping = float(shared.track.rows.damping);
    block.alone(states, [&](int, auto& s) {
      for (int r = 0; r < R; ++r) s.part[r] = 0;
    });
    each_tile(block, work, states, first, last, place, [&](int, auto& s) {
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
    each_tile(block, work, states, first, last, place, [&](int column, auto& s) {
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
    const int begin = row_begin(block), last = row_end(block);
    if (begin >= cut.n) return;
    const Scale scale = split_scale(shared.track.eps);
    typename Block::template Threads<PanelThread> states(block);
    Place place = shared.place;
    block.alone(states, [&](int t, auto& s) {
      s.row = begin;
      s.tile = 0;
      Place to = place;
      for (int ahead = 1; ahead < cut.stages; ++ahead, to = next_place(to, cut.stages))
        copy_tile(block, work, t, to, last, s);
    });
    float* const sum = sums(block, work);
    each_panel(block, work, states, [&](int, int, int column, auto&) {
      const float nothing[4] = {};
      if (column < cut.pitch) store_four(nothing, sum + column);
    });
    for (int span = begin; span < last; span += kUnit) {
      const int width = least_of(last - span, kUnit);
      begin_unit(block, work, span, span + width);
      for (int at = 0; at < width; at += R) work_tiles(block, work, states, scale, span + at, at, width, last, place);
      block.each([&](int) {});  // all sums of rows are there
      for (int at = 0; at < width; ++at)
        if (shared.sum[at] < 0.0f) exact_row(block, work, states, scale, span + at, at);
      block.each([&](int) {});
      finish_rows(block, work, span, width, work.pass, wants_pair(work, shared.track, work.pass),
                  block.index() * cut.units_per_block + (span - begin) / kUnit);
    }
    if constexpr (B)
      block.each([&](int t) {
        if (t == 0) shared.place = place;
      });
    if (!cut.held_sums) return;
    each_panel(block, work, states, [&](int, int, int column, auto& s) {
      if (column >= cut.pitch) return;
      load_four(sum + column, s.sum);
      store_four(s.sum, work.ws.partial + int64_t(block.index()) * cut.pitch + column);
    });
  }
};

}  // namespace uot::resident
