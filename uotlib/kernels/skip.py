r"""Which segments of a tile's rows the sweep need not read: decided on the device, from the sweep before, no guess.

Let :math:`C_{IJ}` be the least cost of tile I of rows and segment J of columns, r and q the log-sum-exps of rows and
columns that the last sweep found at its scalings, eps the same as now, and :math:`[\delta, \Delta]` the range of
:math:`\log v_j - \log v_j'` over all columns, v' being that sweep's v.  Then

.. math:: r_i^{now} \ge r_i + \delta, \qquad
          o_i - d\,(r_i + \Delta) \le \log u_i^{now} \le o_i - d\,(r_i + \delta), \qquad q_j^{now} \ge q_j - d\,\Delta

with offset o and damping d of the half-step, because a log-sum-exp moves no further than its terms.  An entry of the
block is at most :math:`e^{\max_J \log v - C_{IJ}/\varepsilon}` in its row's sum and :math:`e^{\max_I \log u^{now} -
C_{IJ}/\varepsilon}` in its column's.  It is left out where these are below t / m of every row's sum in I, and t / n of
every column's in J: so no sum lacks more than the share t, rows and columns far from everything included.  Where eps
has changed, or a point has come or gone, the ranges are infinite and nothing is left out; nor is a NaN.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import NEG_INF, arithmetic_type, item_cost, item_index, multiple_of, own_slab


@triton.jit(do_not_specialize=["stride_b", "stride_n", "n", "m", "tiles"])
def block_min_kernel(cost, items, sparse, table, stride_b, stride_n, n, m, tiles, SEGMENT: tl.constexpr,
                     ROWS: tl.constexpr, COLS: tl.constexpr, VECTOR: tl.constexpr):
    """Least cost of each segment of a tile of rows, (B, tiles, COLS / SEGMENT); -inf with a NaN in it.  Grid: tiles.

    ``sparse``, a byte or None: where it is 0 nobody will ask, and nothing is read.
    """
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    SEGMENTS: tl.constexpr = COLS // SEGMENT
    m = multiple_of(m, VECTOR)
    stride_n = multiple_of(stride_n.to(tl.int64), VECTOR)
    b, first, last = own_slab(tl.program_id(0), tiles, ROWS, n)
    if sparse is not None:
        last = tl.where(tl.load(sparse) > 0, last, first)
    segments = tl.arange(0, SEGMENTS)
    cols = segments[:, None] * SEGMENT + tl.arange(0, SEGMENT)[None, :]
    least = tl.full((SEGMENTS,), float("inf"), dtype)
    for row in range(first, last):
        c = tl.load(item_cost(cost, items, b, stride_b, VECTOR) + stride_n * row + cols, mask=cols < m,
                    other=float("inf")).to(dtype)
        least = tl.minimum(least, tl.min(tl.where(c == c, c, NEG_INF), axis=1))
    tl.store(table + tl.program_id(0).to(tl.int64) * SEGMENTS + segments, least)


@triton.jit(do_not_specialize=["m"])
def bound_columns_kernel(log_v, last_log_v, last_col_lse, bounds, m, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr):
    """(B, 4, SEGMENTS): the largest log v, the least q of a column with mass, delta and Delta.  Grid: segments x B."""
    b = (tl.program_id(0) // SEGMENTS).to(tl.int64)
    segment = tl.program_id(0) % SEGMENTS
    cols = segment * SEGMENT + tl.arange(0, SEGMENT)
    inside = cols < m
    now = tl.load(log_v + b * m + cols, mask=inside, other=NEG_INF)
    before = tl.load(last_log_v + b * m + cols, mask=inside, other=NEG_INF)
    lse = tl.load(last_col_lse + b * m + cols, mask=inside, other=NEG_INF)
    dead = now == NEG_INF
    known = (now == now) & (lse == lse)
    change = tl.where(dead & (before == NEG_INF), 0.0, now - before)
    target = bounds + b * 4 * SEGMENTS + segment
    tl.store(target, tl.max(tl.where(known, now, float("inf")), axis=0))
    tl.store(target + SEGMENTS, tl.min(tl.where(dead, float("inf"), tl.where(known, lse, NEG_INF)), axis=0))
    tl.store(target + 2 * SEGMENTS, tl.min(tl.where(change == change, change, NEG_INF), axis=0))
    tl.store(target + 3 * SEGMENTS, tl.max(tl.where(change == change, change, float("inf")), axis=0))


@triton.jit(do_not_specialize=["n", "slabs", "slab_rows", "tiles"])
def skip_kernel(table, items, sparse, bounds, offset, damping, reg, last_reg, last_row_lse, skip, n, slabs, slab_rows,
                tiles, row_margin, col_margin, SEGMENTS: tl.constexpr, ROWS: tl.constexpr):
    """A word for each segment of each slab, (B, slabs, SEGMENTS): bit t says that tile t of the slab leaves it out.

    The margins are -log(t / m) and -log(t / n).  ``sparse`` (B,), bytes or None: problems of 0 leave nothing out, and
    have no table.  Grid: slabs of each item.
    """
    b, first, last = own_slab(tl.program_id(0), slabs, slab_rows, n)
    if sparse is not None:
        last = tl.where(tl.load(sparse + b) > 0, last, first)
    segments = tl.arange(0, SEGMENTS)
    bounds += b * 4 * SEGMENTS + segments
    high = tl.load(bounds)
    same = tl.load(reg + b) == tl.load(last_reg + b)
    fall = tl.where(same, tl.min(tl.load(bounds + 2 * SEGMENTS), axis=0), NEG_INF)
    rise = tl.where(same, tl.max(tl.load(bounds + 3 * SEGMENTS), axis=0), float("inf"))
    damping_b = tl.load(damping + b)
    col_limit = tl.load(bounds + SEGMENTS) - damping_b * rise - col_margin
    inverse = 1.0 / tl.load(reg + b)
    word = tl.zeros((SEGMENTS,), tl.int64)
    for row in range(first, last, ROWS):
        rows = row + tl.arange(0, ROWS)
        alive = rows < last
        lse = tl.load(last_row_lse + b * n + rows, mask=alive, other=float("inf"))
        lse = tl.where(lse == lse, lse, NEG_INF)
        offset_i = tl.load(offset + b * n + rows, mask=alive, other=NEG_INF)
        scaling = tl.where(offset_i == NEG_INF, NEG_INF, offset_i - damping_b * (lse + fall))
        least = tl.load(table + (item_index(items, b) * tiles + row // ROWS) * SEGMENTS + segments).to(tl.float64)
        x = -least * inverse
        by_rows = high + x <= tl.min(lse, axis=0) + fall - row_margin
        by_cols = tl.max(scaling, axis=0) + x <= col_limit
        word |= (by_rows & by_cols).to(tl.int64) << (row - first) // ROWS
    tl.store(skip + tl.program_id(0).to(tl.int64) * SEGMENTS + segments, word)
