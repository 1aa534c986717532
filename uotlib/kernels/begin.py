"""Before the first pass: the state of every problem, from its masses, its penalties and a column potential."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from . import state
from .penalty import INF, is_finite
from .rules import deadline, log_scaling_of
from .state import own_numbers, own_problem, pitch_of, place_of, write_weights


@triton.jit
def log_of_total(mass, points, BLOCK: tl.constexpr):
    """Of the masses at an address, added up in their order."""
    total = tl.zeros((BLOCK,), tl.float64)
    for start in tl.range(0, points, BLOCK, num_stages=1):
        some = start + tl.arange(0, BLOCK)
        total += tl.load(mass + some, mask=some < points, other=0.0)
    return tl.log(tl.sum(total, axis=0))


@triton.jit(do_not_specialize=["n", "m", "count", "chunks", "max_iter"])
def begin_kernel(rows, cols, numbers, copies, mass_a, tau_a, mass_b, tau_b, reg, spread, start, row_reach, col_reach,
                 beta, items, n, m, count, chunks, max_iter, BLOCK: tl.constexpr, OWN: tl.constexpr,
                 ENTROPY: tl.constexpr, TEXTBOOK: tl.constexpr, ANNEAL_START: tl.constexpr):
    """``spread`` (A,) and ``start`` (A, m) may be None, for 0; ``copies`` is zeros.

    Grid: (chunks of each problem).
    """
    b, chunk, points = place_of(chunks, BLOCK)
    own = own_numbers(copies, OWN)
    rows, cols, row_pitch, col_pitch, in_a, in_b = own_problem(rows, cols, n, m, count, b, points)
    number_pitch = pitch_of(count, 1)
    shift = 0.5 * (log_of_total(mass_a + b * n, n, BLOCK) + log_of_total(mass_b + b * m, m, BLOCK))
    strength_a, strength_b = tl.load(tau_a + b), tl.load(tau_b + b)
    target = tl.load(reg + b)
    scale = target * 0.0
    if spread is not None:
        scale = tl.load(spread + b)
    first_eps = tl.maximum(target, ANNEAL_START * scale)
    eps = target
    if not TEXTBOOK:
        eps = deadline(first_eps, target, max_iter * 0, max_iter)
    damping = 1.0 / (1.0 + eps / strength_a)

    row_at, a = rows + points, tl.load(mass_a + b * n + points, mask=in_a, other=0.0)
    log_a = tl.log(a)
    reach = tl.load(row_reach + b * n + points, mask=in_a, other=0)
    tl.store(row_at + state.ROW_REACH * row_pitch, reach.to(tl.float64), mask=in_a)
    tl.store(row_at + state.MASS_A * row_pitch, a, mask=in_a)
    tl.store(row_at + state.LOG_A * row_pitch, log_a, mask=in_a)
    if ENTROPY:
        tl.store(row_at + state.OFFSET * row_pitch, log_a * damping, mask=in_a)

    col_at, b_mass = cols + points, tl.load(mass_b + b * m + points, mask=in_b, other=0.0)
    log_b = tl.log(b_mass)
    g = tl.zeros_like(b_mass)
    if start is not None:
        g = tl.load(start + b * m + points, mask=in_b, other=0.0)
    log_v = log_scaling_of(g, tl.zeros_like(g) if ENTROPY else log_b, b_mass > 0.0, eps)
    if TEXTBOOK and ENTROPY:
        # Textbook v_0 has an entry for every column, massless ones too; from v_1 on those are 0.
        log_v = g / eps
    reach = tl.load(col_reach + b * m + points, mask=in_b, other=0)
    tl.store(col_at + state.G * col_pitch, g, mask=in_b)
    tl.store(col_at + state.COL_REACH * col_pitch, reach.to(tl.float64), mask=in_b)
    tl.store(col_at + state.REACHED * col_pitch, tl.full((BLOCK,), 1.0, tl.float64), mask=in_b)
    tl.store(col_at + state.MASS_B * col_pitch, b_mass, mask=in_b)
    tl.store(col_at + state.LOG_B * col_pitch, log_b, mask=in_b)
    write_weights(cols, col_pitch, 1, log_v, beta, items, b, m, eps, points, in_b)
    if not TEXTBOOK:
        tl.store(col_at + state.BEST_ANSWER * col_pitch, g, mask=in_b)

    tl.store(own + state.OWN_EPS, eps)
    tl.store(own + state.BEST, INF)
    tl.store(own + state.RECORD, INF)
    if TEXTBOOK:  # its pair has the rows of the pass before, always
        tl.store(own + state.CONFIRMING, 1.0)
    if chunk == 0:
        numbers += b
        tl.store(numbers + state.EPS * number_pitch, eps)
        tl.store(numbers + (state.EPS + 1) * number_pitch, eps)  # the textbook's stays what it is
        tl.store(numbers + state.DAMPING * number_pitch, damping)
        tl.store(numbers + state.SHIFT * number_pitch, tl.where(is_finite(shift), shift, 0.0))
        tl.store(numbers + state.REG * number_pitch, target)
        tl.store(numbers + state.TAU_A * number_pitch, strength_a)
        tl.store(numbers + state.TAU_B * number_pitch, strength_b)
        tl.store(numbers + state.FIRST_EPS * number_pitch, first_eps)
        tl.store(numbers + state.SPREAD * number_pitch, scale)
