"""Sums and products of W_ij = T_ij sum_k L_ik R_jk, or T_ij C_ij, T a block of the plan: what gradients through it are.

A program owns a tile of rows (or, transposed, of columns), goes along a span of the other side, and keeps its part of
W F on chip.  Every tile of W is made once, used for all that is asked of it, and dropped.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import (
    NEG_INF,
    arithmetic_type,
    item_cost,
    multiple_of,
    split_exponent,
    split_scale,
    times_two_to,
)


@triton.jit
def low_rank_tile(left, right, rows, cols, own, other, rank, alive, inside, dtype: tl.constexpr, RANK: tl.constexpr,
                  DOTS: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """A tile of L R', of left (rank, own) and right (rank, other): RANK terms one by one, or products of RANK each."""
    tile = tl.zeros((ROWS, COLS), dtype)
    if DOTS:
        for start in tl.range(0, rank, RANK, num_stages=1):
            terms = tl.arange(0, RANK)
            there = terms < rank - start
            l = tl.load(left + own.to(tl.int64) * start + terms[None, :] * own + rows[:, None],
                        mask=there[None, :] & alive[:, None], other=0.0)
            r = tl.load(right + other.to(tl.int64) * start + terms[:, None] * other + cols[None, :],
                        mask=there[:, None] & inside[None, :], other=0.0)
            tile = tl.dot(l, r, tile, input_precision=PRECISION, out_dtype=dtype)
    else:
        for term in tl.static_range(RANK):
            l = tl.load(left + term * own + rows, mask=alive, other=0.0)
            r = tl.load(right + term * other + cols, mask=inside, other=0.0)
            tile += l[:, None] * r[None, :]
    return tile


@triton.jit(do_not_specialize=["stride_b", "stride_n", "out_b", "out_n", "own", "other", "rank", "width", "blocks",
                               "spans", "span", "chunks"])
def weigh_kernel(cost, items, log_own, log_other, reg, left, right, scale, direct, factor, product, own_sum,
                 other_sum, cost_sum, stride_b, stride_n, out_b, out_n, own, other, rank, width, blocks, spans, span,
                 chunks, out, TRANSPOSED: tl.constexpr, ADD: tl.constexpr, RANK: tl.constexpr, DOTS: tl.constexpr,
                 WIDTH: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
                 STAGES: tl.constexpr, VECTOR: tl.constexpr):
    """Grid: (chunks of the factor's columns x spans of so many tiles x blocks of each item).

    ``own`` are rows, or columns if TRANSPOSED.
    left (B, rank, own), right (B, rank, other), factor (B, other, width); product (B, spans, own, width),
    own_sum (B, spans, own) and other_sum (B, blocks, other), where they are given: partial results, every entry of
    which is written; and so of cost_sum (B, spans, blocks), which is <W, C>, float64, and comes without a factor.  out,
    of any strides (out_b, out_n, 1), becomes s W, or s W is added to it (ADD).  With ``direct`` (B,) W is T C, not of L
    and R, and s W + direct T takes the place of s W.  A pair without mass costs nothing, be it forbidden.
    """
    dtype: tl.constexpr = arithmetic_type(cost.dtype.element_ty)
    stride_n = multiple_of(stride_n, VECTOR)
    if TRANSPOSED:
        own = multiple_of(own, VECTOR)
    else:
        other = multiple_of(other, VECTOR)
    program = tl.program_id(0)
    chunk = program % chunks
    part = program // chunks
    place = part // spans  # of the block among all items'
    b = (place // blocks).to(tl.int64)
    first = part % spans * span * COLS
    last = tl.minimum(first + span * COLS, other)
    # Offsets within a tile fit 32 bits.
    row = place % blocks * ROWS
    rows = row + tl.arange(0, ROWS)
    alive = rows < own
    tile = item_cost(cost, items, b, stride_b, VECTOR)
    if out is not None:
        out_n = multiple_of(out_n, VECTOR)
        out += b * multiple_of(out_b, VECTOR) + row.to(tl.int64) * out_n
    scale_high, scale_low = split_scale(reg + b, dtype)
    exponent_own, mantissa_own = split_exponent(tl.load(log_own + b * own + rows, mask=alive, other=NEG_INF), dtype)
    if scale is not None:
        by = tl.load(scale + b).to(dtype)
    else:
        by = tl.full((), 1.0, dtype)
    if direct is not None:
        by_plan = tl.load(direct + b).to(dtype)
    if cost_sum is not None:
        weighted = tl.zeros((ROWS,), dtype)
    if RANK > 0:
        left += b * rank * own
        right += b * rank * other
    if factor is not None:
        words = chunk * WIDTH + tl.arange(0, WIDTH)
        total = tl.zeros((ROWS, WIDTH), dtype)
    if own_sum is not None:
        along = tl.zeros((ROWS,), dtype)
    if other_sum is not None:
        across = other_sum + place.to(tl.int64) * other

    for col in tl.range(first, last, COLS, num_stages=STAGES):
        cols = col + tl.arange(0, COLS)
        inside = cols < other
        both = alive[:, None] & inside[None, :]
        if TRANSPOSED:
            offset = rows[:, None] + tl.arange(0, COLS)[None, :] * stride_n
            c = tl.load(tile + stride_n.to(tl.int64) * col + offset, mask=both, other=0.0)
        else:
            offset = tl.arange(0, ROWS)[:, None] * stride_n + cols[None, :]
            c = tl.load(tile + row.to(tl.int64) * stride_n + offset, mask=both, other=0.0)
        log_j = tl.load(log_other + b * other + cols, mask=inside, other=NEG_INF)
        exponent, mantissa = split_exponent(log_j, dtype)
        w = times_two_to(c.to(dtype), scale_high, scale_low, exponent_own[:, None] + exponent[None, :])
        w = w * (mantissa_own[:, None] * mantissa[None, :])
        if direct is not None or cost_sum is not None:
            finite = tl.where(w != 0.0, c.to(dtype), 0.0)
        if direct is not None:
            entries = w * tl.fma(by, finite, by_plan)
            w = w * finite
        if RANK > 0:
            w = w * low_rank_tile(left, right, rows, cols, own, other, rank, alive, inside, dtype, RANK, DOTS,
                                  PRECISION, ROWS, COLS)
        if cost_sum is not None:
            weighted += tl.sum(w * finite, axis=1)
        if direct is None:
            entries = w * by
        if own_sum is not None:
            along += tl.sum(w, axis=1)
        if other_sum is not None:
            tl.store(across + cols, tl.sum(w, axis=0), mask=cols < tl.where(chunk == 0, other, 0))
        if out is not None:
            place_out = out + (tl.arange(0, ROWS)[:, None] * out_n + cols[None, :])
            if ADD:
                entries += tl.load(place_out, mask=both, other=0.0)
            tl.store(place_out, entries, mask=both)
        if factor is not None:
            f = tl.load(factor + (b * other + col) * width + (tl.arange(0, COLS)[:, None] * width + words[None, :]),
                        mask=inside[:, None] & (words < width)[None, :], other=0.0)
            total = tl.dot(w if direct is None else entries, f, total, input_precision=PRECISION, out_dtype=dtype)

    points = (b * spans + part % spans) * own + rows
    if own_sum is not None:
        tl.store(own_sum + points, along, mask=rows < tl.where(chunk == 0, own, 0))
    if cost_sum is not None:
        tl.store(cost_sum + (b * spans + part % spans) * blocks + place % blocks,
                 tl.sum(weighted.to(tl.float64), axis=0))
    if factor is not None:
        if direct is None:
            total *= by
        tl.store(product + points[:, None] * width + words[None, :], total,
                 mask=alive[:, None] & (words < width)[None, :])
