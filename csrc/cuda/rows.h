// The pass over a block's rows: their log-sum-exps, and what they add to every column.
#pragma once

#include "ring.h"

namespace uot::resident {

// One variant of the pass.  C: groups of 4 columns of a thread; A: rows that are not resident wait in registers
// (Way::kAhead), else they come through the ring, or where there is none just so (Way::kRing).
template <int C, bool A> struct RowThread {
  static constexpr int R = rows_together(C);
  // Rows of the next group on their way: with two chunks the last one has no registers until its group is at work.
  static constexpr int kNext = !A ? 1 : C == 1 ? R : R - 1;
  float exponent[4 * C], mantissa[4 * C], sum[4 * C];  // of v, and the columns' sums
  float now[R][4 * C], next[kNext][4 * C];         // rows in work, and on their way
  float row[4 * C];                                    // a row that is done again
  float part[R], scale[R], peak;
  int column, team;   // its first column, and which rows of a group it has
  bool again;         // whether the team has a row to do again
  const float* from;  // the next row that is not resident
};

// Rows whose expected anchor was wrong, one a team, by their maxima; adds them to the columns.
template <int C, class Block, class States>
UOT_CODE void exact_rows(Block& block, const Work& work, States& states, Scale scale, int at, int team_warps,
                         bool wide) {
  Shared& shared = block.shared();
  const auto anchor_of = [](float peak) { return peak == kNegInf ? 0.0f : ceilf(peak); };
  block.alone(states, [&](int, auto& s) {
    s.peak = kNegInf;
    if (!s.again) return;
    load_cost<C>(work.row(shared.first + at + s.team), s.column, work.task.cut.m, wide, s.row);
    UOT_UNROLL
    for (int e = 0; e < 4 * C; ++e) s.peak = fmaxf(s.peak, fmaf(s.row[e], scale.high, s.exponent[e]));
  });
  block.team_max(states, team_warps);
  block.alone(states, [&](int, auto& s) {
    s.part[0] = 0;
    if (!s.again) return;
    UOT_UNROLL
    for (int e = 0; e < 4 * C; ++e) {
      const float power = power_of(s.row[e], scale, s.exponent[e] - anchor_of(s.peak));
      s.row[e] = exp2_of(power > 1.0f ? 1.0f : power);  // acts where |cost| / eps exceeds 2^24 only; NaN stays
      s.part[0] = fmaf(s.row[e], s.mantissa[e], s.part[0]);
    }
  });
  block.template row_scales<1>(states, team_warps, [&](auto& s, int, float total, bool writer) {
    if (!s.again) return 0.0f;
    const float anchor = anchor_of(s.peak);
    if (writer) shared.sum[at + s.team] = total, shared.anchor[at + s.team] = anchor;
    const RowView row(work, shared.track, shared.first + at + s.team);
    const Split base = scale_base(shared.track, row, anchor);
    return row_scale(base.exponent, base.mantissa, float(row.damping), total);
  });
  block.alone(states, [&](int, auto& s) {
    if (!s.again) return;
    const float weight = s.scale[0] > kLargest ? kLargest : s.scale[0];
    UOT_UNROLL
    for (int e = 0; e < 4 * C; ++e) s.sum[e] = fmaf(s.row[e], weight, s.sum[e]);
  });
}

// A team's R rows from `at` + R team on, whose entries are in `now`; a row whose anchor was no good gets the sum -1.
template <int C, class Block, class States>
UOT_CODE void work_group(Block& block, States& states, Scale scale, float damping, int at, int width, int team_warps) {
  constexpr int R = rows_together(C);
  Shared& shared = block.shared();
  block.alone(states, [&](int, auto& s) {
    UOT_UNROLL
    for (int r = 0; r < R; ++r) {
      const float anchor = shared.anchor[at + R * s.team + r];
      float part = 0;
      UOT_UNROLL
      for (int e = 0; e < 4 * C; ++e) {
        s.now[r][e] = exp2_of(power_of(s.now[r][e], scale, s.exponent[e] - anchor));
        part = fmaf(s.now[r][e], s.mantissa[e], part);
      }
      s.part[r] = part;
    }
  });
  block.template row_scales<R>(states, team_warps, [&](auto& s, int r, float total, bool writer) {
    return group_scale(shared, at + R * s.team + r, width, damping, total, writer);
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

// Phase A of a pass.  B: bulk copies fill the ring.
template <int C, bool A, bool B = false> struct RowSweep {
  static constexpr int R = rows_together(C), kStage = 4 * C * R * kThreads, kNext = RowThread<C, A>::kNext;
  static constexpr bool kTeams = C == 1 && !A;  // whether rows may be narrower than the block

  // Copies a thread's entries of the group of rows from `first` on to a stage of the ring.
  template <class Block, class S>
  static UOT_CODE void copy_group(Block& block, const Work& work, int t, const S& s, int first, int end, float* stage) {
    const Layout& cut = work.task.cut;
    UOT_UNROLL
    for (int r = 0; r < R; ++r) {
      const float* const row = work.row(least_of(first + R * s.team + r, end - 1));
      UOT_UNROLL
      for (int c = 0; c < C; ++c) {
        float* const to = stage + 4 * ((r * C + c) * kThreads + t);
        copy_entries(block, t, to, row, place_of(s.column, c, cut.m), cut.m, work.task.wide);
      }
    }
  }

  template <class Block> static UOT_CODE void run(Block block) {
    begin_pass(block);
    Shared& shared = block.shared();
    const Work& work = shared.work;
    const Track& track = shared.track;
    const Layout& cut = work.task.cut;
    const Workspace& ws = work.ws;
    const int begin = row_begin(block);
    if (begin >= cut.n) return;
    const Scale scale = split_scale(track.eps);
    const float damping = float(track.rows.damping);
    typename Block::template Threads<RowThread<C, A>> states(block);
    const int resident_end = begin + cut.resident_rows;
    const int team_warps = kTeams ? cut.team_warps : kWarps, together = kTeams ? cut.together : R;
    const int stages = A ? 0 : cut.stages, last = row_end(block);
    const int64_t stride = work.task.row_stride;
    // Behind the last row it is read again, for nothing.
    const auto load_next = [&](int row, int count, int stop, auto& s, float (*out)[4 * C]) {
      UOT_UNROLL
      for (int r = 0; r < count; ++r) {
        load_cost<C>(s.from, s.column, cut.m, true, out[r]);
        s.from += row + r + 1 < stop ? stride : 0;
      }
    };
    float* const ring = block.rows() + int64_t(cut.resident_rows) * cut.pitch;
    int stage = 0;  // of the ring: where the next group of rows lies
    Place place = shared.place;
    block.alone(states, [&](int t, auto& s) {
      s.team = kTeams ? t / (32 * team_warps) : 0;
      s.column = column_of(t - 32 * team_warps * s.team, 0);
      if constexpr (B) {
        if (t > 0) return;
        Place to = place;
        for (int first = resident_end, k = 1; k < stages && first < last; first += together, ++k) {
          fill_stage(block, work, to, ring + to.stage * kStage, first, least_of(last, first + together), 0, cut.m,
                     cut.pitch);
          to = next_place(to, stages);
        }
      } else {
        for (int ahead = 0; ahead < stages - 1; ++ahead) {
          const int first = resident_end + ahead * together;
          if (first < last) copy_group(block, work, t, s, first, last, ring + ahead * kStage);
          block.commit(t);
        }
      }
    });

    // What is needed behind the loop over groups is read anew there: no register holds it meanwhile.
    for (int span = begin; span < row_end(block); span = shared.first + kUnit) {
      const int stop = least_of(row_end(block), span + kUnit);
      const int resident = resident_end < span ? span : least_of(stop, resident_end);
      begin_unit(block, work, span, stop);
      block.alone(states, [&](int, auto& s) {
        anew(s.column);
        UOT_UNROLL
        for (int c = 0; c < C; ++c) {
          const int j = s.column + c * kStep;
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
      if constexpr (A)
        block.alone(states, [&](int, auto& s) {
          s.from = work.row(least_of(streamed, stop - 1));
          load_next(streamed, kNext, stop, s, s.next);
        });
      while (held < resident || streamed < stop) {
        const bool from_shared = held < resident && (held - span <= streamed - resident || streamed >= stop);
        block.alone(states, [&](int t, auto& s) {
          const int mine = R * s.team;
          if (from_shared) {
            UOT_UNROLL
            for (int r = 0; r < R; ++r)
              load_held<C>(block.rows() + (least_of(held + mine + r, resident - 1) - begin) * cut.pitch, s.column,
                           cut.m, s.now[r]);
          } else if constexpr (A) {
            UOT_UNROLL
            for (int r = 0; r < kNext; ++r) {
              UOT_UNROLL
              for (int e = 0; e < 4 * C; ++e) s.now[r][e] = s.next[r][e];
            }
            load_next(streamed + kNext, R - kNext, stop, s, s.now + kNext);
            load_next(streamed + R, kNext, stop, s, s.next);
          } else if constexpr (B) {
            block.wait_full(t, place.stage, place.parity);
            // Behind the last row lies what was there before, for nothing.
            UOT_UNROLL
            for (int r = 0; r < R; ++r)
              load_held<C>(ring + place.stage * kStage + (mine + r) * cut.pitch, s.column, cut.m, s.now[r]);
            block.release(t, place.stage);
            const int first = streamed + (stages - 1) * together;
            if (t == 0 && first < last) {
              const Place to = last_place(place, stages);
              fill_stage(block, work, to, ring + to.stage * kStage, first, least_of(last, first + together), 0, cut.m,
                         cut.pitch);
            }
          } else if (stages > 0) {
            block.wait_copies(t, stages - 2);
            UOT_UNROLL
            for (int e = 0; e < R * C; ++e)
              load_four(ring + stage * kStage + 4 * (e * kThreads + t), s.now[e / C] + e % C * 4);
            // The stage before, whose rows have been worked on, gets the group that comes last.
            const int free = (stage == 0 ? stages : stage) - 1, first = streamed + (stages - 1) * together;
            if (first < last) copy_group(block, work, t, s, first, last, ring + free * kStage);
            block.commit(t);
          } else {
            UOT_UNROLL
            for (int r = 0; r < R; ++r)
              load_cost<C>(work.row(least_of(streamed + mine + r, stop - 1)), s.column, cut.m, work.task.wide,
                           s.now[r]);
          }
        });
        const int first = from_shared ? held : streamed;
        if constexpr (B) {
          if (!from_shared) place = next_place(place, stages);
        } else if (!from_shared) {
          stage = stage + 1 < stages ? stage + 1 : 0;
        }
        work_group<C>(block, states, scale, damping, first - span, (from_shared ? resident : stop) - span, team_warps);
        (from_shared ? held : streamed) += together;
      }
      block.each([&](int) {});  // all sums of rows are there
      block.alone(states, [&](int, auto& s) { anew(s.column); });
      const int width = least_of(row_end(block) - shared.first, kUnit);
      for (int at = 0; at < width; at += kWarps / team_warps) {
        const auto is_bad = [&](int row) { return row < width && shared.sum[row] < 0.0f; };
        if (kTeams ? !block.any(states, [&](int, auto& s) { return is_bad(at + s.team); }) : !is_bad(at)) continue;
        block.alone(states, [&](int, auto& s) { s.again = kTeams ? is_bad(at + s.team) : true; });
        exact_rows<C>(block, work, states, scale, at, team_warps, A || work.task.wide);
      }
      block.each([&](int) {});
      block.alone(states, [&](int, auto& s) {
        float* const out = ws.partial + int64_t(block.index() * (kWarps / team_warps) + s.team) * cut.pitch;
        UOT_UNROLL
        for (int c = 0; c < C; ++c)
          if (const int j = s.column + c * kStep; j < cut.pitch)
            add_four(s.sum + 4 * c, shared.first == row_begin(block), out + j);
      });
      finish_rows(block, work, shared.first, width, work.pass, wants_pair(work, track, work.pass),
                  block.index() * cut.units_per_block + (shared.first - row_begin(block)) / kUnit);
    }
    if constexpr (B)
      block.each([&](int t) {
        if (t == 0) shared.place = place;
      });
  }
};

}  // namespace uot::resident
