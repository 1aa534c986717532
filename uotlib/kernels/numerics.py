r"""Arithmetic shared by all kernels: exponents in base 2, split so that float32 loses nothing at small eps.

A log-scaling is carried as an integer and a mantissa, :math:`e^{\log v} = w 2^k` with w in [1, 2), like a float with
a wide exponent, and 1/eps as a sum of two floats.  Then :math:`v_j e^{-C_{ij}/\varepsilon}` relative to an integer
anchor r is :math:`w_j 2^{(k_j - r) - C_{ij} \log_2 e/\varepsilon}`: the integers subtract exactly, and the fused
multiply-add rounds once, at the size of the result.  In plain float32, log-scalings of 2e4 (eps 1e-4) cost 1e-3.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEG_INF = tl.constexpr(float("-inf"))
#: Start of a running maximum: below every exponent, and finite so that it can be subtracted from -inf.
LOWEST = tl.constexpr(-3.0e38)
#: A scale factor beyond this would turn 0 * inf into NaN.
LARGEST = tl.constexpr(3.0e38)


@triton.constexpr_function
def arithmetic_type(storage):
    """Type of the arithmetic on costs that are kept in this type."""
    return tl.float64 if storage == tl.float64 else tl.float32


@triton.jit
def split_scale(reg, dtype: tl.constexpr):
    """`scale_of` the eps that lies at an address."""
    return scale_of(tl.load(reg), dtype)


@triton.jit
def scale_of(eps, dtype: tl.constexpr):
    """-log2(e) / eps as (high, low), both negative: so a cost of +inf gives -inf, never inf - inf or 0 * inf."""
    scale = -LOG2E / eps
    # Shrunk by a few units in the last place, which keeps the remainder's sign.
    shrink: tl.constexpr = 1.0 - 2.0**-22 if dtype == tl.float32 else 1.0 - 2.0**-51
    high = (scale * shrink).to(dtype)
    return high, (scale - high.to(tl.float64)).to(dtype)


@triton.jit
def split_exponent(log_scaling, dtype: tl.constexpr):
    """(k, w) with exp(log_scaling) = w 2^k, k integer, w in [1, 2); k = -inf for a point that takes no part."""
    dead = log_scaling == NEG_INF
    exponent = tl.where(dead, 0.0, log_scaling) * LOG2E
    whole = tl.floor(exponent)
    return tl.where(dead, NEG_INF, whole).to(dtype), tl.exp2((exponent - whole).to(dtype))


@triton.jit
def times_two_to(cost, scale_high, scale_low, exponent):
    """2^(exponent - cost log2(e) / eps)."""
    return tl.exp2(tl.fma(cost, scale_low, tl.fma(cost, scale_high, exponent)))


@triton.jit
def anchored_times_two_to(cost, scale_high, scale_low, exponent):
    """The same where the anchor makes it at most 1; the bound acts where |cost| / eps exceeds 2^24 only."""
    power = tl.fma(cost, scale_low, tl.fma(cost, scale_high, exponent))
    return tl.exp2(tl.minimum(power, 1.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def add_terms(anchor, total, cost, scale_high, scale_low, exponent, mantissa, AXIS: tl.constexpr):
    """A running log-sum-exp along an axis, (anchor, total) for total 2^anchor, with the terms of one more tile.

    tl.ceil(-inf) stays -inf and loses to LOWEST, where anchors start, so that they are always finite.
    """
    raised = tl.maximum(anchor, tl.ceil(tl.max(tl.fma(cost, scale_high, exponent), axis=AXIS)))
    p = anchored_times_two_to(cost, scale_high, scale_low, exponent - tl.expand_dims(raised, AXIS))
    return raised, total * tl.exp2(anchor - raised) + tl.sum(p * mantissa, axis=AXIS)


@triton.jit
def finite_anchor(maximum):
    """The integer just above a maximum, 0 where there is none."""
    return tl.where(maximum == NEG_INF, 0.0, tl.ceil(maximum))


@triton.jit
def natural_log(anchor, total):
    """log(total 2^anchor) in float64; -inf where total is 0, NaN where it is NaN."""
    if total.dtype == tl.float32:
        # log2 of the mantissa alone: its absolute error is 1e-7, that of log2(4096) ten times as much.
        bits = total.to(tl.int32, bitcast=True)
        power = ((bits >> 23) - 127).to(tl.float64)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        power += tl.log2(mantissa).to(tl.float64)
    else:
        power = tl.log2(total)
    value = (anchor.to(tl.float64) + power) * LN2
    value = tl.where(total == 0.0, NEG_INF, value)
    return tl.where(total == total, value, total.to(tl.float64))


@triton.jit
def half_step(offset, damping, lse):
    """offset - damping * lse, and -inf where lse is: `uotlib.backends.base.log_scaling`."""
    reachable = lse > NEG_INF
    return tl.where(reachable, offset - damping * tl.where(reachable, lse, 0.0), NEG_INF)


@triton.jit
def item_index(items, b):
    """Entry b of the work list, as int64."""
    if items is None:
        item = b.to(tl.int64)
    else:
        item = tl.load(items + b).to(tl.int64)
    return item


@triton.jit
def item_cost(cost, items, b, stride_b, VECTOR: tl.constexpr):
    """Where the cost of entry b of the work list begins."""
    return cost + item_index(items, b) * multiple_of(stride_b, VECTOR)


@triton.jit
def own_slab(place, slabs, slab_rows, n):
    """(item, first row, end) of the slab at this place of a grid of the slabs of item 0, of item 1, ..."""
    first = place % slabs * slab_rows
    return (place // slabs).to(tl.int64), first, tl.minimum(first + slab_rows, n)


@triton.jit
def multiple_of(value, VECTOR: tl.constexpr):
    """The value, known to the compiler to be a multiple of VECTOR: what makes loads 16 bytes wide."""
    return value // VECTOR * VECTOR
