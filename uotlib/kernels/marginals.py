"""Between the reads of the cost: what the rows' log-sum-exps make of the rows' scalings, and of the columns' sums."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .columns import merged_lse
from .numerics import NEG_INF, half_step, item_index
from .state import COL_LSE, DAMPING, EPS, LOG_A, LOG_U, LOG_V, OFFSET, ROW_LSE, ROW_WEIGHT, SHIFT, pitch_of
from .sweep import added_slabs
from .update import weak_columns


@triton.jit
def row_offset(rows, row_pitch, points, inside, ENTROPY: tl.constexpr):
    """The half-step's offset of some rows."""
    if ENTROPY:
        plane = OFFSET * row_pitch
    else:
        plane = LOG_A * row_pitch
    return tl.load(rows + plane + points, mask=inside, other=NEG_INF)


@triton.jit(do_not_specialize=["n", "m", "count", "slabs", "blocks", "parity"])
def marginals_kernel(rows, cols, numbers, partial, weak, n, m, count, slabs, blocks, parity,
                     SLABS: tl.constexpr, BLOCK: tl.constexpr, POINTS: tl.constexpr, ENTROPY: tl.constexpr):
    """After a sweep: log u, the columns' log-sum-exps from the slabs' sums, and which of these must be done again.

    weak: (A, m), bytes.  Grid: (blocks of BLOCK columns of each problem); each finds the heaviest row for itself.
    """
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    block = program % blocks
    row_pitch, col_pitch, number_pitch = pitch_of(count, n), pitch_of(count, m), pitch_of(count, 1)
    rows += b * n
    damping = tl.load(numbers + DAMPING * number_pitch + b)
    shift = tl.load(numbers + SHIFT * number_pitch + b)
    heaviest = tl.full((POINTS,), NEG_INF, tl.float64)
    for start in tl.range(0, n, POINTS, num_stages=1):
        points = start + tl.arange(0, POINTS)
        inside = points < n
        lse = tl.load(rows + (ROW_LSE + parity) * row_pitch + points, mask=inside, other=NEG_INF)
        log_u = half_step(row_offset(rows, row_pitch, points, inside, ENTROPY), damping, lse)
        mass = log_u + lse
        heaviest = tl.maximum(heaviest, tl.where(mass == mass, mass, NEG_INF))
        # The programs share the rows that are to be stored.
        ours = points // POINTS % blocks == block
        tl.store(rows + LOG_U * row_pitch + points, log_u, mask=inside & ours)

    points = block * BLOCK + tl.arange(0, BLOCK)
    inside = points < m
    log_v_of_all = cols + (LOG_V + parity) * col_pitch
    mass = added_slabs(partial, log_v_of_all, b, slabs, m, points, inside, SLABS, BLOCK)
    log_v = tl.load(log_v_of_all + b * m + points, mask=inside, other=NEG_INF)
    alive = log_v > NEG_INF
    lse = tl.where(alive, tl.log(mass) + shift - tl.where(alive, log_v, 0.0), NEG_INF)
    again = weak_columns(alive, mass, tl.exp(tl.max(heaviest, axis=0) - shift), n)
    tl.store(cols + (COL_LSE + parity) * col_pitch + b * m + points, lse, mask=inside)
    tl.store(weak + b * m + points, again.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["n", "count", "parts", "blocks", "parity"])
def log_u_kernel(rows, numbers, anchors, totals, alpha, items, n, count, parts, blocks, parity,
                 PARTS: tl.constexpr, BLOCK: tl.constexpr, ENTROPY: tl.constexpr):
    """log u from the rows' log-sum-exps, for whoever reads the cost once for each side.

    With ``anchors`` and ``totals`` (A, parts, n) these are merged first; with the alpha of streamed features, it is
    taken from them, and from log u, as ROW_WEIGHT.  Grid: (blocks of BLOCK rows of each problem).
    """
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    points = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = points < n
    row_pitch, number_pitch = pitch_of(count, n), pitch_of(count, 1)
    eps = tl.load(numbers + (EPS + parity) * number_pitch + b)
    damping = tl.load(numbers + DAMPING * number_pitch + b)
    own = rows + b * n
    place = own + (ROW_LSE + parity) * row_pitch + points
    if anchors is None:
        lse = tl.load(place, mask=inside, other=NEG_INF)
    else:
        lse = merged_lse(anchors, totals, b, parts, n, points, inside, PARTS, BLOCK)
    if alpha is not None:
        own_alpha = tl.load(alpha + item_index(items, b) * n + points, mask=inside, other=0.0) / eps
        lse -= own_alpha
    log_u = half_step(row_offset(own, row_pitch, points, inside, ENTROPY), damping, lse)
    tl.store(own + LOG_U * row_pitch + points, log_u, mask=inside)
    if anchors is not None:
        tl.store(place, lse, mask=inside)
    if alpha is not None:
        tl.store(own + ROW_WEIGHT * row_pitch + points, log_u - own_alpha, mask=inside)
