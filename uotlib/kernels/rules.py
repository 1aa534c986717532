"""When a problem stops, when a level of eps ends, and where the next one starts: numbers of one problem.

Shared by `small`, where a program has the whole problem, and `decide`, where every program comes to the same decision.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import NEG_INF
from .penalty import INF

#: As in uotlib.solver.
STALL_PASSES = tl.constexpr(40)


@triton.jit
def constant(value: tl.constexpr):
    """A number in float64: as it stands in an expression without tensors it may become float32."""
    return tl.full((), value, tl.float64)


@triton.jit
def tolerance_of(tol, roundoff):
    """tol, or where none was given the default of `uotlib.unbalanced_sinkhorn`."""
    default = tl.minimum(tl.maximum(0.25 * roundoff, constant(1e-5)), constant(1e-2))
    return tl.where(tol > 0.0, tol, default)


@triton.jit
def stopping(violation, largest, reg, tol, at_target, confirming, one_sided, record, record_pass, steps, passes,
             max_iter, ROUNDOFF: tl.constexpr, SYNCHRONOUS: tl.constexpr, CHECK_EVERY: tl.constexpr):
    """(whether the solve ends, whether at the floor of rounding, whether within tol, record, its pass)."""
    close = at_target & (violation <= tolerance_of(tol, ROUNDOFF * largest / reg))
    ended = steps >= max_iter
    at_floor = 0
    if SYNCHRONOUS:
        look = (steps > 0) & (steps % CHECK_EVERY == 0) & ~ended
        improved = look & (violation < 0.9 * record)
        record = tl.where(improved, violation, record)
        record_pass = tl.where(improved, passes, record_pass)
        floor = 256.0 * tl.maximum(2.0**-53 * largest / reg, constant(ROUNDOFF))
        still = look & at_target & (passes - record_pass >= STALL_PASSES) & (violation <= floor)
        at_floor = still.to(tl.int32)
        good = close & ((confirming > 0) | ~one_sided)
        ended = ended | (look & (good | still | (violation != violation)))
    return ended, at_floor, close, record, record_pass


@triton.jit
def translation_of(row_total, col_total, rate_a, rate_b):
    """`uotlib.certificate.optimal_shift`, from the logarithms of what both sides ask for."""
    ratio, rate = row_total - col_total, rate_a + rate_b
    movable = (rate > 0.0) & (tl.abs(ratio) < INF)
    return tl.where(movable, ratio / tl.where(rate > 0.0, rate, 1.0), 0.0)


@triton.jit
def deadline(start, reg, passes, max_iter):
    """The eps that the pass after these must not exceed: annealing ends within half of all."""
    share = 2.0 * (passes + 1).to(tl.float64) / max_iter.to(tl.float64)
    eps = tl.maximum(reg, start * tl.exp(share * tl.log(reg / start)))
    return tl.where(share < 1.0, eps, reg)


@triton.jit
def level_ends(violation, eps, reg, first_eps, spread, at_target, level_pass, passes, max_iter,
               ANNEAL_FACTOR: tl.constexpr, ANNEAL_VIOLATION: tl.constexpr, ANNEAL_ACCURACY: tl.constexpr,
               ANNEAL_PASSES: tl.constexpr):
    """(whether the level is left, whether it was solved well enough to predict from, the eps below it)."""
    accuracy = ANNEAL_ACCURACY * tl.sqrt(eps / spread)
    solved = (violation <= accuracy) & (violation <= ANNEAL_VIOLATION)
    limit = deadline(first_eps, reg, passes, max_iter)
    lower = tl.maximum(reg, ANNEAL_FACTOR * eps)
    leaving = ~at_target & (solved | (level_pass >= ANNEAL_PASSES) | (limit <= lower))
    return leaving, solved, tl.minimum(lower, limit)


@triton.jit
def predict(ends, pitch, ends_eps, known, eps, points, inside):
    """Lagrange's polynomial through the first ``known`` ends of levels, ``pitch`` apart, at a new eps."""
    total = tl.zeros_like(points).to(tl.float64)
    for level in tl.range(0, known, num_stages=1):
        node, weight = tl.load(ends_eps + level), constant(1.0)
        for other in tl.range(0, known, num_stages=1):
            distant = tl.load(ends_eps + other)
            apart = node - distant
            weight *= tl.where(apart != 0.0, (eps - distant) / tl.where(apart != 0.0, apart, 1.0), 1.0)
        total += weight * tl.load(ends + level * pitch + points, mask=inside, other=0.0)
    return total


@triton.jit
def next_level(ends, ends_eps, pitch, slot, known, solved, eps, lower, end, points, inside, ANNEAL_ORDER: tl.constexpr):
    """Keep the end of a level and begin the one below: (its start, the slot of its end, how many ends are known)."""
    # A level that was not solved well breaks the chain: only its own end is kept.
    slot = tl.where(solved, slot, 0)
    known = tl.where(solved, tl.minimum(known + 1, ANNEAL_ORDER + 1), 1)
    tl.store(ends_eps + slot, eps)
    tl.store(ends + slot * pitch + points, end, mask=inside)
    tl.debug_barrier()
    following = predict(ends, pitch, ends_eps, known, lower, points, inside)
    return following, (slot + 1) % (ANNEAL_ORDER + 1), known


@triton.jit
def read_side(mass, log_mass, points, inside, ENTROPY: tl.constexpr):
    """(mass, log-mass, log-mass less reference, reference) of one side: read again each pass, not kept in registers."""
    value = tl.load(mass + points, mask=inside, other=0.0)
    log_value = tl.load(log_mass + points, mask=inside, other=NEG_INF)
    nothing = tl.where(log_value == NEG_INF, 0.0, 0.0 * log_value)
    if ENTROPY:
        residual, reference = log_value, nothing
    else:
        residual, reference = nothing, log_value
    return value, log_value, residual, reference


@triton.jit
def log_scaling_of(g, reference, live, eps):
    """log v = beta + g / eps; -inf for columns that take no part."""
    alive = live & (tl.abs(g) != INF)
    return tl.where(alive, g / eps + tl.where(alive, reference, 0.0), NEG_INF)
