"""A dense block of the plan."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import arithmetic_type, item_cost, multiple_of, split_exponent, split_scale, times_two_to


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "row_blocks", "col_blocks"])
def panel_kernel(cost, items, log_u, log_v, reg, plan, stride_b, stride_n, n, m, row_blocks, col_blocks,
                 ROWS: tl.constexpr, COLS: tl.constexpr, VECTOR: tl.constexpr):
    """u_i v_j exp(-C_ij / eps).  Grid: (row blocks x column blocks of each item)."""
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    program = tl.program_id(0)
    row_block = program // col_blocks
    b = (row_block // row_blocks).to(tl.int64)
    rows = row_block % row_blocks * ROWS + tl.arange(0, ROWS)
    cols = program % col_blocks * COLS + tl.arange(0, COLS)
    alive = rows < n
    inside = cols < m
    both = alive[:, None] & inside[None, :]
    scale_high, scale_low = split_scale(reg + b, dtype)
    start = item_cost(cost, items, b, stride_b, VECTOR)
    c = tl.load(start + rows.to(tl.int64)[:, None] * stride_n + cols[None, :], mask=both, other=0.0).to(dtype)
    exponent_u, mantissa_u = split_exponent(tl.load(log_u + b * n + rows, mask=alive, other=0.0), dtype)
    exponent_v, mantissa_v = split_exponent(tl.load(log_v + b * m + cols, mask=inside, other=0.0), dtype)
    p = times_two_to(c, scale_high, scale_low, exponent_u[:, None] + exponent_v[None, :])
    p = p * (mantissa_u[:, None] * mantissa_v[None, :])
    tl.store(plan + (b * n + rows)[:, None] * m + cols[None, :], p, mask=both)
