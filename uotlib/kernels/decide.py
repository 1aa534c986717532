"""The vector work of a pass, second part: every program of a problem comes to the same decision.  See `measure`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from . import state
from .anderson import products, push
from .numerics import NEG_INF, half_step, item_index
from .penalty import INF, NAN, asked, is_finite, log_sum, potential_of, relative
from .rules import constant, level_ends, next_level, read_side, stopping, translation_of
from .state import own_numbers, own_problem, pitch_of, place_of


@triton.jit
def log_add(x, y):
    """log(e^x + e^y); the larger where that is not finite, or the other -inf."""
    high, low = tl.maximum(x, y), tl.minimum(x, y)
    both = is_finite(high) & is_finite(low)
    return tl.where(both, high + tl.log(1.0 + tl.exp(tl.where(both, low - high, 0.0))), high)


@triton.jit
def certificate(sums, pitch, chunks, PARTS: tl.constexpr):
    """(violation, largest potential, logarithms of what both sides ask for in all), from all chunks in their order."""
    lanes = tl.arange(0, PARTS)
    row_off, row_mass = tl.zeros((PARTS,), tl.float64), tl.zeros((PARTS,), tl.float64)
    col_off, col_mass = tl.zeros((PARTS,), tl.float64), tl.zeros((PARTS,), tl.float64)
    largest, lost = tl.zeros((PARTS,), tl.float64), tl.zeros((PARTS,), tl.float64)
    row_total, col_total = tl.full((PARTS,), NEG_INF, tl.float64), tl.full((PARTS,), NEG_INF, tl.float64)
    for start in tl.range(0, chunks, PARTS, num_stages=1):
        inside = start + lanes < chunks
        some = sums + start + lanes
        row_off += tl.load(some + state.ROW_DEVIATION * pitch, mask=inside, other=0.0)
        row_mass += tl.load(some + state.ROW_MASS * pitch, mask=inside, other=0.0)
        col_off += tl.load(some + state.COL_DEVIATION * pitch, mask=inside, other=0.0)
        col_mass += tl.load(some + state.COL_MASS * pitch, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.load(some + state.ROW_SIZE * pitch, mask=inside, other=0.0))
        largest = tl.maximum(largest, tl.load(some + state.COL_SIZE * pitch, mask=inside, other=0.0))
        lost = tl.maximum(lost, tl.load(some + state.ANY_LOST * pitch, mask=inside, other=0.0))
        row_total = log_add(row_total, tl.load(some + state.ROW_TOTAL * pitch, mask=inside, other=NEG_INF))
        col_total = log_add(col_total, tl.load(some + state.COL_TOTAL * pitch, mask=inside, other=NEG_INF))
    violation = relative(tl.sum(row_off, axis=0), tl.sum(row_mass, axis=0))
    violation += relative(tl.sum(col_off, axis=0), tl.sum(col_mass, axis=0))
    violation = tl.where(tl.max(lost, axis=0) > 0.0, NAN, violation)
    return violation, tl.max(largest, axis=0), log_sum(row_total), log_sum(col_total)


@triton.jit(do_not_specialize=["n", "m", "count", "batch", "chunks", "parity", "passes", "max_iter", "tol_bits"])
def decide_kernel(rows, cols, numbers, copies, sums, gram, problems, answers, n, m, count, batch, chunks, parity,
                  passes, max_iter, tol_bits, PARTS: tl.constexpr, BLOCK: tl.constexpr, OWN: tl.constexpr,
                  ROUNDOFF: tl.constexpr, ENTROPY: tl.constexpr, TEXTBOOK: tl.constexpr, SYNCHRONOUS: tl.constexpr,
                  CHECK_EVERY: tl.constexpr, ANNEAL_FACTOR: tl.constexpr, ANNEAL_VIOLATION: tl.constexpr,
                  ANNEAL_ACCURACY: tl.constexpr, ANNEAL_ORDER: tl.constexpr, ANNEAL_PASSES: tl.constexpr,
                  DEPTH: tl.constexpr, ANDERSON_START: tl.constexpr, SAFEGUARD: tl.constexpr, BACKTRACK: tl.constexpr,
                  SLOTS: tl.constexpr, STAGES: tl.constexpr):
    """Whether the problem ends, with its answers; else where g would go, but for acceleration.

    answers: As `uotlib.outcome.StoredOutcome` has them, but for what `complete` adds.  gram: (A, chunks, SLOTS, SLOTS).
    Grid: (chunks of each problem).
    """
    b, chunk, points = place_of(chunks, BLOCK)
    own = own_numbers(copies, OWN)
    rows, cols, row_pitch, col_pitch, in_a, in_b = own_problem(rows, cols, n, m, count, b, points)
    number_pitch = pitch_of(count, 1)
    tol = tol_bits.to(tl.int64).to(tl.float64, bitcast=True)
    infinite = constant(INF)
    # Every warp loads what one thread will store: all loads come before the first of the stores.
    eps, confirming = tl.load(own + state.OWN_EPS), tl.load(own + state.CONFIRMING)
    last_record, last_record_pass = tl.load(own + state.RECORD), tl.load(own + state.RECORD_PASS).to(tl.int32)
    if not TEXTBOOK:
        last_best, last_level_pass = tl.load(own + state.BEST), tl.load(own + state.LEVEL_PASS).to(tl.int32)
        last_end, last_known = tl.load(own + state.END_SLOT).to(tl.int32), tl.load(own + state.KNOWN).to(tl.int32)
        slot, kept = tl.load(own + state.SLOT).to(tl.int32), tl.load(own + state.COUNT).to(tl.int32)
        has_last, accelerates = tl.load(own + state.HAS_LAST).to(tl.int32), 0
    tl.debug_barrier()
    reg = tl.load(numbers + state.REG * number_pitch + b)
    rate_a = 1.0 / tl.load(numbers + state.TAU_A * number_pitch + b)
    rate_b = 1.0 / tl.load(numbers + state.TAU_B * number_pitch + b)
    one_sided = (rate_b == 0.0) & (rate_a > 0.0)

    sums += b * chunks
    pitch = count.to(tl.int64) * chunks
    violation, largest, row_total, col_total = certificate(sums, pitch, chunks, PARTS)
    at_target = eps <= reg
    steps = passes - 1 if TEXTBOOK else passes
    ended, at_floor, close, record, record_pass = stopping(
        violation, largest, reg, tol, at_target, confirming, one_sided, last_record, last_record_pass, steps, passes,
        max_iter, ROUNDOFF, SYNCHRONOUS, CHECK_EVERY)
    tl.store(own + state.RECORD_PASS, record_pass.to(tl.float64))
    if chunk == 0:
        tl.store(numbers + state.VIOLATION * number_pitch + b, violation)
        tl.store(numbers + state.DONE * number_pitch + b, ended.to(tl.float64))

    reachable = tl.load(cols + state.REACHED * col_pitch + points, mask=in_b, other=1.0) > 0.0
    g = tl.load(cols + (state.G + parity) * col_pitch + points, mask=in_b, other=0.0)
    shown = tl.where(reachable, g, INF)
    if ended:
        item = item_index(problems, b)
        lse = tl.load(rows + (state.ROW_LSE + parity) * row_pitch + points, mask=in_a, other=NEG_INF)
        col_lse = tl.load(cols + (state.COL_LSE + parity) * col_pitch + points, mask=in_b, other=NEG_INF)
        update = lse
        if confirming > 0.0:
            update = tl.load(rows + (state.ROW_LSE + 1 - parity) * row_pitch + points, mask=in_a, other=NEG_INF)
            col_lse = tl.load(cols + (state.COL_LSE + 1 - parity) * col_pitch + points, mask=in_b, other=NEG_INF)
        _, a_log, a_residual, _ = read_side(rows + state.MASS_A * row_pitch, rows + state.LOG_A * row_pitch, points,
                                            in_a, ENTROPY)
        damping_a = 1.0 / (1.0 + eps * rate_a)
        log_v = tl.load(cols + (state.LOG_V + parity) * col_pitch + points, mask=in_b, other=NEG_INF)
        f_at = answers + item * n + points
        g_at = answers + 3 * batch.to(tl.int64) * n + item * m + points
        row_step, col_step = batch.to(tl.int64) * n, batch.to(tl.int64) * m
        tl.store(f_at, potential_of(update, a_residual, eps * damping_a), mask=in_a)
        tl.store(f_at + row_step, half_step(a_log * damping_a if ENTROPY else a_log, damping_a, update), mask=in_a)
        tl.store(f_at + 2 * row_step, lse, mask=in_a)
        tl.store(g_at, shown, mask=in_b)
        tl.store(g_at + col_step, tl.where(reachable, log_v, NEG_INF), mask=in_b)
        tl.store(g_at + 2 * col_step, col_lse, mask=in_b)
        if chunk == 0:
            scalars = answers + 3 * (row_step + col_step) + item
            tl.store(scalars, violation)
            tl.store(scalars + 2 * batch, steps.to(tl.float64))
            tl.store(scalars + 4 * batch, tl.full((), at_floor, tl.float64))
    elif TEXTBOOK:
        tl.store(own + state.RECORD, record)
    else:
        b_mass = tl.load(cols + state.MASS_B * col_pitch + points, mask=in_b, other=0.0)
        answer = tl.load(cols + state.ANSWER * col_pitch + points, mask=in_b, other=0.0)
        translation = translation_of(row_total, col_total, rate_a, rate_b)
        moved = tl.where((b_mass > 0.0) & reachable, answer - translation, g)

        rejected, better = violation > SAFEGUARD * last_best, violation < last_best
        best = tl.where(rejected, INF, tl.where(better, violation, last_best))
        retreat = tl.load(cols + state.BEST_ANSWER * col_pitch + points, mask=in_b, other=0.0)
        retreat += BACKTRACK * (g - retreat)
        if better:
            tl.store(cols + state.BEST_ANSWER * col_pitch + points, moved, mask=in_b)

        level_pass = last_level_pass + 1
        leaving, solved, lower = level_ends(
            violation, eps, reg, tl.load(numbers + state.FIRST_EPS * number_pitch + b),
            tl.load(numbers + state.SPREAD * number_pitch + b), at_target, level_pass, passes, max_iter, ANNEAL_FACTOR,
            ANNEAL_VIOLATION, ANNEAL_ACCURACY, ANNEAL_PASSES)
        following = moved
        if leaving:
            following, end_slot, known = next_level(
                cols + state.ENDS * col_pitch, own + state.SIZES + 2 * SLOTS, col_pitch, last_end, last_known, solved,
                eps, lower, moved, points, in_b, ANNEAL_ORDER)
            tl.store(own + state.KNOWN, known.to(tl.float64))
            tl.store(own + state.END_SLOT, end_slot.to(tl.float64))
            eps = lower
            level_pass, best, record = 0, infinite, infinite
        if rejected | leaving:
            slot, kept, has_last = 0, 0, 0
            following = tl.where(rejected, retreat, following)
        elif DEPTH > 0:
            if level_pass <= ANDERSON_START:
                slot, kept, has_last = 0, 0, 0
            history = cols + (state.ENDS + ANNEAL_ORDER + 1) * col_pitch
            size = push(history, col_pitch, slot, has_last, g, moved, asked(b_mass, shown, rate_b), points, in_b, DEPTH)
            tl.debug_barrier()
            if has_last > 0:
                tl.store(own + state.SIZES + slot, size)
                kept = tl.minimum(kept + 1, DEPTH)
                slot = (slot + 1) % DEPTH
                accelerates = 1
                slots = tl.arange(0, SLOTS)
                place = gram + tl.program_id(0).to(tl.int64) * SLOTS * SLOTS
                found = products(history, col_pitch, kept, chunk * BLOCK, tl.minimum(chunk * BLOCK + BLOCK, m), DEPTH,
                                 SLOTS, STAGES)
                tl.store(place + slots[:, None] * SLOTS + slots[None, :], found)
            has_last = 1
        confirms = one_sided & (close | ((eps <= reg) & (passes == max_iter - 1)))
        following = tl.where(confirms, answer, following)
        tl.store(cols + (state.G + 1 - parity) * col_pitch + points, following, mask=in_b)
        tl.store(own + state.OWN_EPS, eps)
        tl.store(own + state.CONFIRMING, confirms.to(tl.float64))
        tl.store(own + state.BEST, best)
        tl.store(own + state.RECORD, record)
        tl.store(own + state.LEVEL_PASS, tl.full((), level_pass, tl.float64))
        tl.store(own + state.SLOT, tl.full((), slot, tl.float64))
        tl.store(own + state.COUNT, tl.full((), kept, tl.float64))
        tl.store(own + state.HAS_LAST, tl.full((), has_last, tl.float64))
        tl.store(own + state.ACCELERATES, tl.where(confirms, 0.0, tl.full((), accelerates, tl.float64)))
