"""What every pass does with a block of the cost in registers: whole rows of a sweep, or one step down the columns."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    LARGEST,
    LOG2E,
    add_terms,
    anchored_times_two_to,
    finite_anchor,
    half_step,
    natural_log,
    split_exponent,
)

# As in uotlib.backends.base.
WEAK_COLUMN = tl.constexpr(1e-25)
LOST_TERMS = tl.constexpr(2.0**-98)


@triton.jit
def row_terms(c, scale_high, scale_low, exponent, mantissa):
    """Log-sum-exps of whole rows; and the terms p of these, but for the mantissa of v, in units of 2^anchor."""
    anchor = finite_anchor(tl.max(tl.fma(c, scale_high, exponent[None, :]), axis=1))
    p = anchored_times_two_to(c, scale_high, scale_low, exponent[None, :] - anchor[:, None])
    return natural_log(anchor, tl.sum(p * mantissa[None, :], axis=1)), p, anchor


@triton.jit
def column_terms(lse, p, anchor, offset, damping, shift):
    """What the new plan's rows add to the columns, but for the mantissa of v."""
    log_u = half_step(offset, damping, lse) - shift
    weight = tl.exp2((log_u * LOG2E + anchor.to(tl.float64)).to(p.dtype))
    weight = tl.minimum(weight, LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.sum(p * weight[:, None], axis=0)


@triton.jit
def raise_columns(c, scale_high, scale_low, log_u, anchor, total):
    """(anchor, total) of the columns' log-sum-exps after some more rows."""
    exponent, mantissa = split_exponent(log_u, c.dtype)
    return add_terms(anchor, total, c, scale_high, scale_low, exponent[:, None], mantissa[:, None], 0)


@triton.jit
def weak_columns(alive, mass, heaviest, n):
    """Columns whose sum, like the heaviest row's in units of exp(shift), may have lost terms to underflow."""
    least = heaviest * (n.to(tl.float64) * LOST_TERMS)
    return alive & ~((mass >= least) & (mass >= WEAK_COLUMN) & (mass <= 1 / WEAK_COLUMN))
