"""Passes of the adjoint's conjugate gradients: products with N and N' in one read of the cost.

N_ij = x_i y_j exp(-C_ij / eps) has no entry above 1, so nothing is stabilised and no maximum is sought.  As in the
sweep a program owns a slab of rows and whole rows pass through: a row's product with the vector is known before the row
leaves, and is added to the columns' sums at once.  Rows wider than a tile are read twice, `through_kernel` and then
`back_kernel`.  Slabs leave their column sums to `merge_columns_kernel`.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    NEG_INF,
    anchored_times_two_to,
    arithmetic_type,
    item_cost,
    multiple_of,
    own_slab,
    split_exponent,
    split_scale,
)


@triton.jit
def quotient_near_one(total, expected):
    """`uotlib.backends.base.near_one`."""
    ratio = total / tl.where(expected > 0.0, expected, 1.0)
    return tl.where((ratio > 0.5) & (ratio < 2.0), ratio, 1.0)


@triton.jit
def tile_of_n(tile, log_x, rows, alive, inside, stride_n, scale_high, scale_low, exponent_y, dtype: tl.constexpr):
    """Rows of N but for the mantissas of x and y, and those of x."""
    c = tl.load(tile + rows.to(tl.int64)[:, None] * stride_n, mask=alive[:, None] & inside[None, :], other=0.0)
    exponent_x, mantissa_x = split_exponent(tl.load(log_x + rows, mask=alive, other=NEG_INF), dtype)
    p = anchored_times_two_to(c.to(dtype), scale_high, scale_low, exponent_x[:, None] + exponent_y[None, :])
    return p, mantissa_x


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "slabs", "slab_rows"])
def schur_kernel(cost, items, log_x, log_y, diagonal, vector, reg, partial, stride_b, stride_n, n, m, slabs, slab_rows,
                 ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """Column sums of N diag(N vector / diagonal), but for the mantissa of y; (B, slabs, m).  Grid: (slabs x B)."""
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    b, first, last = own_slab(tl.program_id(0), slabs, slab_rows, n)
    scale_high, scale_low = split_scale(reg + b, dtype)
    cols = tl.arange(0, COLS)
    inside = cols < m
    exponent, mantissa = split_exponent(tl.load(log_y + b * m + cols, mask=inside, other=NEG_INF), dtype)
    weight = mantissa * tl.load(vector + b * m + cols, mask=inside, other=0.0).to(dtype)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + cols[None, :]

    column_sum = tl.zeros((COLS,), dtype)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        p, mantissa_x = tile_of_n(tile, log_x + b * n, rows, alive, inside, stride_n, scale_high, scale_low, exponent,
                                  dtype)
        d = tl.load(diagonal + b * n + rows, mask=alive, other=1.0).to(dtype)
        share = tl.sum(p * weight[None, :], axis=1) * (mantissa_x * mantissa_x / d)
        column_sum += tl.sum(p * share[:, None], axis=0)

    tl.store(partial + tl.program_id(0).to(tl.int64) * m + cols, column_sum, mask=inside)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "slabs", "slab_rows"])
def eliminate_kernel(cost, items, log_x, log_y, root_r, root_c, row_side, row_ratio, reg, diagonal, partial, stride_b,
                     stride_n, n, m, slabs, slab_rows, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
                     VECTOR: tl.constexpr):
    """`Backend.eliminate`: the diagonal d of the rows, and column sums (B, slabs, 3, m).  Grid: (slabs x B)."""
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    b, first, last = own_slab(tl.program_id(0), slabs, slab_rows, n)
    scale_high, scale_low = split_scale(reg + b, dtype)
    cols = tl.arange(0, COLS)
    inside = cols < m
    exponent, mantissa = split_exponent(tl.load(log_y + b * m + cols, mask=inside, other=NEG_INF), dtype)
    weight = mantissa * tl.load(root_c + b * m + cols, mask=inside, other=0.0).to(dtype)
    ratio = tl.load(row_ratio + b)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + cols[None, :]

    by_root = tl.zeros((COLS,), dtype)
    by_side = tl.zeros((COLS,), dtype)
    of_squares = tl.zeros((COLS,), dtype)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        p, mantissa_x = tile_of_n(tile, log_x + b * n, rows, alive, inside, stride_n, scale_high, scale_low, exponent,
                                  dtype)
        p = p * mantissa_x[:, None]
        root = tl.load(root_r + b * n + rows, mask=alive, other=0.0)
        side = tl.load(row_side + b * n + rows, mask=alive, other=0.0)
        d = quotient_near_one(tl.sum(p * weight[None, :], axis=1).to(tl.float64), root) * ratio
        tl.store(diagonal + b * n + rows, d, mask=alive)
        by_root += tl.sum(p * root.to(dtype)[:, None], axis=0)
        by_side += tl.sum(p * (side / d).to(dtype)[:, None], axis=0)
        of_squares += tl.sum(p * p * (1.0 / d).to(dtype)[:, None], axis=0)

    # Read once more, so that the loop need not keep it.
    _, mantissa = split_exponent(tl.load(log_y + b * m + cols, mask=inside, other=NEG_INF), dtype)
    place = partial + tl.program_id(0).to(tl.int64) * 3 * m + cols
    tl.store(place, by_root * mantissa, mask=inside)
    tl.store(place + m, by_side * mantissa, mask=inside)
    tl.store(place + 2 * m, of_squares * (mantissa * mantissa), mask=inside)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "blocks"])
def through_kernel(cost, items, log_x, log_y, vector, reg, through, stride_b, stride_n, n, m, blocks,
                   ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """N vector, (B, n), float64, for rows of any width.  Grid: (row blocks of each item)."""
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    b, first, last = own_slab(tl.program_id(0), blocks, ROWS, n)
    rows = first + tl.arange(0, ROWS)
    alive = rows < last
    scale_high, scale_low = split_scale(reg + b, dtype)
    exponent_x, mantissa_x = split_exponent(tl.load(log_x + b * n + rows, mask=alive, other=NEG_INF), dtype)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + rows.to(tl.int64)[:, None] * stride_n

    total = tl.zeros((ROWS,), dtype)
    for col in tl.range(0, m, COLS, num_stages=STAGES):
        cols = col + tl.arange(0, COLS)
        inside = cols < m
        c = tl.load(tile + cols[None, :], mask=alive[:, None] & inside[None, :], other=0.0)
        exponent, mantissa = split_exponent(tl.load(log_y + b * m + cols, mask=inside, other=NEG_INF), dtype)
        weight = mantissa * tl.load(vector + b * m + cols, mask=inside, other=0.0).to(dtype)
        p = anchored_times_two_to(c.to(dtype), scale_high, scale_low, exponent_x[:, None] + exponent[None, :])
        total += tl.sum(p * weight[None, :], axis=1)

    tl.store(through + b * n + rows, (total * mantissa_x).to(tl.float64), mask=alive)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "slabs", "slab_rows", "blocks"])
def back_kernel(cost, items, log_x, log_y, weights, reg, partial, stride_b, stride_n, n, m, slabs, slab_rows, blocks,
                SUMS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
                VECTOR: tl.constexpr):
    """Column sums of N times ``weights`` (B, SUMS, n), for rows of any width; a third are those of N's squares.

    partial is (B, slabs, SUMS, m), SUMS 1 or 3.  Grid: (slabs x column blocks of each item).
    """
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    slab = tl.program_id(0) // blocks
    b, first, last = own_slab(slab, slabs, slab_rows, n)
    cols = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    inside = cols < m
    scale_high, scale_low = split_scale(reg + b, dtype)
    exponent, mantissa = split_exponent(tl.load(log_y + b * m + cols, mask=inside, other=NEG_INF), dtype)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + cols[None, :]
    weights += b * SUMS * n

    by_first = tl.zeros((COLS,), dtype)
    by_second = tl.zeros((COLS,), dtype)
    of_squares = tl.zeros((COLS,), dtype)
    for row in tl.range(first, last, ROWS, num_stages=STAGES):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        p, mantissa_x = tile_of_n(tile, log_x + b * n, rows, alive, inside, stride_n, scale_high, scale_low, exponent,
                                  dtype)
        p = p * mantissa_x[:, None]
        weight = tl.load(weights + rows, mask=alive, other=0.0).to(dtype)
        by_first += tl.sum(p * weight[:, None], axis=0)
        if SUMS == 3:
            weight = tl.load(weights + n + rows, mask=alive, other=0.0).to(dtype)
            by_second += tl.sum(p * weight[:, None], axis=0)
            weight = tl.load(weights + 2 * n + rows, mask=alive, other=0.0).to(dtype)
            of_squares += tl.sum(p * p * weight[:, None], axis=0)

    place = partial + slab.to(tl.int64) * SUMS * m + cols
    tl.store(place, by_first * mantissa, mask=inside)
    if SUMS == 3:
        tl.store(place + m, by_second * mantissa, mask=inside)
        tl.store(place + 2 * m, of_squares * (mantissa * mantissa), mask=inside)
