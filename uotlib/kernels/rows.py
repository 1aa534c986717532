"""Exact log-sum-exp along the rows: one read of the cost, any width."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    LOWEST,
    add_terms,
    arithmetic_type,
    item_cost,
    multiple_of,
    natural_log,
    own_slab,
    split_exponent,
    split_scale,
)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "blocks"])
def row_lse_kernel(cost, items, log_v, reg, row_lse, stride_b, stride_n, n, m, blocks, ROWS: tl.constexpr,
                   COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """log sum_j v_j exp(-C_ij / eps) with a running maximum.  Grid: (row blocks of each item)."""
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    b, first, last = own_slab(tl.program_id(0), blocks, ROWS, n)
    rows = first + tl.arange(0, ROWS)
    alive = rows < last
    scale_high, scale_low = split_scale(reg + b, dtype)
    tile = item_cost(cost, items, b, stride_b, VECTOR) + rows.to(tl.int64)[:, None] * stride_n

    anchor = tl.full((ROWS,), LOWEST, dtype)
    total = tl.zeros((ROWS,), dtype)
    for col in tl.range(0, m, COLS, num_stages=STAGES):
        cols = col + tl.arange(0, COLS)
        inside = cols < m
        c = tl.load(tile + cols[None, :], mask=alive[:, None] & inside[None, :], other=0.0).to(dtype)
        log_v_j = tl.load(log_v + b * m + cols, mask=inside, other=float("-inf"))
        exponent, mantissa = split_exponent(log_v_j, dtype)
        anchor, total = add_terms(anchor, total, c, scale_high, scale_low, exponent[None, :], mantissa[None, :], 1)

    tl.store(row_lse + b * n + rows, natural_log(anchor, total), mask=alive)
