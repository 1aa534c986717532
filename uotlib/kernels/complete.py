"""After the last pass: potentials of columns that took no part, and the certificate of every pair.

Both run over all problems of the batch, on answers as `uotlib.outcome.StoredOutcome` has them.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import NEG_INF
from .penalty import asked, potential_of, side_gap, size_of
from .rules import tolerance_of
from .state import place_of


@triton.jit(do_not_specialize=["n", "m", "batch", "chunks"])
def complete_kernel(answers, exact, mass_a, mass_b, tau_a, tau_b, reg, sums, n, m, batch, chunks, BLOCK: tl.constexpr,
                    ENTROPY: tl.constexpr):
    """Idle columns get their log-sum-exp from ``exact`` (B, m), and the potential that it asks for.

    sums: (2, B, chunks), each chunk's part of the gap and its largest potential.  Grid: (chunks of each problem).
    """
    b, chunk, points = place_of(chunks, BLOCK)
    in_a, in_b = points < n, points < m
    row_step, col_step = batch.to(tl.int64) * n, batch.to(tl.int64) * m
    f_at = answers + b * n + points
    g_at = answers + 3 * row_step + b * m + points
    eps = tl.load(reg + b)
    rate_a, rate_b = 1.0 / tl.load(tau_a + b), 1.0 / tl.load(tau_b + b)
    f, log_u = tl.load(f_at, mask=in_a, other=0.0), tl.load(f_at + row_step, mask=in_a, other=NEG_INF)
    row_lse = tl.load(f_at + 2 * row_step, mask=in_a, other=0.0)
    g, log_v = tl.load(g_at, mask=in_b, other=0.0), tl.load(g_at + col_step, mask=in_b, other=NEG_INF)
    col_lse = tl.load(g_at + 2 * col_step, mask=in_b, other=0.0)
    a, b_mass = tl.load(mass_a + b * n + points, mask=in_a, other=0.0), tl.load(mass_b + b * m + points, mask=in_b,
                                                                               other=0.0)
    found = tl.load(exact + b * m + points, mask=in_b, other=0.0)
    idle = in_b & (log_v == NEG_INF)
    residual = tl.log(b_mass) if ENTROPY else tl.zeros_like(b_mass)
    col_lse = tl.where(idle, found, col_lse)
    g = tl.where(idle, potential_of(found, residual, eps / (1.0 + eps * rate_b)), g)
    tl.store(g_at, g, mask=in_b)
    tl.store(g_at + 2 * col_step, col_lse, mask=in_b)
    gap = side_gap(tl.exp(log_u + row_lse), asked(a, f, rate_a), rate_a)
    gap += side_gap(tl.exp(log_v + col_lse), asked(b_mass, g, rate_b), rate_b)
    place = sums + b * chunks + chunk
    tl.store(place, gap)
    tl.store(place + batch.to(tl.int64) * chunks, tl.maximum(size_of(f), size_of(g)))


@triton.jit(do_not_specialize=["batch", "chunks", "tol_bits"])
def certify_kernel(scalars, sums, reg, batch, chunks, tol_bits, PARTS: tl.constexpr, ROUNDOFF: tl.constexpr):
    """The gap, whether the problem has converged, and at the floor of rounding only if it has not.  Grid: (batch,)."""
    b = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, PARTS)
    gap, largest = tl.zeros((PARTS,), tl.float64), tl.zeros((PARTS,), tl.float64)
    for start in tl.range(0, chunks, PARTS, num_stages=1):
        inside = start + lanes < chunks
        some = sums + b * chunks + start + lanes
        gap += tl.load(some, mask=inside, other=0.0)
        largest = tl.maximum(largest, tl.load(some + batch.to(tl.int64) * chunks, mask=inside, other=0.0))
    scalars += b
    violation = tl.load(scalars)
    tol = tol_bits.to(tl.int64).to(tl.float64, bitcast=True)
    converged = violation <= tolerance_of(tol, ROUNDOFF * tl.max(largest, axis=0) / tl.load(reg + b))
    tl.store(scalars + batch, tl.where(violation == violation, tl.sum(gap, axis=0), violation))
    tl.store(scalars + 3 * batch, converged.to(tl.float64))
    floor = scalars + 4 * batch.to(tl.int64)
    tl.store(floor, tl.where(converged, 0.0, tl.load(floor)))
