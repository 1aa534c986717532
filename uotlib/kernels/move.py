"""The vector work of a pass, last part: the acceleration, and what the next read of the cost takes.  See `measure`."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from . import state
from .anderson import coefficients, combination
from .numerics import NEG_INF
from .rules import constant, log_scaling_of, read_side
from .state import own_numbers, own_problem, pitch_of, place_of, write_weights

#: Chunks whose partial results are read together.
TOGETHER = tl.constexpr(4)


@triton.jit
def over_chunks(gram, copies, b, chunks, OWN: tl.constexpr, SLOTS: tl.constexpr):
    """Over all chunks, in their order: products added up, (SLOTS, SLOTS), and the largest entry of each difference."""
    slots, some = tl.arange(0, SLOTS), tl.arange(0, TOGETHER)
    entries = slots[:, None] * SLOTS + slots[None, :]
    found, sizes = tl.zeros((SLOTS, SLOTS), tl.float64), tl.zeros((SLOTS,), tl.float64)
    for start in tl.range(0, chunks, TOGETHER, num_stages=1):
        inside = start + some < chunks
        others = b * chunks + start + some
        part = tl.load(gram + others[:, None, None] * (SLOTS * SLOTS) + entries[None, :, :],
                       mask=inside[:, None, None], other=0.0)
        size = tl.load(copies + others[:, None] * OWN + state.SIZES + slots[None, :], mask=inside[:, None], other=0.0)
        found += tl.sum(part, axis=0)
        sizes = tl.maximum(sizes, tl.max(size, axis=0))
    return found, sizes


@triton.jit
def accelerated(g, history, pitch, copies, own, gram, b, chunks, points, m, allowed, OWN: tl.constexpr,
                DEPTH: tl.constexpr, SLOTS: tl.constexpr, STAGES: tl.constexpr):
    """Where the acceleration goes from g, no further than ``allowed`` in any column; g where it was not decided for."""
    if tl.load(own + state.ACCELERATES) > 0.0:
        kept = tl.load(own + state.COUNT).to(tl.int32)
        slots = tl.arange(0, SLOTS)
        found, sizes = over_chunks(gram, copies, b, chunks, OWN, SLOTS)
        gamma = coefficients(found, kept, DEPTH, SLOTS)
        gammas = own + state.SIZES + SLOTS
        tl.store(gammas + slots, gamma)
        tl.debug_barrier()
        # A bound of the furthest move of all chunks, and only where that is too much the move itself.
        furthest = tl.sum(tl.where(slots < kept, tl.abs(gamma) * sizes, 0.0), axis=0)
        if not (furthest <= allowed):
            furthest = constant(0.0)
            BLOCK: tl.constexpr = points.shape[0]
            for start in tl.range(0, m, BLOCK, num_stages=1):
                others = start + tl.arange(0, BLOCK)
                move = combination(history, pitch, gammas, kept, others, others < m, DEPTH, STAGES)
                furthest = tl.maximum(furthest, tl.max(tl.abs(move), axis=0))
        extra = combination(history, pitch, gammas, kept, points, points < m, DEPTH, STAGES)
        g -= extra * tl.minimum(allowed / tl.maximum(furthest, constant(1e-300)), 1.0)
    return g


@triton.jit(do_not_specialize=["n", "m", "count", "chunks", "parity"])
def move_kernel(rows, cols, numbers, copies, gram, beta, items, n, m, count, chunks, parity, BLOCK: tl.constexpr,
                OWN: tl.constexpr, ENTROPY: tl.constexpr, ANNEAL_ORDER: tl.constexpr, DEPTH: tl.constexpr,
                TRUST_REGION: tl.constexpr, SLOTS: tl.constexpr, STAGES: tl.constexpr):
    """The next g, by acceleration where that was decided, and what the next sweep takes.

    Grid: (chunks of each problem).
    """
    b, chunk, points = place_of(chunks, BLOCK)
    own = own_numbers(copies, OWN)
    rows, cols, row_pitch, col_pitch, in_a, in_b = own_problem(rows, cols, n, m, count, b, points)
    number_pitch = pitch_of(count, 1)
    eps = tl.load(own + state.OWN_EPS)
    g_at = cols + (state.G + 1 - parity) * col_pitch + points
    g = tl.load(g_at, mask=in_b, other=0.0)
    if DEPTH > 0:
        g = accelerated(g, cols + (state.ENDS + ANNEAL_ORDER + 1) * col_pitch, col_pitch, copies, own, gram, b, chunks,
                        points, m, TRUST_REGION * eps, OWN, DEPTH, SLOTS, STAGES)
        tl.store(g_at, g, mask=in_b)

    b_mass, _, _, b_reference = read_side(cols + state.MASS_B * col_pitch, cols + state.LOG_B * col_pitch, points, in_b,
                                          ENTROPY)
    reachable = tl.load(cols + state.REACHED * col_pitch + points, mask=in_b, other=1.0) > 0.0
    log_v = log_scaling_of(g, b_reference, (b_mass > 0.0) & reachable, eps)
    write_weights(cols, col_pitch, parity, log_v, beta, items, b, m, eps, points, in_b)
    rate_a = 1.0 / tl.load(numbers + state.TAU_A * number_pitch + b)
    damping_a = 1.0 / (1.0 + eps * rate_a)
    if ENTROPY:
        a_log = tl.load(rows + state.LOG_A * row_pitch + points, mask=in_a, other=NEG_INF)
        tl.store(rows + state.OFFSET * row_pitch + points, a_log * damping_a, mask=in_a)
    if chunk == 0:
        tl.store(numbers + (state.EPS + 1 - parity) * number_pitch + b, eps)
        tl.store(numbers + state.DAMPING * number_pitch + b, damping_a)
