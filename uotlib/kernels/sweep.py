"""The fused iteration: one read of the cost gives the row update and the columns' sums of the new plan.

A program owns a slab of rows of one batch item and keeps, for all m columns, the exponent and mantissa of v and the
running column sums in registers.  Whole rows pass through in tiles, prefetched by Triton's loop pipeline.  Slabs leave
their column sums in a workspace that `merge_columns_kernel` adds in a fixed order: no atomics, the same bits each run.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    arithmetic_type,
    item_cost,
    multiple_of,
    own_slab,
    split_exponent,
    split_scale,
)
from .update import column_terms, row_terms


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "slabs", "slab_rows"])
def sweep_kernel(cost, items, log_v, offset, damping, reg, shift, row_lse, partial, skip, stride_b, stride_n, n, m,
                 slabs, slab_rows, SEGMENT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
                 VECTOR: tl.constexpr):
    """Grid: (slabs of item 0, slabs of item 1, ...).  partial is (B, slabs, m), every entry of it is written.

    skip: Words of `skip_kernel`, or None.  What they leave out of a tile is not read.
    """
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    program = tl.program_id(0)
    b, first, last = own_slab(program, slabs, slab_rows, n)

    scale_high, scale_low = split_scale(reg + b, dtype)
    cols = tl.arange(0, COLS)
    inside = cols < m
    # Columns beyond m have exponent -inf, so what the masked loads return for them does not matter while it is finite.
    exponent, mantissa = split_exponent(tl.load(log_v + b * m + cols, mask=inside, other=float("-inf")), dtype)
    damping_b = tl.load(damping + b)
    shift_b = tl.load(shift + b)
    start = item_cost(cost, items, b, stride_b, VECTOR)
    if skip is not None:
        segments = tl.arange(0, COLS // SEGMENT)
        word = tl.load(skip + program.to(tl.int64) * (COLS // SEGMENT) + segments)
        places = segments[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]

    column_sum = tl.zeros((COLS,), dtype)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        if skip is None:
            c = tl.load(start + cols[None, :] + rows.to(tl.int64)[:, None] * stride_n,
                        mask=alive[:, None] & inside[None, :], other=0.0)
        else:
            read = ((word >> (row - first) // ROWS) & 1) == 0
            c = tl.load(start + places[None, :, :] + rows.to(tl.int64)[:, None, None] * stride_n,
                        mask=alive[:, None, None] & (read[:, None] & (places < m))[None, :, :], other=float("inf"))
            c = tl.reshape(c, (ROWS, COLS))
        c = c.to(dtype)
        offset_i = tl.load(offset + b * n + rows, mask=alive, other=float("-inf"))
        lse, p, anchor = row_terms(c, scale_high, scale_low, exponent, mantissa)
        tl.store(row_lse + b * n + rows, lse, mask=alive)
        column_sum += column_terms(lse, p, anchor, offset_i, damping_b, shift_b)

    tl.store(partial + program.to(tl.int64) * m + cols, column_sum, mask=inside)


@triton.jit
def added_slabs(partial, log_v, b, slabs, m, cols, inside, SLABS: tl.constexpr, COLS: tl.constexpr):
    """The slabs' sums of columns of problem b in float64, times the mantissa of v where there is a log_v."""
    total = tl.zeros((COLS,), tl.float64)
    for slab in range(0, slabs, SLABS):
        ids = slab + tl.arange(0, SLABS)
        sums = tl.load(partial + (b * slabs + ids)[:, None] * m + cols[None, :],
                       mask=(ids < slabs)[:, None] & inside[None, :], other=0.0)
        total += tl.sum(sums.to(tl.float64), axis=0)
    if log_v is not None:
        _, mantissa = split_exponent(tl.load(log_v + b * m + cols, mask=inside, other=0.0), tl.float64)
        total = total * mantissa
    return total


@triton.jit(do_not_specialize=["m", "slabs", "blocks"])
def merge_columns_kernel(partial, log_v, col_mass, m, slabs, blocks, SLABS: tl.constexpr, COLS: tl.constexpr):
    """col_mass += the slabs' sums, times the mantissa of v where there is a log_v.

    Grid: (column blocks of each item).
    """
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    cols = program % blocks * COLS + tl.arange(0, COLS)
    inside = cols < m
    total = added_slabs(partial, log_v, b, slabs, m, cols, inside, SLABS, COLS)
    before = tl.load(col_mass + b * m + cols, mask=inside, other=0.0)
    tl.store(col_mass + b * m + cols, before + total, mask=inside)
