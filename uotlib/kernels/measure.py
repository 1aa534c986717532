"""The vector work of a pass, first part: what the columns answer, and what each chunk adds to the certificate.

Every problem's points are cut in chunks of BLOCK, a program each, and what one pass leaves to the next stays in device
memory (`state`).  Three launches are `uotlib.solver` between two reads of the cost, for problems of any size:

* `measure.measure_kernel`;
* `decide.decide_kernel`: every program adds up all chunks in their order and comes to the same decision.  A problem
  that ends has its answers written; else the chunk's history grows, and its products for the acceleration are left;
* `move.move_kernel`: every program solves the normal equations, and moves its chunk.

No program reads what another one of its launch writes.  The textbook needs the first alone where nothing is looked at.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from . import state
from .columns import merged_lse
from .numerics import NEG_INF, half_step, item_index
from .penalty import INF, asked, is_finite, log_total, potential_of, size_of
from .rules import log_scaling_of, read_side
from .state import own_numbers, own_problem, pitch_of, place_of, write_weights


@triton.jit(do_not_specialize=["n", "m", "count", "chunks", "parts", "parity"])
def measure_kernel(rows, cols, numbers, copies, sums, anchors, totals, mask, beta, items, n, m, count, chunks, parts,
                   parity, PARTS: tl.constexpr, BLOCK: tl.constexpr, OWN: tl.constexpr, ENTROPY: tl.constexpr,
                   TEXTBOOK: tl.constexpr, MEASURE: tl.constexpr):
    """What the columns answer, who has turned out unreachable, and the chunk's part of the certificate.

    With ``anchors`` and ``totals`` (A, parts, m) the columns' log-sum-exps are merged first: all of them, or those
    that a mask (A, m) flags.  The textbook moves on to the answer at once.  Grid: (chunks of each problem).
    """
    b, chunk, points = place_of(chunks, BLOCK)
    own = own_numbers(copies, OWN)
    rows, cols, row_pitch, col_pitch, in_a, in_b = own_problem(rows, cols, n, m, count, b, points)
    number_pitch = pitch_of(count, 1)
    eps = tl.load(own + state.OWN_EPS)
    rate_a = 1.0 / tl.load(numbers + state.TAU_A * number_pitch + b)
    rate_b = 1.0 / tl.load(numbers + state.TAU_B * number_pitch + b)
    damping_a, damping_b = 1.0 / (1.0 + eps * rate_a), 1.0 / (1.0 + eps * rate_b)

    lse_at = cols + (state.COL_LSE + parity) * col_pitch + points
    col_lse = tl.load(lse_at, mask=in_b, other=NEG_INF)
    if anchors is not None:
        wanted = in_b
        if mask is not None:
            wanted = in_b & (tl.load(mask + b * m + points, mask=in_b, other=0) != 0)
        if tl.max(wanted.to(tl.int32), axis=0) > 0:
            merged = merged_lse(anchors, totals, b, parts, m, points, wanted, PARTS, BLOCK)
            if beta is not None:
                merged -= tl.load(beta + item_index(items, b) * m + points, mask=in_b, other=0.0) / eps
            col_lse = tl.where(wanted, merged, col_lse)
            tl.store(lse_at, col_lse, mask=in_b)

    b_mass, b_log, b_residual, b_reference = read_side(
        cols + state.MASS_B * col_pitch, cols + state.LOG_B * col_pitch, points, in_b, ENTROPY)
    g = tl.load(cols + (state.G + parity) * col_pitch + points, mask=in_b, other=0.0)
    reachable = tl.load(cols + state.REACHED * col_pitch + points, mask=in_b, other=1.0) > 0.0
    live = (b_mass > 0.0) & reachable
    answer = potential_of(col_lse, b_residual, eps * damping_b)
    reachable = reachable & (is_finite(answer) | ~live)
    # A point that has allowed pairs and found none: its numbers left the range of the type.
    allowed = tl.load(cols + state.COL_REACH * col_pitch + points, mask=in_b, other=0.0) > 0.0
    missing = tl.sum((live & ~reachable & allowed).to(tl.int32), axis=0)
    live = live & reachable
    answer = tl.where(live, answer, g)
    tl.store(cols + state.ANSWER * col_pitch + points, answer, mask=in_b)
    tl.store(cols + state.REACHED * col_pitch + points, reachable.to(tl.float64), mask=in_b)

    lse = tl.load(rows + (state.ROW_LSE + parity) * row_pitch + points, mask=in_a, other=NEG_INF)
    a_mass, a_log, a_residual, _ = read_side(
        rows + state.MASS_A * row_pitch, rows + state.LOG_A * row_pitch, points, in_a, ENTROPY)
    allowed = tl.load(rows + state.ROW_REACH * row_pitch + points, mask=in_a, other=0.0) > 0.0
    missing += tl.sum(((lse == NEG_INF) & (a_mass > 0.0) & allowed).to(tl.int32), axis=0)
    lost = tl.maximum(tl.load(own + state.LOST), tl.minimum(missing, 1).to(tl.float64))
    tl.store(own + state.LOST, lost)

    if MEASURE:
        log_v = tl.load(cols + (state.LOG_V + parity) * col_pitch + points, mask=in_b, other=NEG_INF)
        log_v = tl.where(reachable, log_v, NEG_INF)
        shown = tl.where(reachable, g, INF)
        # The pair that is certified: (f, g), or while confirming (f of the pass before, g).
        update, col_pair = lse, col_lse
        if tl.load(own + state.CONFIRMING) > 0.0:
            update = tl.load(rows + (state.ROW_LSE + 1 - parity) * row_pitch + points, mask=in_a, other=NEG_INF)
            col_pair = tl.load(cols + (state.COL_LSE + 1 - parity) * col_pitch + points, mask=in_b, other=NEG_INF)
        log_u = half_step(a_log * damping_a if ENTROPY else a_log, damping_a, update)
        f_pair = potential_of(update, a_residual, eps * damping_a)
        f = potential_of(lse, a_residual, eps * damping_a)
        row_mass, col_mass = tl.exp(log_u + lse), tl.exp(log_v + col_pair)
        sums += b * chunks + chunk
        pitch = count.to(tl.int64) * chunks
        row_off = tl.abs(row_mass - asked(a_mass, f_pair, rate_a))
        col_off = tl.abs(col_mass - asked(b_mass, shown, rate_b))
        tl.store(sums + state.ROW_DEVIATION * pitch, tl.sum(row_off, axis=0))
        tl.store(sums + state.ROW_MASS * pitch, tl.sum(row_mass, axis=0))
        tl.store(sums + state.COL_DEVIATION * pitch, tl.sum(col_off, axis=0))
        tl.store(sums + state.COL_MASS * pitch, tl.sum(col_mass, axis=0))
        tl.store(sums + state.ROW_SIZE * pitch, size_of(f_pair if TEXTBOOK else f))
        tl.store(sums + state.COL_SIZE * pitch, size_of(tl.where(in_b, shown, 0.0)))
        tl.store(sums + state.ANY_LOST * pitch, lost)
        tl.store(sums + state.ROW_TOTAL * pitch, log_total(a_log, f, rate_a))
        tl.store(sums + state.COL_TOTAL * pitch, log_total(b_log, tl.where(reachable, answer, INF), rate_b))
    if TEXTBOOK:
        tl.store(cols + (state.G + 1 - parity) * col_pitch + points, answer, mask=in_b)
        log_v = log_scaling_of(answer, b_reference, live, eps)
        write_weights(cols, col_pitch, parity, log_v, beta, items, b, m, eps, points, in_b)
