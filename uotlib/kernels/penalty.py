r"""One side of a problem on chip: `uotlib.divergences.KLPenalty` and `uotlib.certificate` for the vectors of one item.

Vectors are float64; ``rate`` is 1/tau, 0 for an exact marginal.  Entries behind the last point have mass 0, log-mass
-inf and log-scaling -inf, as points without mass have.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import NEG_INF

INF = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))
#: Stands for an infinite potential where that is multiplied by a rate.
HUGE = tl.constexpr(1e300)


@triton.jit
def is_finite(x):
    return tl.abs(x) < INF


@triton.jit
def over_tau(potential, rate):
    """f / tau, 0 for an exact marginal even where f is infinite."""
    potential = tl.where(potential > HUGE, HUGE, potential)
    return tl.where(potential < -HUGE, -HUGE, potential) * rate


@triton.jit
def potential_of(lse, residual, step):
    """step (residual - LSE); -inf where the residual is, as in `uotlib.problem.Side.potential`."""
    alive = residual > NEG_INF
    return tl.where(alive, step * (tl.where(alive, residual, 0.0) - lse), NEG_INF)


@triton.jit
def asked(mass, potential, rate):
    """The marginal a exp(-f / tau) that a potential asks for; 0 where a is 0."""
    target = tl.exp(-over_tau(potential, rate)) * mass
    return tl.where(target == target, target, 0.0)


@triton.jit
def log_total(log_mass, potential, rate):
    """log <a, exp(-f / tau)>; not finite where there is nothing to add, or too much."""
    return log_sum(log_mass - over_tau(potential, rate))


@triton.jit
def log_sum(exponent):
    """log sum exp; not finite where there is nothing to add, or too much."""
    peak = tl.max(exponent, axis=0)
    total = tl.sum(tl.exp(exponent - tl.where(is_finite(peak), peak, 0.0)), axis=0)
    return tl.where(is_finite(peak), peak + tl.log(total), peak)


@triton.jit
def side_violation(marginal, target):
    """|marginal - target|_1 / |marginal|_1."""
    return relative(tl.sum(tl.abs(marginal - target), axis=0), tl.sum(marginal, axis=0))


@triton.jit
def relative(deviation, mass):
    """deviation / mass; 0 for an empty plan that is meant to be empty."""
    return tl.where(deviation == 0.0, 0.0, deviation / tl.where(deviation == 0.0, 1.0, mass))


@triton.jit
def x_log_y(x, y):
    """x log y, 0 for x = 0."""
    return tl.where((x == 0.0) & (y == y), 0.0, x * tl.log(tl.where(x == 0.0, 1.0, y)))


@triton.jit
def side_gap(marginal, target, rate):
    """tau KL(marginal | target), terms near 0 as their series; the L1 distance for an exact marginal."""
    some = target > 0.0
    d = tl.where(some, (marginal - target) / tl.where(some, target, 1.0), 1.0)
    near = tl.abs(d) < 1e-2
    d = tl.where(near, d, 0.0)
    series = target * d * d * (1 / 2 - d * (1 / 6 - d * (1 / 12 - d * (1 / 20 - d * (1 / 30 - d / 42)))))
    closed = x_log_y(marginal, marginal) - x_log_y(marginal, target) - marginal + target
    divergence = tl.sum(tl.where(near, series, closed), axis=0)
    exact = rate == 0.0
    deviation = tl.sum(tl.abs(marginal - target), axis=0)
    return tl.where(exact, deviation, divergence / tl.where(exact, 1.0, rate))


@triton.jit
def largest_of(f, g):
    """max |f, g| over the finite potentials."""
    return tl.maximum(size_of(f), size_of(g))


@triton.jit
def size_of(potential):
    """max |f| over the finite ones."""
    return tl.max(tl.where(is_finite(potential), tl.abs(potential), 0.0), axis=0)
