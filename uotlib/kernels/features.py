r"""Kernels of costs :math:`C_{ij} = \langle x_i, z_j\rangle`, computed by tensor cores and never stored.

A program owns a block of rows and passes over tiles of columns, as attention does: a product of features, exponents
relative to integer anchors (`numerics`), a reduction along the row.  Sums down the columns are the same kernels with x
and z in each other's place, so nothing is shared between programs.  Features are padded with zeros to whole chunks of
DEPTH, rows of x stay on chip where they are one chunk (SINGLE), and all kernels add the chunks in the same order: an
entry has the same rounding in each of them.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import LOWEST, item_index, multiple_of, split_exponent, split_scale


@triton.jit
def first_chunk(features, points, there, depth, DEPTH: tl.constexpr, SINGLE: tl.constexpr):
    """A chunk of the features of some points, (points, DEPTH), where it is all of them; else where to load it from."""
    place = features + points.to(tl.int64)[:, None] * depth + tl.arange(0, DEPTH)[None, :]
    if SINGLE:
        return tl.load(place, mask=there[:, None], other=0.0)
    else:
        return place


@triton.jit
def inner_products(x, z, alive, inside, depth, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
                   SINGLE: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr):
    """<x_i, z_j> of a tile, (ROWS, COLS), from what `first_chunk` gives, in the type of the features."""
    if SINGLE:
        s = tl.dot(x, tl.trans(z), input_precision=PRECISION, out_dtype=x.dtype)
    else:
        s = tl.zeros((ROWS, COLS), x.dtype.element_ty)
        for start in tl.range(0, depth, DEPTH, num_stages=STAGES):
            x_k = tl.load(x + start, mask=alive[:, None], other=0.0)
            z_k = tl.load(z + start, mask=inside[:, None], other=0.0)
            part = tl.dot(x_k, tl.trans(z_k), input_precision=PRECISION, out_dtype=s.dtype)
            # Tensor cores round sums towards zero, step by step: chunks are added by themselves.  A plain sum would be
            # folded into the product's accumulator.
            s = tl.fma(part, 1.0, s)
    return s


@triton.jit
def power_of_two(s, scale_high, scale_low, exponent, dtype: tl.constexpr):
    """exponent - s log2(e) / eps, where s may be float64 and the rest is not."""
    high = s.to(dtype)
    power = tl.fma(high, scale_low, tl.fma(high, scale_high, exponent))
    if s.dtype != dtype:
        power += (s - high.to(s.dtype)).to(dtype) * scale_high
    return power


@triton.jit
def own_range(part, block, items, splits, split_cols, m, ROWS: tl.constexpr):
    """A program's problem, its item of the features, rows, and first and last column."""
    b = (part // splits).to(tl.int64)
    first = part % splits * split_cols
    return b, item_index(items, b), block * ROWS + tl.arange(0, ROWS), first, tl.minimum(first + split_cols, m)


@triton.jit(do_not_specialize=["n", "m", "depth", "splits", "split_cols", "blocks"])
def feature_lse_kernel(x, z, items, log_v, reg, anchors, totals, n, m, depth, splits, split_cols, blocks,
                       ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, SINGLE: tl.constexpr,
                       STAGES: tl.constexpr, PRECISION: tl.constexpr, DOUBLE: tl.constexpr):
    """log sum_j v_j exp(-<x_i, z_j> / eps) as (anchor, total), both (B, splits, n), total in float64.

    Grid: (row blocks of each range of columns of each item).
    """
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    depth = multiple_of(depth, DEPTH)
    program = tl.program_id(0)
    part = program // blocks
    b, item, rows, first, last = own_range(part, program % blocks, items, splits, split_cols, m, ROWS)
    alive = rows < n
    scale_high, scale_low = split_scale(reg + b, dtype)
    x_i = first_chunk(x + item * n * depth, rows, alive, depth, DEPTH, SINGLE)

    anchor = tl.full((ROWS,), LOWEST, dtype)
    total = tl.zeros((ROWS,), tl.float64)
    for col in tl.range(first, last, COLS, num_stages=STAGES):
        cols = col + tl.arange(0, COLS)
        inside = cols < last
        z_j = first_chunk(z + item * m * depth, cols, inside, depth, DEPTH, SINGLE)
        exponent, mantissa = split_exponent(tl.load(log_v + b * m + cols, mask=inside, other=float("-inf")), dtype)
        s = inner_products(x_i, z_j, alive, inside, depth, ROWS, COLS, DEPTH, SINGLE, STAGES, PRECISION)
        raised = tl.maximum(anchor, tl.ceil(tl.max(tl.fma(s.to(dtype), scale_high, exponent[None, :]), axis=1)))
        power = power_of_two(s, scale_high, scale_low, exponent[None, :] - raised[:, None], dtype)
        p = tl.exp2(tl.minimum(power, 1.0, propagate_nan=tl.PropagateNan.ALL))
        total = total * tl.exp2(anchor - raised).to(tl.float64) + tl.sum(p * mantissa[None, :], axis=1).to(tl.float64)
        anchor = raised

    place = part.to(tl.int64) * n + rows
    tl.store(anchors + place, anchor, mask=alive)
    tl.store(totals + place, total, mask=alive)


@triton.jit(do_not_specialize=["n", "m", "depth", "rank", "width", "pitch", "splits", "split_cols", "blocks",
                               "width_blocks"])
def feature_weigh_kernel(x, z, items, alpha, beta, log_x, log_y, reg, left, right, factor, row_sum, cost_sum, product,
                         n, m, depth, rank, width, pitch, splits, split_cols, blocks, width_blocks,
                         ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, SINGLE: tl.constexpr,
                         RANK: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
                         FACTORS: tl.constexpr, DOUBLE: tl.constexpr):
    r"""Sums over ranges of columns of W_ij = exp(x_i + y_j - s_ij / eps) <L_i, R_j>, with s_ij = <x_i, z_j>.

    row_sum = sum_j W_ij and cost_sum = sum_j W_ij (alpha_i + beta_j + s_ij), both (B, splits, n), float64;
    product = sum_j W_ij F_je, (B, splits, n, width), from F' (B, width, pitch), pitch a multiple of COLS.  cost_sum,
    with alpha and beta, and product, with factor, may be None.
    L and R are (B, n, rank) and (B, m, rank), rank a multiple of RANK; without L, R is a vector (B, m), or None.
    Grid: (row blocks of each WIDTH columns of F of each range of columns of each item).
    """
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    depth = multiple_of(depth, DEPTH)
    program = tl.program_id(0)
    width_block = program // blocks % width_blocks
    part = program // blocks // width_blocks
    b, item, rows, first, last = own_range(part, program % blocks, items, splits, split_cols, m, ROWS)
    alive = rows < n
    scale_high, scale_low = split_scale(reg + b, dtype)
    x_i = first_chunk(x + item * n * depth, rows, alive, depth, DEPTH, SINGLE)
    exponent_x, mantissa_x = split_exponent(tl.load(log_x + b * n + rows, mask=alive, other=float("-inf")), dtype)

    total = tl.zeros((ROWS,), tl.float64)
    if cost_sum is not None:
        weighted = tl.zeros((ROWS,), tl.float64)
        alpha_i = tl.load(alpha + item * n + rows, mask=alive, other=0.0).to(dtype)
    if product is not None:
        columns = width_block * WIDTH + tl.arange(0, WIDTH)
        start = factor + (b * width + columns)[:, None] * multiple_of(pitch, COLS)
        sums = tl.zeros((ROWS, WIDTH), dtype)
    for col in tl.range(first, last, COLS, num_stages=STAGES):
        cols = col + tl.arange(0, COLS)
        inside = cols < last
        z_j = first_chunk(z + item * m * depth, cols, inside, depth, DEPTH, SINGLE)
        exponent_y, weight = split_exponent(tl.load(log_y + b * m + cols, mask=inside, other=float("-inf")), dtype)
        s = inner_products(x_i, z_j, alive, inside, depth, ROWS, COLS, DEPTH, SINGLE, STAGES, PRECISION)
        power = power_of_two(s, scale_high, scale_low, exponent_x[:, None] + exponent_y[None, :], dtype)
        if left is None and right is not None:
            weight *= tl.load(right + b * m + cols, mask=inside, other=0.0)
        w = tl.exp2(power) * weight[None, :]
        if left is not None:
            l_i = first_chunk(left + b * n * rank, rows, alive, multiple_of(rank, RANK), RANK, False)
            r_j = first_chunk(right + b * m * rank, cols, inside, multiple_of(rank, RANK), RANK, False)
            w *= inner_products(l_i, r_j, alive, inside, rank, ROWS, COLS, RANK, False, STAGES, FACTORS)
        total += tl.sum(w, axis=1).to(tl.float64)
        if cost_sum is not None:
            beta_j = tl.load(beta + item * m + cols, mask=inside, other=0.0).to(dtype)
            c = s.to(dtype) + (alpha_i[:, None] + beta_j[None, :])
            weighted += tl.sum(w * c, axis=1).to(tl.float64)
        if product is not None:
            f = tl.load(start + cols[None, :], mask=(columns < width)[:, None], other=0.0)
            wf = tl.dot(w, tl.trans(f), input_precision=FACTORS, out_dtype=dtype)
            sums = tl.fma(wf, 1.0, sums)  # as in `inner_products`

    place = part.to(tl.int64) * n + rows
    once = rows < tl.where(width_block == 0, n, 0)
    tl.store(row_sum + place, total * mantissa_x, mask=once)
    if cost_sum is not None:
        tl.store(cost_sum + place, weighted * mantissa_x, mask=once)
    if product is not None:
        tl.store(product + place[:, None] * width + columns[None, :], sums * mantissa_x[:, None],
                 mask=alive[:, None] & (columns < width)[None, :])
