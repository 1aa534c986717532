"""Launches around the sweep that may leave out parts of the cost (kernels/skip.py)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..kernels.tiles import Tile
from .base import arithmetic

if TYPE_CHECKING:
    from .triton import TritonBackend
    from .triton_launch import Cut

#: Columns that are left out together: what a warp reads in one instruction.
SEGMENT = 128
#: Tiles of a slab whose bits fit a word.
WORD = 64
#: Share of a sum that may be left out.
SHARE = {torch.float32: 2.0**-25, torch.float64: 2.0**-54}


def table(backend: TritonBackend, cost: Tensor, tile: Tile, sparse: Tensor | None = None) -> Tensor:
    """Least cost of each segment of each tile of rows, (B, tiles, segments): one read of the cost.

    ``sparse``, bytes of the problems: nothing is read, and the table has no meaning, if all of them are 0.
    """
    count, n, m = cost.shape
    tiles = -(-n // tile.rows)
    least = cost.new_empty((count, tiles, tile.cols // _segment(tile)), dtype=arithmetic(cost))
    any_sparse = None if sparse is None else sparse.amax()
    backend._launch("block_min_kernel", cost, count * tiles, tile, None, any_sparse, least, *cost.stride()[:2], n, m,
                    tiles, SEGMENT=_segment(tile))
    return least


class Last(NamedTuple):
    """What the last sweep of the same problems was given and found; with the same offset and damping where eps is."""

    log_v: Tensor
    col_lse: Tensor
    reg: Tensor
    row_lse: Tensor


def words(backend: TritonBackend, least: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor,
          last: Last, cut: Cut, items: Tensor | None, sparse: Tensor | None = None) -> Tensor:
    """What a sweep may leave out after the sweep ``last``, (B, slabs, segments), int64: bit t is tile t of the slab.

    All vectors are contiguous.  Problems whose byte of ``sparse`` (B,) is 0 leave nothing out.
    """
    (count, n), m, tile = offset.shape, log_v.shape[1], cut.tile
    segments, share = least.shape[2], SHARE[least.dtype]
    bounds = log_v.new_empty((count, 4, segments))
    skip = torch.empty(count, cut.slabs, segments, dtype=torch.int64, device=log_v.device)
    narrow = Tile(tile.rows, tile.cols, warps=1)
    backend._run("bound_columns_kernel", log_v.device, count * segments, narrow, log_v, last.log_v, last.col_lse,
                 bounds, m, SEGMENT=_segment(tile), SEGMENTS=segments)
    backend._run("skip_kernel", log_v.device, count * cut.slabs, narrow, least, items, sparse, bounds, offset, damping,
                 reg, last.reg, last.row_lse, skip, n, cut.slabs, cut.rows, least.shape[1], math.log(m / share),
                 math.log(n / share), SEGMENTS=segments, ROWS=tile.rows)
    return skip


def _segment(tile: Tile) -> int:
    return min(SEGMENT, tile.cols)
