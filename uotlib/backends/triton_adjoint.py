"""Launches of the passes that gradients are made of: the adjoint's (kernels/adjoint.py) and W's (kernels/weigh.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import arithmetic, near_one

if TYPE_CHECKING:
    from .triton import TritonBackend

#: Ranks up to this are sums of outer products, one by one; beyond, products of tiles with so many terms each.
ELEMENTWISE_RANK = 4
DOT_RANK = 16
#: Columns of a factor that a program works on: the least of these that holds them all, or the last.
WIDTHS = (16, 32)


def schur(backend: TritonBackend, cost: Tensor, log_x: Tensor, log_y: Tensor, row_diagonal: Tensor, vector: Tensor,
          reg: Tensor, total: Tensor, items: Tensor | None) -> None:
    """`Backend.schur` of a cost with entries."""
    (count, n), m = log_x.shape, log_y.shape[1]
    tile = backend.table.schur_tile(m, cost.dtype == torch.float64)
    if tile is None:
        through = _through(backend, cost, log_x, log_y, vector, reg, items)
        _back(backend, cost, log_x, log_y, (through / row_diagonal)[:, None], reg, total[:, None], items)
        return
    slabs, slab_rows = backend._slabs(cost, count, n, tile, 1)
    partial = _partial(cost, count, slabs, m)
    backend._launch("schur_kernel", cost, count * slabs, tile, items, log_x, log_y, row_diagonal, vector, reg, partial,
                    *cost.stride()[:2], n, m, slabs, slab_rows, STAGES=tile.stages)
    backend._merge(partial, log_y, total)


def eliminate(backend: TritonBackend, cost: Tensor, log_x: Tensor, log_y: Tensor, root_r: Tensor, root_c: Tensor,
              row_side: Tensor, row_ratio: Tensor, reg: Tensor, sums: Tensor, items: Tensor | None) -> Tensor:
    """`Backend.eliminate` of a cost with entries."""
    (count, n), m = log_x.shape, log_y.shape[1]
    tile = backend.table.eliminate_tile(m, cost.dtype == torch.float64)
    if tile is None:
        through = _through(backend, cost, log_x, log_y, root_c, reg, items)
        diagonal = near_one(through, root_r) * row_ratio[:, None]
        weights = torch.stack([root_r, row_side / diagonal, 1 / diagonal], 1)
        _back(backend, cost, log_x, log_y, weights, reg, sums, items)
        return diagonal
    diagonal = log_x.new_empty((count, n))
    slabs, slab_rows = backend._slabs(cost, count, n, tile, 1)
    partial = _partial(cost, count, slabs, 3 * m)
    backend._launch("eliminate_kernel", cost, count * slabs, tile, items, log_x, log_y, root_r, root_c, row_side,
                    row_ratio, reg, diagonal, partial, *cost.stride()[:2], n, m, slabs, slab_rows, STAGES=tile.stages)
    backend._merge(partial, None, sums)
    return diagonal


def _through(backend: TritonBackend, cost: Tensor, log_x: Tensor, log_y: Tensor, vector: Tensor, reg: Tensor,
             items: Tensor | None) -> Tensor:
    """N vector, (B, n)."""
    (count, n), m = log_x.shape, log_y.shape[1]
    out = log_x.new_empty((count, n))
    tile = backend._tile("through", cost)
    blocks = -(-n // tile.rows)
    backend._launch("through_kernel", cost, count * blocks, tile, items, log_x, log_y, vector, reg, out,
                    *cost.stride()[:2], n, m, blocks, STAGES=tile.stages)
    return out


def _back(backend: TritonBackend, cost: Tensor, log_x: Tensor, log_y: Tensor, weights: Tensor, reg: Tensor,
          total: Tensor, items: Tensor | None) -> None:
    """Add N' weights, the third those of N's squares, to ``total`` (B, 1 or 3, m)."""
    (count, n), m = log_x.shape, log_y.shape[1]
    tile = backend._tile("back", cost)
    blocks, sums = -(-m // tile.cols), weights.shape[1]
    slabs, slab_rows = backend._slabs(cost, count, n, tile, blocks)
    partial = _partial(cost, count, slabs, sums * m)
    backend._launch("back_kernel", cost, count * slabs * blocks, tile, items, log_x, log_y, weights, reg, partial,
                    *cost.stride()[:2], n, m, slabs, slab_rows, blocks, SUMS=sums, STAGES=tile.stages)
    backend._merge(partial, None, total)


def weigh(backend: TritonBackend, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None,
          right: Tensor | None, items: Tensor | None, scale: Tensor | None, *, row_sum: Tensor | None = None,
          col_sum: Tensor | None = None, out: Tensor | None = None, factor: Tensor | None = None,
          product: Tensor | None = None, transposed: bool = False, add: bool = False, cost_sum: Tensor | None = None,
          direct: Tensor | None = None) -> None:
    """`Backend.weigh`, or ``transposed`` `Backend.weigh_columns`, or `Backend.weigh_cost`, of a cost with entries."""
    own_scaling, other_scaling = (log_v, log_u) if transposed else (log_u, log_v)
    of_own, of_other = (right, left) if transposed else (left, right)
    (count, own), other = own_scaling.shape, other_scaling.shape[1]
    rank, width = (0 if left is None else left.shape[2]), (0 if factor is None else factor.shape[2])
    dots = rank > ELEMENTWISE_RANK
    tile = backend._tile("product" if dots or width else "weigh", cost)
    if add and (row_sum is not None or col_sum is not None or cost_sum is not None):
        tile = tile.spread  # sums and entries to add to are more than the registers of so few threads hold
    chunk = next((size for size in WIDTHS if size >= width), WIDTHS[-1])
    chunks, blocks = -(-max(width, 1) // chunk), -(-own // tile.rows)
    spans, span = backend._spans(cost, count * blocks * chunks, other, tile)
    products = None if factor is None else _partial(cost, count, spans, own, width)
    along = None if row_sum is None else log_u.new_empty((count, spans, own))
    across = None if col_sum is None else _partial(cost, count, blocks, other)
    costs = None if cost_sum is None else log_u.new_empty((count, spans * blocks))
    backend._launch(
        "weigh_kernel", cost, count * blocks * spans * chunks, tile, items, own_scaling, other_scaling, reg,
        None if of_own is None else of_own.mT, None if of_other is None else of_other.mT, scale, direct, factor,
        products, along, across, costs, *cost.stride()[:2], *((0, 0) if out is None else out.stride()[:2]), own, other,
        rank, width, blocks, spans, span, chunks, out=out, TRANSPOSED=transposed, ADD=add,
        RANK=DOT_RANK if dots else rank, DOTS=dots, WIDTH=chunk, PRECISION=_precision(cost), STAGES=tile.stages)
    if product is not None and products is not None:
        product += products.sum(1)
    if row_sum is not None and along is not None:
        row_sum.copy_(along.sum(1))
    if cost_sum is not None and costs is not None:
        cost_sum += costs.sum(1)
    if col_sum is not None and across is not None:
        backend._merge(across, None, col_sum)


def _partial(cost: Tensor, *shape: int) -> Tensor:
    """Memory for partial results, in the type of the arithmetic."""
    return cost.new_empty(shape, dtype=arithmetic(cost))


def _precision(cost: Tensor) -> str:
    """Of products of tiles: as good as float32's own on tensor cores, where there is such a thing."""
    return "ieee" if cost.dtype == torch.float64 or torch.version.hip is not None else "tf32x3"

