"""How a pass of `triton_step` reads the cost: launches alone, which leave log-sum-exps of rows and columns.

Those of the columns are left in their plane, or as partial results that `measure_kernel` merges: all of them, or the
columns that a mask flags.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import triton_skip
from .base import arithmetic
from .triton_features import FeatureLaunch
from .triton_launch import ceil_div, kernel, launch_options, on

if TYPE_CHECKING:
    from ..kernels.tiles import Tile
    from ..operators import GibbsKernel
    from .triton import TritonBackend
    from .triton_features import TritonFeatures
    from .triton_state import State

#: Rows that a program of `marginals_kernel` looks at together.
POINTS = 1024


class Reading(ABC):
    """One way of reading a cost, for a number of problems.

    Args:
        anchors, totals: Partial log-sum-exps of columns, (A, parts, m); None where they are in their plane.
        mask: Which columns are in them, (A, m), bytes; None for all.
    """

    anchors: Tensor | None = None
    totals: Tensor | None = None
    mask: Tensor | None = None
    parts: int = 1

    @abstractmethod
    def read(self, parity: int, known: bool) -> None:
        """Launch a pass of this parity; ``known`` where there was one before."""


def reading_of(backend: TritonBackend, gibbs: GibbsKernel, table: Tensor | None, sparse: Tensor | None,
               state: State) -> Reading:
    """For a cost in memory whose rows fit on chip, or do not; for streamed features; for a cost that comes in blocks.

    Args:
        table: Result of `TritonBackend.sweep_table`, where parts of the cost may be left out.
        sparse: Which problems may do so, (A,), bytes, where only the device knows; None for all.
    """
    if gibbs.features is not None:
        return _Features(gibbs.features, state)  # type: ignore[arg-type]  # of this backend
    if gibbs.matrix is None:
        return _Blocks(gibbs, state)
    if backend.table.sweep_tile(state.m, gibbs.matrix.dtype == torch.float64) is None:
        return _Wide(backend, gibbs.matrix, state)
    return _Sweep(backend, gibbs.matrix, table, sparse, state)


class _Columns(Reading):
    """Those that read the columns of a cost in memory with a running maximum."""

    def __init__(self, backend: TritonBackend, cost: Tensor, state: State) -> None:
        self.backend, self.cost, self.state = backend, cost, state
        self.cut = backend._column_cut(cost, state.count)
        self.parts = self.cut.slabs
        anchors = cost.new_empty((state.count, self.parts, state.m), dtype=arithmetic(cost))
        self.anchors, self.totals = self.partial_lse = anchors, torch.empty_like(anchors)

    def _read_columns(self, parity: int) -> None:
        state = self.state
        self.backend._launch_col_lse(self.cost, state.items, self.cut, state.log_u, state.eps[parity], self.mask,
                                     *self.partial_lse)


class _Sweep(_Columns):
    """Both sides in one read; columns whose sums may have underflowed, where there are any, in another."""

    def __init__(self, backend: TritonBackend, cost: Tensor, table: Tensor | None, sparse: Tensor | None,
                 state: State) -> None:
        super().__init__(backend, cost, state)
        self.table, self.sparse = table, sparse
        self.cuts = [backend._sweep_cut(cost, state.count, skips) for skips in (False, table is not None)]
        first, later = self.cuts
        partial = cost.new_empty((state.count, first.slabs, state.m), dtype=arithmetic(cost))
        self.partials = [partial, partial if later == first else
                         partial.new_empty((state.count, later.slabs, state.m))]
        self.mask = torch.empty(state.count, state.m, dtype=torch.uint8, device=cost.device)

    def read(self, parity: int, known: bool) -> None:
        state, backend = self.state, self.backend
        cut, partial, skip = self.cuts[known], self.partials[known], None
        log_v, eps, row_lse = state.log_v[parity], state.eps[parity], state.row_lse[parity]
        if known and self.table is not None:
            before = 1 - parity
            last = triton_skip.Last(state.log_v[before], state.col_lse[before], state.eps[before],
                                    state.row_lse[before])
            skip = triton_skip.words(backend, self.table, log_v, state.offset, state.damping, eps, last, cut,
                                     state.items, self.sparse)
        backend._launch_sweep(self.cost, state.items, cut, log_v, state.offset, state.damping, eps, state.shift,
                              row_lse, partial, skip)
        tile = backend.table.merge
        blocks = ceil_div(state.m, tile.cols)
        backend._run("marginals_kernel", self.cost.device, state.count * blocks, tile, state.rows, state.cols,
                    state.numbers, partial, self.mask, state.n, state.m, state.count, cut.slabs, blocks, parity,
                    SLABS=tile.rows, BLOCK=tile.cols, POINTS=POINTS, ENTROPY=state.entropy)
        self._read_columns(parity)


class _Wide(_Columns):
    """One read for each side: rows do not fit on chip."""

    def read(self, parity: int, known: bool) -> None:
        state = self.state
        self.backend._launch_row_lse(self.cost, state.items, state.log_v[parity], state.eps[parity],
                                     state.row_lse[parity])
        _launch_log_u(self.backend.table.merge, state, parity)
        self._read_columns(parity)


class _Features(Reading):
    """One pass over inner products for each side, whose partial results are of ranges of the other side."""

    def __init__(self, features: TritonFeatures, state: State) -> None:
        self.features, self.state = features, state
        self.by_rows = FeatureLaunch(features, "feature_lse", state.count)
        self.by_cols = FeatureLaunch(features.transposed(), "feature_lse", state.count)
        self.row_anchors, self.row_totals = self.by_rows.partial_lse()
        self.anchors, self.totals = self.by_cols.partial_lse()
        self.parts = self.by_cols.splits

    def read(self, parity: int, known: bool) -> None:
        state = self.state
        log_v, log_u = state.weights
        eps = state.eps[parity]
        self.by_rows.run("feature_lse_kernel", state.items, log_v, eps, self.row_anchors, self.row_totals)
        _launch_log_u(self.features.table.merge, state, parity, self.row_anchors, self.row_totals, self.features.alpha,
                      self.by_rows.splits)
        self.by_cols.run("feature_lse_kernel", state.items, log_u, eps, self.anchors, self.totals)


class _Blocks(Reading):
    """Costs that torch makes block by block; what a pass does with a block is a few launches and operations more."""

    def __init__(self, gibbs: GibbsKernel, state: State) -> None:
        self.gibbs, self.state = gibbs, state

    def read(self, parity: int, known: bool) -> None:
        state = self.state
        swept = self.gibbs.sweep(state.log_v[parity], state.offset, state.damping, state.eps[parity], state.shift,
                                 state.problems)
        state.row_lse[parity].copy_(swept.row_lse)
        state.col_lse[parity].copy_(swept.col_lse)


def _launch_log_u(tile: Tile, state: State, parity: int, anchors: Tensor | None = None, totals: Tensor | None = None,
                  alpha: Tensor | None = None, parts: int = 1) -> None:
    """log u from the rows' log-sum-exps, which lie in their plane, or are merged from partial ones."""
    blocks = ceil_div(state.n, tile.cols)
    with on(state.rows.device):
        kernel("log_u_kernel")[(state.count * blocks,)](
            state.rows, state.numbers, anchors, totals, alpha, state.items, state.n, state.count, parts, blocks, parity,
            PARTS=tile.rows, BLOCK=tile.cols, ENTROPY=state.entropy, **launch_options(tile))
