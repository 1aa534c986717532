"""Launches of the kernels that stream features: `uotlib.kernels.features`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.tiles import Tile, TileTable, feature_depth
from .features import Features, Weighed
from .triton_launch import ceil_div, interpreted, kernel, launch_options, multiprocessors, on

#: Factors of a weight of rank above 1 are multiplied in chunks of so many.
RANK = 16


def dot_precisions(precision: str, hip: bool) -> tuple[str, str]:
    """What `tl.dot` calls the precision of a product of features, and of one with factors, which is float32's."""
    if precision in ("float32", "float64"):
        return "ieee", "ieee"
    return precision, "bf16x6" if hip else "tf32x3"


@dataclass(frozen=True)
class TritonFeatures(Features):
    """Costs of features where a Triton kernel reaches them, cut by the tiles of a `TileTable`."""

    table: TileTable

    def _lse(self, log_v: Tensor, reg: Tensor, items: Tensor | None) -> Tensor:
        launch = FeatureLaunch(self, "feature_lse", len(log_v))
        anchors, totals = launch.partial_lse()
        launch.run("feature_lse_kernel", items, log_v, reg, anchors, totals)
        return self._merged(anchors, totals)

    def _merged(self, anchors: Tensor, totals: Tensor) -> Tensor:
        """Log-sum-exps, (A, n), from those of ranges of columns, in their order."""
        count, splits, n = anchors.shape
        out = totals.new_empty((count, n))
        tile = self.table.merge
        blocks = ceil_div(n, tile.cols)
        if count:
            with on(out.device):
                kernel("merge_col_lse_kernel")[(count * blocks,)](anchors, totals, None, out, n, splits, blocks,
                                                                  SLABS=tile.rows, COLS=tile.cols,
                                                                  **launch_options(tile))
        return out

    def _weigh(self, log_x: Tensor, log_y: Tensor, reg: Tensor, left: Tensor | None, right: Tensor | None,
               items: Tensor | None, factor: Tensor | None, cost: bool) -> Weighed:
        width = 1 if factor is None else factor.shape[2]
        tile_width = min(self.table.feature_width, max(16, 1 << (width - 1).bit_length()))
        plain = left is None and factor is None
        launch = FeatureLaunch(self, "feature_sums" if plain else "feature_weigh", len(log_y),
                               ceil_div(width, tile_width))
        row_sum = log_x.new_empty((launch.count, launch.splits, launch.n))
        cost_sum = torch.empty_like(row_sum) if cost else None
        product, pitch, rank = None, 0, RANK
        if factor is not None:
            product = row_sum.new_empty((*row_sum.shape, width), dtype=self.dtype)
            factor = _padded(factor.to(self.dtype).mT, launch.tile.cols)
            pitch = factor.shape[2]
        if right is not None:
            right = right.to(self.dtype)
            if left is not None:
                left, right = _padded(left.to(self.dtype), RANK), _padded(right, RANK)
                rank = right.shape[2]
        launch.run("feature_weigh_kernel", items, self.alpha if cost else None, self.beta if cost else None, log_x,
                   log_y, reg, left, right, factor, row_sum, cost_sum, product, extra=(rank, width, pitch),
                   RANK=RANK, WIDTH=tile_width, FACTORS=launch.precisions[1])
        return Weighed(row_sum.sum(1), None if cost_sum is None else cost_sum.sum(1),
                       None if product is None else product.sum(1))


class FeatureLaunch:
    """How programs share the rows, the columns and the ``width_blocks`` of a factor of ``count`` problems.

    Columns are split where there are fewer blocks of rows than a device runs programs: by shapes and device alone.
    """

    def __init__(self, features: TritonFeatures, kind: str, count: int, width_blocks: int = 1) -> None:
        self.features, self.count, self.width_blocks = features, count, width_blocks
        single = features.dtype == features.x.dtype == torch.float32
        self.tile: Tile = getattr(features.table, kind if single else kind + "_float64")
        self.n, self.m = features.x.shape[1], features.z.shape[1]
        self.blocks = ceil_div(self.n, self.tile.rows)
        room = multiprocessors(features.x.device) * self.tile.per_sm
        tiles = ceil_div(self.m, self.tile.cols)
        split_tiles = ceil_div(tiles, min(tiles, max(1, room // max(1, count * self.blocks * width_blocks))))
        self.splits, self.split_cols = ceil_div(tiles, split_tiles), split_tiles * self.tile.cols
        # The interpreter multiplies in the type of the operands, and knows no other name for that in every version.
        self.precisions = ("ieee", "ieee") if interpreted() else dot_precisions(features.precision,
                                                                                torch.version.hip is not None)
        # Without tensor cores operands are in registers, which copies ahead of their use would take.
        self.stages = 1 if features.precision == "float32" else self.tile.stages

    def partial_lse(self) -> tuple[Tensor, Tensor]:
        """Where `feature_lse_kernel` writes (anchor, total) of each range of columns, both (A, splits, n)."""
        anchors = self.features.x.new_empty((self.count, self.splits, self.n), dtype=self.features.dtype)
        return anchors, torch.empty_like(anchors, dtype=torch.float64)

    def run(self, name: str, items: Tensor | None, *arguments: Tensor | None, extra: tuple[int, ...] = (),
            **constants: Any) -> None:
        if not self.count:
            return
        x, z, tile = self.features.x, self.features.z, self.tile
        depth, chunk = feature_depth(x.shape[2])
        given = [None if part is None else part.contiguous() for part in arguments]
        sizes = self.n, self.m, depth, *extra, self.splits, self.split_cols, self.blocks
        if name == "feature_weigh_kernel":
            sizes = *sizes, self.width_blocks
        with on(x.device):
            kernel(name)[(self.count * self.splits * self.width_blocks * self.blocks,)](
                x, z, items, *given, *sizes, ROWS=tile.rows, COLS=tile.cols, DEPTH=chunk, SINGLE=chunk == depth,
                STAGES=self.stages, PRECISION=self.precisions[0], DOUBLE=self.features.dtype == torch.float64,
                **constants, **launch_options(tile))


def _padded(factor: Tensor, multiple: int) -> Tensor:
    """Contiguous, with zeros up to a multiple of so many entries in the last dimension."""
    return torch.nn.functional.pad(factor, (0, -factor.shape[-1] % multiple)).contiguous()
