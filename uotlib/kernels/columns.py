"""Reductions along the columns of a row-major cost, without a transposed copy.

A program owns a block of columns and a slab of rows; every thread keeps its own columns, so nothing crosses threads.
Slabs leave partial results in a workspace that is merged in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    LOWEST,
    arithmetic_type,
    item_cost,
    multiple_of,
    natural_log,
    own_slab,
    split_exponent,
    split_scale,
    times_two_to,
)
from .update import raise_columns


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "slabs", "slab_rows", "blocks"])
def col_lse_kernel(cost, items, log_u, reg, mask, anchors, totals, stride_b, stride_n, n, m, slabs, slab_rows, blocks,
                   ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """Partial log-sum-exps as (anchor, total), both (B, slabs, m).  Grid: (slabs x column blocks of each item).

    With a mask (B, m), a block of columns none of which is flagged reads nothing of the cost and writes nothing.
    """
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    slab = tl.program_id(0) // blocks
    b, first, last = own_slab(slab, slabs, slab_rows, n)
    cols = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    inside = cols < m
    wanted = inside
    if mask is not None:
        flags = tl.load(mask + b * m + cols, mask=inside, other=0).to(tl.int32)
        flagged = tl.max(flags, axis=0) > 0
        last = tl.where(flagged, last, first)
        wanted = cols < tl.where(flagged, m, 0)
    scale_high, scale_low = split_scale(reg + b, dtype)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + cols[None, :]

    anchor = tl.full((COLS,), LOWEST, dtype)
    total = tl.zeros((COLS,), dtype)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        c = tl.load(tile + rows.to(tl.int64)[:, None] * stride_n, mask=alive[:, None] & inside[None, :], other=0.0)
        c = c.to(dtype)
        log_u_i = tl.load(log_u + b * n + rows, mask=alive, other=float("-inf"))
        anchor, total = raise_columns(c, scale_high, scale_low, log_u_i, anchor, total)

    place = slab.to(tl.int64) * m + cols
    tl.store(anchors + place, anchor, mask=wanted)
    tl.store(totals + place, total, mask=wanted)


@triton.jit
def merged_lse(anchors, totals, b, slabs, m, cols, wanted, SLABS: tl.constexpr, COLS: tl.constexpr):
    """Log-sum-exps of wanted columns of problem b, from those of the slabs in their order."""
    anchor = tl.full((COLS,), LOWEST, tl.float64)
    total = tl.zeros((COLS,), tl.float64)
    for slab in range(0, slabs, SLABS):
        ids = slab + tl.arange(0, SLABS)
        place = (b * slabs + ids)[:, None] * m + cols[None, :]
        there = (ids < slabs)[:, None] & wanted[None, :]
        part_anchor = tl.load(anchors + place, mask=there, other=LOWEST).to(tl.float64)
        part_total = tl.load(totals + place, mask=there, other=0.0).to(tl.float64)
        raised = tl.maximum(anchor, tl.max(part_anchor, axis=0))
        part = tl.sum(part_total * tl.exp2(part_anchor - raised[None, :]), axis=0)
        total = total * tl.exp2(anchor - raised) + part
        anchor = raised
    return natural_log(anchor, total)


@triton.jit(do_not_specialize=["m", "slabs", "blocks"])
def merge_col_lse_kernel(anchors, totals, mask, col_lse, m, slabs, blocks, SLABS: tl.constexpr, COLS: tl.constexpr):
    """Column log-sum-exps from the slabs' (anchor, total); -inf where a mask does not flag the column."""
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    cols = program % blocks * COLS + tl.arange(0, COLS)
    wanted = cols < m
    if mask is not None:
        wanted = wanted & (tl.load(mask + b * m + cols, mask=wanted, other=0) != 0)
    lse = merged_lse(anchors, totals, b, slabs, m, cols, wanted, SLABS, COLS)
    tl.store(col_lse + b * m + cols, lse, mask=cols < m)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "slabs", "slab_rows", "blocks"])
def col_mass_kernel(cost, items, log_u, log_v, reg, partial, stride_b, stride_n, n, m, slabs, slab_rows, blocks,
                    ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """Second read of a sweep whose rows do not fit on chip: column sums of the plan, but for the mantissa of v."""
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    slab = tl.program_id(0) // blocks
    b, first, last = own_slab(slab, slabs, slab_rows, n)
    cols = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    inside = cols < m
    scale_high, scale_low = split_scale(reg + b, dtype)
    exponent, _ = split_exponent(tl.load(log_v + b * m + cols, mask=inside, other=float("-inf")), dtype)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + cols[None, :]

    column_sum = tl.zeros((COLS,), dtype)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        c = tl.load(tile + rows.to(tl.int64)[:, None] * stride_n, mask=alive[:, None] & inside[None, :], other=0.0)
        c = c.to(dtype)
        log_u_i = tl.load(log_u + b * n + rows, mask=alive, other=float("-inf"))
        exponent_u, mantissa = split_exponent(log_u_i, dtype)
        p = times_two_to(c, scale_high, scale_low, exponent_u[:, None] + exponent[None, :])
        column_sum += tl.sum(p * mantissa[:, None], axis=0)

    tl.store(partial + slab.to(tl.int64) * m + cols, column_sum, mask=inside)
