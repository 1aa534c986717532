"""Exact log-sum-exp along the rows: one read of the cost, any width."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    LOWEST,
    anchored_times_two_to,
    item_index,
    multiple_of,
    natural_log,
    split_exponent,
    split_scale,
)


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "blocks"])
def row_lse_kernel(cost, items, log_v, reg, row_lse, stride_b, stride_n, n, m, blocks, ROWS: tl.constexpr,
                   COLS: tl.constexpr, STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """log sum_j v_j exp(-C_ij / eps) with a running maximum.  Grid: (row blocks of each item)."""
    dtype: tl.constexpr = cost.dtype.element_ty
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    rows = program % blocks * ROWS + tl.arange(0, ROWS)
    alive = rows < n
    scale_high, scale_low = split_scale(reg + b, dtype)
    tile = cost + item_index(items, b) * multiple_of(stride_b, VECTOR) + rows.to(tl.int64)[:, None] * stride_n

    anchor = tl.full((ROWS,), LOWEST, dtype)
    total = tl.zeros((ROWS,), dtype)
    for col in tl.range(0, m, COLS, num_stages=STAGES):
        cols = col + tl.arange(0, COLS)
        inside = cols < m
        c = tl.load(tile + cols[None, :], mask=alive[:, None] & inside[None, :], other=0.0)
        log_v_j = tl.load(log_v + b * m + cols, mask=inside, other=float("-inf"))
        exponent, mantissa = split_exponent(log_v_j, dtype)
        # tl.ceil(-inf) stays -inf and loses to LOWEST, so the anchor is always finite.
        raised = tl.maximum(anchor, tl.ceil(tl.max(tl.fma(c, scale_high, exponent[None, :]), axis=1)))
        p = anchored_times_two_to(c, scale_high, scale_low, exponent[None, :] - raised[:, None])
        total = total * tl.exp2(anchor - raised) + tl.sum(p * mantissa[None, :], axis=1)
        anchor = raised

    tl.store(row_lse + b * n + rows, natural_log(anchor, total), mask=alive)
