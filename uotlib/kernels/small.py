r"""A whole solve inside one program: `uotlib.solver` for one problem of the batch, from the start to its certificate.

A program holds the vectors of its problem in registers, padded to COLS on both sides.  Rows of the cost come in tiles
of ROWS once a pass: after the first from the multiprocessor's own L1, which has room for 128 x 128 and more, or from
L2.  So do the row log-sum-exps between passes, the history of the acceleration and the ends of the annealing's levels,
by way of the answers and of a workspace.  Nothing is shared between programs and every sum has a fixed order: the same
bits each run, whatever else the batch holds.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .anderson import correction, push
from .numerics import LOWEST, NEG_INF, half_step, item_index, multiple_of, natural_log, scale_of, split_exponent
from .penalty import (
    INF,
    NAN,
    asked,
    is_finite,
    largest_of,
    log_total,
    potential_of,
    side_gap,
    side_violation,
)
from .rules import (
    constant,
    deadline,
    level_ends,
    log_scaling_of,
    next_level,
    read_side,
    stopping,
    tolerance_of,
    translation_of,
)
from .update import column_terms, raise_columns, row_terms, weak_columns

#: As in uotlib.operators.
SAMPLED_ROWS = tl.constexpr(32)


@triton.jit
def read_rows(tile, rows, points, stride_n, n, m):
    """Some rows of the cost."""
    inside = (rows < n)[:, None] & (points < m)[None, :]
    return tl.load(tile + rows.to(tl.int64)[:, None] * stride_n, mask=inside, other=0.0)


@triton.jit
def survey(tile, a, massive_b, flags, points, stride_n, n, m, ROWS: tl.constexpr, STAGES: tl.constexpr):
    """(which rows reach a column with mass, which columns a row with mass, half the spread of sampled rows).

    ``a`` and ``flags`` are addresses: of the rows' masses, and of n numbers that are overwritten.
    """
    dtype: tl.constexpr = tile.dtype.element_ty
    columns = points < 0
    high, low = tl.full((ROWS,), NEG_INF, dtype), tl.full((ROWS,), INF, dtype)
    stride = tl.maximum(1, n // SAMPLED_ROWS)
    for row in tl.range(0, n, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        c = read_rows(tile, rows, points, stride_n, n, m)
        massive = tl.load(a + rows, mask=rows < n, other=0.0) > 0.0
        allowed = is_finite(c) & (rows < n)[:, None] & (points < m)[None, :]
        reach = tl.max((allowed & massive_b[None, :]).to(tl.int32), axis=1)
        tl.store(flags + rows, reach.to(tl.float64), mask=rows < n)
        columns = columns | (tl.max((allowed & massive[:, None]).to(tl.int32), axis=0) > 0)
        sampled = allowed & (rows % stride == 0)[:, None]
        high = tl.maximum(high, tl.max(tl.where(sampled, c, NEG_INF), axis=1))
        low = tl.minimum(low, tl.min(tl.where(sampled, c, INF), axis=1))
    tl.debug_barrier()
    spread = (tl.max(high, axis=0) - tl.min(low, axis=0)).to(tl.float64) * 0.5
    reached = tl.load(flags + points, mask=points < n, other=0.0) > 0.0
    return reached, columns, tl.where(is_finite(spread), spread, 0.0)


@triton.jit
def sweep(tile, log_a, eps, damping, log_v, shift, row_lse, points, stride_n, n, m, ROWS: tl.constexpr,
          STAGES: tl.constexpr, ENTROPY: tl.constexpr):
    """Columns' sums of the new plan, float64; the rows' log-sum-exps go to ``row_lse``, an address."""
    dtype: tl.constexpr = tile.dtype.element_ty
    scale_high, scale_low = scale_of(eps, dtype)
    exponent, mantissa = split_exponent(log_v, dtype)
    total = tl.zeros_like(log_v)
    for row in tl.range(0, n, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        c = read_rows(tile, rows, points, stride_n, n, m)
        offset = tl.load(log_a + rows, mask=rows < n, other=NEG_INF)
        if ENTROPY:
            offset *= damping
        lse, p, anchor = row_terms(c, scale_high, scale_low, exponent, mantissa)
        tl.store(row_lse + rows, lse, mask=rows < n)
        total += column_terms(lse, p, anchor, offset, damping, shift).to(tl.float64)
    _, mantissa = split_exponent(log_v, tl.float64)
    return total * mantissa


@triton.jit
def column_lse(tile, log_u, eps, points, stride_n, n, m, ROWS: tl.constexpr, COLS: tl.constexpr,
               STAGES: tl.constexpr):
    """Exact log-sum-exps of the columns, with a running maximum; ``log_u`` is an address."""
    dtype: tl.constexpr = tile.dtype.element_ty
    scale_high, scale_low = scale_of(eps, dtype)
    anchor, total = tl.full((COLS,), LOWEST, dtype), tl.zeros((COLS,), dtype)
    for row in tl.range(0, n, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        c = read_rows(tile, rows, points, stride_n, n, m)
        log_u_i = tl.load(log_u + rows, mask=rows < n, other=NEG_INF)
        anchor, total = raise_columns(c, scale_high, scale_low, log_u_i, anchor, total)
    return natural_log(anchor, total)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "batch", "max_iter", "tol_bits"])
def small_solve_kernel(cost, items, mass_a, log_a, tau_a, mass_b, log_b, tau_b, reg, start, answers, work,
                       stride_b, stride_n, n, m, batch, max_iter, tol_bits,
                       ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr,
                       TEXTBOOK: tl.constexpr, ENTROPY: tl.constexpr, SYNCHRONOUS: tl.constexpr,
                       CHECK_EVERY: tl.constexpr, ANNEAL_START: tl.constexpr, ANNEAL_FACTOR: tl.constexpr,
                       ANNEAL_VIOLATION: tl.constexpr, ANNEAL_ACCURACY: tl.constexpr, ANNEAL_ORDER: tl.constexpr,
                       ANNEAL_PASSES: tl.constexpr, DEPTH: tl.constexpr, ANDERSON_START: tl.constexpr,
                       SAFEGUARD: tl.constexpr, BACKTRACK: tl.constexpr, TRUST_REGION: tl.constexpr,
                       SLOTS: tl.constexpr):
    """Grid: (batch,).  ``answers`` as `uotlib.outcome.StoredOutcome` has them; max_iter below 2^31.

    ``tol_bits`` are those of tol as a float64, which would arrive as float32; negative for the default.
    """
    dtype: tl.constexpr = cost.dtype.element_ty
    ROUNDOFF: tl.constexpr = 2.0**-24 if dtype == tl.float32 else 2.0**-53
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    b = tl.program_id(0).to(tl.int64)
    points = tl.arange(0, COLS)
    in_a, in_b = points < n, points < m
    mass_a += b * n
    log_a += b * n
    mass_b += b * m
    log_b += b * m
    tile = cost + item_index(items, b) * multiple_of(stride_b, VECTOR) + points[None, :]
    rows_out = answers + b * n
    cols_out = answers + 3 * batch.to(tl.int64) * n + b * m
    row_step, col_step = batch.to(tl.int64) * n, batch.to(tl.int64) * m
    log_u_at, lse_at = rows_out + row_step, rows_out + 2 * row_step

    target_reg = tl.load(reg + b)
    a_mass, a_log, a_residual, _ = read_side(mass_a, log_a, points, in_a, ENTROPY)
    b_mass, b_log, b_residual, b_reference = read_side(mass_b, log_b, points, in_b, ENTROPY)
    rate_a, rate_b = 1.0 / tl.load(tau_a + b), 1.0 / tl.load(tau_b + b)
    one_sided = (rate_b == 0.0) & (rate_a > 0.0)
    shift = 0.5 * (tl.log(tl.sum(a_mass, axis=0)) + tl.log(tl.sum(b_mass, axis=0)))
    shift = tl.where(is_finite(shift), shift, 0.0)
    tol = tol_bits.to(tl.int64).to(tl.float64, bitcast=True)
    infinite = constant(INF)

    row_reach, col_reach, spread = survey(tile, mass_a, b_mass > 0.0, lse_at, points, stride_n, n, m, ROWS,
                                          STAGES)
    if start is None:
        g = tl.zeros_like(b_log)
    else:
        g = tl.load(start + b * m + points, mask=in_b, other=0.0)
        spread = constant(0.0)
    passes = max_iter * 0
    first_eps = tl.maximum(target_reg, ANNEAL_START * spread)
    eps = target_reg
    if not TEXTBOOK:
        eps = deadline(first_eps, target_reg, passes, max_iter)
    best_answer = work + b * ((2 * DEPTH + 5 + ANNEAL_ORDER) * m + ANNEAL_ORDER + 1 + SLOTS)
    ends = best_answer + m
    ends_eps = ends + (ANNEAL_ORDER + 1) * m
    history = ends_eps + ANNEAL_ORDER + 1
    reachable = points >= 0
    lse, col_lse = a_log, b_log
    tl.store(best_answer + points, g, mask=in_b)
    best, record, violation = infinite, infinite, infinite
    record_pass, level_pass, known, end_slot = 0, 0, 0, 0
    slot, count, has_last = 0, 0, 0
    lost, confirming, at_floor, done = 0, 0, 0, 0
    if TEXTBOOK:
        confirming = 1
    lse_before, col_lse_before = lse, col_lse

    while done == 0:
        # What was read of the answers and the workspace is overwritten from here on.
        tl.debug_barrier()
        lse_before, col_lse_before = lse, col_lse
        damping_a, damping_b = 1.0 / (1.0 + eps * rate_a), 1.0 / (1.0 + eps * rate_b)
        a_mass, a_log, a_residual, _ = read_side(mass_a, log_a, points, in_a, ENTROPY)
        b_mass, b_log, b_residual, b_reference = read_side(mass_b, log_b, points, in_b, ENTROPY)
        live = (b_mass > 0.0) & reachable
        log_v = log_scaling_of(g, b_reference, live, eps)
        if TEXTBOOK and ENTROPY:
            # Textbook v_0 has an entry for every column, massless ones too; from v_1 on those are 0.
            log_v = tl.where(passes == 0, tl.where(in_b, g / eps, NEG_INF), log_v)
        mass = sweep(tile, log_a, eps, damping_a, log_v, shift, lse_at, points, stride_n, n, m, ROWS,
                     STAGES, ENTROPY)
        tl.debug_barrier()
        lse = tl.load(lse_at + points, mask=in_a, other=NEG_INF)
        offset = a_log * damping_a if ENTROPY else a_log
        log_u = half_step(offset, damping_a, lse)
        alive = log_v > NEG_INF
        col_lse = tl.where(alive, tl.log(mass) + shift - tl.where(alive, log_v, 0.0), NEG_INF)
        row_mass = tl.exp(log_u + lse)
        heaviest = tl.max(tl.where(row_mass == row_mass, row_mass, 0.0), axis=0) * tl.exp(-shift)
        weak = weak_columns(alive, mass, heaviest, n)
        if tl.sum(weak.to(tl.int32), axis=0) > 0:
            tl.store(log_u_at + points, log_u, mask=in_a)
            tl.debug_barrier()
            exact = column_lse(tile, log_u_at, eps, points, stride_n, n, m, ROWS, COLS, STAGES)
            col_lse = tl.where(weak, exact, col_lse)
        passes += 1

        answer = potential_of(col_lse, b_residual, eps * damping_b)
        reachable = reachable & (is_finite(answer) | ~live)
        # A point that has allowed pairs and found none: its numbers left the range of the type.
        missing = tl.sum(((lse == NEG_INF) & (a_mass > 0.0) & row_reach).to(tl.int32), axis=0)
        missing += tl.sum((live & ~reachable & col_reach).to(tl.int32), axis=0)
        lost = tl.maximum(lost, tl.minimum(missing, 1))
        live = live & reachable
        answer = tl.where(live, answer, g)
        shown = tl.where(reachable, g, INF)
        log_v = tl.where(reachable, log_v, NEG_INF)

        # The pair that is certified: (f, g), or while confirming (f of the pass before, g).
        f = potential_of(lse, a_residual, eps * damping_a)
        f_pair, log_u_pair, col_pair = f, log_u, col_lse
        if confirming > 0:
            f_pair = potential_of(lse_before, a_residual, eps * damping_a)
            log_u_pair = half_step(offset, damping_a, lse_before)
            col_pair = col_lse_before
        violation = side_violation(tl.exp(log_u_pair + lse), asked(a_mass, f_pair, rate_a))
        violation += side_violation(tl.exp(log_v + col_pair), asked(b_mass, shown, rate_b))
        violation = tl.where(lost > 0, NAN, violation)

        largest = largest_of(f_pair if TEXTBOOK else f, shown)
        at_target = eps <= target_reg
        steps = passes - 1 if TEXTBOOK else passes
        ended, at_floor, close, record, record_pass = stopping(
            violation, largest, target_reg, tol, at_target, confirming, one_sided, record, record_pass, steps, passes,
            max_iter, ROUNDOFF, SYNCHRONOUS, CHECK_EVERY)
        done = ended.to(tl.int32)

        if done == 0:
            if TEXTBOOK:
                g = answer
            else:
                col_total = log_total(b_log, tl.where(reachable, answer, INF), rate_b)
                translation = translation_of(log_total(a_log, f, rate_a), col_total, rate_a, rate_b)
                moved = tl.where(live, answer - translation, g)

                rejected, better = violation > SAFEGUARD * best, violation < best
                best = tl.where(rejected, INF, tl.where(better, violation, best))
                retreat = tl.load(best_answer + points, mask=in_b, other=0.0)
                retreat += BACKTRACK * (g - retreat)
                if better:
                    tl.store(best_answer + points, moved, mask=in_b)

                level_pass += 1
                leaving, solved, lower = level_ends(
                    violation, eps, target_reg, first_eps, spread, at_target, level_pass, passes, max_iter,
                    ANNEAL_FACTOR, ANNEAL_VIOLATION, ANNEAL_ACCURACY, ANNEAL_PASSES)
                following = moved
                if leaving:
                    following, end_slot, known = next_level(ends, ends_eps, m, end_slot, known, solved, eps, lower,
                                                            moved, points, in_b, ANNEAL_ORDER)
                    eps = lower
                    level_pass, best, record = 0, infinite, infinite
                if rejected | leaving:
                    slot, count, has_last = 0, 0, 0
                    following = tl.where(rejected, retreat, following)
                elif DEPTH > 0:
                    if level_pass <= ANDERSON_START:
                        slot, count, has_last = 0, 0, 0
                    push(history, m, slot, has_last, g, moved, asked(b_mass, shown, rate_b), points, in_b, DEPTH)
                    tl.debug_barrier()
                    if has_last > 0:
                        count = tl.minimum(count + 1, DEPTH)
                        slot = (slot + 1) % DEPTH
                        extra = correction(history, m, count, points, in_b, m, DEPTH, SLOTS)
                        reach = TRUST_REGION * eps / tl.maximum(tl.max(tl.abs(extra), axis=0), constant(1e-300))
                        following = moved - extra * tl.minimum(reach, 1.0)
                    has_last = 1
                final = passes == max_iter - 1
                confirms = one_sided & (close | ((eps <= target_reg) & final))
                confirming = confirms.to(tl.int32)
                g = tl.where(confirms, answer, following)

    # The answers; columns that took no part get the potential that f asks for.
    update, col_pair = lse, col_lse
    if confirming > 0:
        update, col_pair = lse_before, col_lse_before
    damping_a, damping_b = 1.0 / (1.0 + eps * rate_a), 1.0 / (1.0 + eps * rate_b)
    a_mass, a_log, a_residual, _ = read_side(mass_a, log_a, points, in_a, ENTROPY)
    b_mass, b_log, b_residual, b_reference = read_side(mass_b, log_b, points, in_b, ENTROPY)
    log_v = log_scaling_of(g, b_reference, (b_mass > 0.0) & reachable, eps)
    shown = tl.where(reachable, g, INF)
    log_u = half_step(a_log * damping_a if ENTROPY else a_log, damping_a, update)
    f = potential_of(update, a_residual, eps * damping_a)
    tl.debug_barrier()
    tl.store(rows_out + points, f, mask=in_a)
    tl.store(log_u_at + points, log_u, mask=in_a)
    tl.store(lse_at + points, lse, mask=in_a)
    tl.debug_barrier()
    idle = (log_v == NEG_INF) & in_b
    if tl.sum(idle.to(tl.int32), axis=0) > 0:
        exact = column_lse(tile, log_u_at, eps, points, stride_n, n, m, ROWS, COLS, STAGES)
        col_pair = tl.where(idle, exact, col_pair)
        shown = tl.where(idle, potential_of(exact, b_residual, eps * damping_b), shown)
    tl.store(cols_out + points, shown, mask=in_b)
    tl.store(cols_out + col_step + points, log_v, mask=in_b)
    tl.store(cols_out + 2 * col_step + points, col_pair, mask=in_b)
    gap = side_gap(tl.exp(log_u + lse), asked(a_mass, f, rate_a), rate_a)
    gap += side_gap(tl.exp(log_v + col_pair), asked(b_mass, shown, rate_b), rate_b)
    largest = largest_of(f, shown)
    converged = violation <= tolerance_of(tol, ROUNDOFF * largest / target_reg)
    scalars = answers + 3 * (row_step + col_step) + b
    steps = passes - 1 if TEXTBOOK else passes
    tl.store(scalars, violation)
    tl.store(scalars + batch, tl.where(violation == violation, gap, violation))
    tl.store(scalars + 2 * batch, steps.to(tl.float64))
    tl.store(scalars + 3 * batch, converged.to(tl.float64))
    tl.store(scalars + 4 * batch, ((at_floor > 0) & ~converged).to(tl.float64))
