"""Launches of the Triton kernels."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..kernels import tuned
from ..kernels.tiles import Tile, TileTable, feature_depth, slab_layout, span_layout
from . import triton_adjoint, triton_skip, triton_small, triton_step
from .base import Backend, arithmetic, log_scaling
from .features import Features
from .triton_features import TritonFeatures
from .triton_launch import Cut, launch_options
from .triton_launch import ceil_div as _ceil_div
from .triton_launch import interpreted as _interpreted
from .triton_launch import kernel as _kernel
from .triton_launch import kernel_modules as _kernels
from .triton_launch import multiprocessors as _multiprocessors
from .triton_launch import on as _on

if TYPE_CHECKING:
    from ..operators import GibbsKernel
    from ..options import SolverOptions
    from ..outcome import Outcome
    from ..problem import Problem

#: Entries of a cost from which leaving parts of it out may pay: below, the cache holds it.
SKIP_ENTRIES = 1 << 22


@functools.cache
def tile_table() -> tuple[TileTable, str]:
    """(tiles of this process's GPU, where they come from in words); looked up once."""
    if _interpreted() or not torch.cuda.is_available():
        return TileTable(), "default (no GPU)"
    module, reason = _kernels()
    if module is None:
        return TileTable(), f"default ({reason})"
    return tuned.table_for(torch.cuda.get_device_name(), importlib.import_module("triton").__version__)


class TritonBackend(Backend):
    """Kernels of `uotlib.kernels`, on any GPU that Triton reaches.

    Args:
        table: Tile shapes, for tuning and tests; None for `tile_table`'s.
    """

    name = "triton"
    asynchronous = True
    adjoint_temporaries = weigh_temporaries = weigh_cost_temporaries = 0
    storages: ClassVar[tuple[str, ...]] = ("float16", "bfloat16")

    def __init__(self, table: TileTable | None = None) -> None:
        self._given = table

    @property
    def table(self) -> TileTable:
        return self._given or tile_table()[0]

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "cpu" and not _interpreted():
            return "the triton backend needs a GPU; the cost is on the CPU"
        if device.type not in ("cpu", "cuda"):
            return f"the triton backend handles CUDA and ROCm devices; the cost is on {device.type}"
        if dtype not in (torch.float32, torch.float64):
            return f"the triton backend takes float32 and float64 costs, not {dtype}"
        module, reason = _kernels()
        return None if module is not None else reason

    def row_lse(self, cost: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        out = log_v.new_empty((count, n))
        if out.numel() == 0 or m == 0:
            return out.fill_(-torch.inf)
        self._launch_row_lse(cost, items, log_v, reg, out)
        return out

    def col_lse(self, cost: Tensor, log_u: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        return self._col_lse(cost, log_u, reg, None, items)

    def col_lse_masked(self, cost: Tensor, log_u: Tensor, reg: Tensor, mask: Tensor,
                       items: Tensor | None = None) -> Tensor:
        """`col_lse` of the columns that ``mask`` (B, m), bool, flags; ``-inf`` for the others.

        The mask stays on the device: blocks of columns without a flag return at once, and nothing is synchronised.
        """
        # As bytes: a pointer to booleans is not something every Triton version can load from.
        return self._col_lse(cost, log_u, reg, mask.contiguous().view(torch.uint8), items)

    def sweep(self, cost: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
              col_mass: Tensor, items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        if count * n * m == 0 or self.table.sweep_tile(m, cost.dtype == torch.float64) is None:
            return self._sweep_wide(cost, log_v, offset, damping, reg, shift, col_mass, items)
        cut = self._sweep_cut(cost, count)
        lse = log_v.new_empty((count, n))
        partial = cost.new_empty((count, cut.slabs, m), dtype=arithmetic(cost))
        self._launch_sweep(cost, items, cut, log_v, offset, damping, reg, shift, lse, partial, None)
        self._merge(partial, log_v, col_mass)
        return lse

    def sweep_table(self, cost: Tensor, sparse: Tensor | None = None) -> Tensor | None:
        """What sweeps need, beside the last one, to leave out parts of this cost (kernels/skip.py); reads it once.

        None where `may_skip` says no.  ``sparse``, bytes: which problems may use it, where only the device knows.
        """
        tile = self.table.sweep_tile(cost.shape[2], cost.dtype == torch.float64)
        return triton_skip.table(self, cost, tile, sparse) if tile is not None and self.may_skip(cost) else None

    def may_skip(self, cost: Tensor) -> bool:
        """Not where all of it stays in the cache, rows do not fit on chip, or loads are not of 16 bytes."""
        tile = self.table.sweep_tile(cost.shape[2], cost.dtype == torch.float64)
        return tile is not None and cost.numel() >= SKIP_ENTRIES and _vector_width(cost) > 1

    def panel(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        out = cost.new_empty((count, n, m), dtype=arithmetic(cost))
        if out.numel() == 0:
            return out
        tile = _narrowed(self._tile("panel", cost), m)
        row_blocks, col_blocks = _ceil_div(n, tile.rows), _ceil_div(m, tile.cols)
        self._launch("panel_kernel", cost, count * row_blocks * col_blocks, tile, items, log_u, log_v, reg, out,
                     *_strides(cost), n, m, row_blocks, col_blocks)
        return out

    def solve(self, problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
              init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome | None:
        """Small problems in one launch, one program each; None for what `triton_small.tile_for` has no tile for."""
        tile = triton_small.tile_for(self.table, cost, problem.batch, max_iter, tol, options)
        if tile is None:
            return None
        solve = triton_small.small_solve(tile, problem, cost, method, max_iter, tol, init, options)
        with _on(cost.device):
            _kernel("small_solve_kernel")[(solve.programs,)](
                *solve.arguments, ROWS=tile.rows, COLS=tile.cols, STAGES=tile.stages, VECTOR=_vector_width(cost),
                **solve.constants, **launch_options(tile))
        return solve.outcome

    def iterate(self, problem: Problem, gibbs: GibbsKernel, method: str, max_iter: int, tol: float | None,
                init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome | None:
        """Any cost, but for what `triton_step.why_not` says."""
        if triton_step.why_not(problem.batch, max_iter, options) is not None:
            return None
        return triton_step.iterate(self, problem, gibbs, method, max_iter, tol, init, options)

    def product_precisions(self, device: torch.device) -> tuple[str, ...]:
        if torch.version.hip is not None:  # compilers for AMD refuse tf32 on most devices, and tf32x3 on all
            return "bf16x3", "bf16x6", "float32"
        return "tf32", "bf16x3", "bf16x6", "tf32x3", "float32"

    def features(self, prepared: tuple[Tensor, ...], dtype: torch.dtype, precision: str) -> Features:
        depth, _ = feature_depth(prepared[0].shape[2] - 2)
        return TritonFeatures.of(prepared, depth, dtype, precision, self.table)

    def schur(self, cost: Tensor, log_x: Tensor, log_y: Tensor, row_diagonal: Tensor, vector: Tensor, reg: Tensor,
              total: Tensor, items: Tensor | None = None) -> None:
        if log_x.numel() * log_y.numel():
            triton_adjoint.schur(self, cost, log_x, log_y, row_diagonal, vector, reg, total, items)

    def eliminate(self, cost: Tensor, log_x: Tensor, log_y: Tensor, root_r: Tensor, root_c: Tensor, row_side: Tensor,
                  row_ratio: Tensor, reg: Tensor, sums: Tensor, items: Tensor | None = None,
                  empty: Tensor | None = None) -> Tensor:
        if log_x.numel() * log_y.numel() == 0:
            return super().eliminate(cost, log_x, log_y, root_r, root_c, row_side, row_ratio, reg, sums, items)
        return triton_adjoint.eliminate(self, cost, log_x, log_y, root_r, root_c, row_side, row_ratio, reg, sums, items)

    def weigh(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None, right: Tensor | None,
              row_sum: Tensor | None, col_sum: Tensor | None, items: Tensor | None = None, *,
              scale: Tensor | None = None, out: Tensor | None = None, add: bool = False,
              factor: Tensor | None = None, product: Tensor | None = None) -> None:
        if log_u.numel() * log_v.numel() == 0 or (left is not None and left.shape[2] == 0):
            super().weigh(cost, log_u, log_v, reg, left, right, row_sum, col_sum, items, scale=scale, out=out,
                          add=add, factor=factor, product=product)
            return
        triton_adjoint.weigh(self, cost, log_u, log_v, reg, left, right, items, scale, row_sum=row_sum,
                             col_sum=col_sum, out=out, factor=factor, product=product, add=add)

    def weigh_columns(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None,
                      right: Tensor | None, factor: Tensor, product: Tensor, items: Tensor | None = None, *,
                      scale: Tensor | None = None) -> None:
        if log_u.numel() * product.numel() and (left is None or left.shape[2]):
            triton_adjoint.weigh(self, cost, log_u, log_v, reg, left, right, items, scale, factor=factor,
                                 product=product, transposed=True)

    def weigh_cost(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None,
                   right: Tensor | None, row_sum: Tensor | None, col_sum: Tensor | None, cost_sum: Tensor | None,
                   items: Tensor | None = None, *, direct: Tensor | None = None, scale: Tensor | None = None,
                   out: Tensor | None = None, add: bool = False, factor: Tensor | None = None,
                   product: Tensor | None = None, transposed: bool = False) -> None:
        given = self, cost, log_u, log_v, reg, left, right, items, scale
        if log_u.numel() * log_v.numel() == 0 or (left is not None and left.shape[2] == 0):
            super().weigh_cost(cost, log_u, log_v, reg, left, right, row_sum, col_sum, cost_sum, items, direct=direct,
                               scale=scale, out=out, add=add, factor=factor, product=product, transposed=transposed)
            return
        # Sums and products are two passes: with costs, one that has both spills.
        if out is not None or any(total is not None for total in (row_sum, col_sum, cost_sum)):
            triton_adjoint.weigh(*given, row_sum=row_sum, col_sum=col_sum, cost_sum=cost_sum, out=out, add=add,
                                 direct=direct)
        if factor is not None:
            triton_adjoint.weigh(*given, factor=factor, product=product, transposed=transposed, direct=direct)

    def _sweep_wide(self, cost: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
                    col_mass: Tensor, items: Tensor | None) -> Tensor:
        """The sweep in two reads of the cost, for rows too wide to be kept on chip."""
        count, n, m = _sizes(cost, items)
        lse = self.row_lse(cost, log_v, reg, items)
        if count * n * m == 0:
            return lse
        log_u = log_scaling(offset, damping, lse) - shift[:, None]
        cut = self._column_cut(cost, count)
        partial = cost.new_empty((count, cut.slabs, m), dtype=arithmetic(cost))
        self._launch("col_mass_kernel", cost, count * cut.slabs * cut.blocks, cut.tile, items, log_u, log_v, reg,
                     partial, *_strides(cost), n, m, cut.slabs, cut.rows, cut.blocks, STAGES=cut.tile.stages)
        self._merge(partial, log_v, col_mass)
        return lse

    def _col_lse(self, cost: Tensor, log_u: Tensor, reg: Tensor, mask: Tensor | None, items: Tensor | None) -> Tensor:
        count, n, m = _sizes(cost, items)
        out = log_u.new_empty((count, m))
        if out.numel() == 0 or n == 0:
            return out.fill_(-torch.inf)
        cut = self._column_cut(cost, count)
        anchors = cost.new_empty((count, cut.slabs, m), dtype=arithmetic(cost))
        totals = torch.empty_like(anchors)
        self._launch_col_lse(cost, items, cut, log_u, reg, mask, anchors, totals)
        self._launch_merge("merge_col_lse_kernel", anchors, totals, mask, out)
        return out

    def _merge(self, partial: Tensor, log_v: Tensor | None, col_mass: Tensor) -> None:
        # An in-place contract with a result that may be a strided view of someone's buffer.
        target = col_mass if col_mass.is_contiguous() else col_mass.contiguous()
        self._launch_merge("merge_columns_kernel", partial, log_v, target)
        if target is not col_mass:
            col_mass.copy_(target)

    def _sweep_cut(self, cost: Tensor, count: int, skips: bool = False) -> Cut:
        """Of a sweep over so many problems, whose rows fit on chip; ``skips`` where it may leave parts out."""
        _, n, m = cost.shape
        tile = self.table.sweep_tile(m, cost.dtype == torch.float64)
        assert tile is not None  # the caller's business
        if not skips:
            return Cut(tile, *self._slabs(cost, count, n, tile, 1))
        return Cut(tile.spread, *self._slabs(cost, count, n, tile.spread, 1, triton_skip.WORD * tile.rows))

    def _column_cut(self, cost: Tensor, count: int) -> Cut:
        _, n, m = cost.shape
        tile = _narrowed(self._tile("column", cost), m)
        blocks = _ceil_div(m, tile.cols)
        return Cut(tile, *self._slabs(cost, count, n, tile, blocks), blocks)

    def _launch_sweep(self, cost: Tensor, items: Tensor | None, cut: Cut, log_v: Tensor, offset: Tensor,
                      damping: Tensor, reg: Tensor, shift: Tensor, lse: Tensor, partial: Tensor,
                      skip: Tensor | None) -> None:
        """Rows' log-sum-exps, and the columns' sums of each slab, (B, slabs, m), but for the mantissa of v."""
        _, n, m = cost.shape
        tile = cut.tile
        self._launch("sweep_kernel", cost, len(log_v) * cut.slabs, tile, items, log_v, offset, damping, reg, shift, lse,
                     partial, skip, *_strides(cost), n, m, cut.slabs, cut.rows,
                     SEGMENT=min(triton_skip.SEGMENT, tile.cols), STAGES=tile.stages)

    def _launch_row_lse(self, cost: Tensor, items: Tensor | None, log_v: Tensor, reg: Tensor, out: Tensor) -> None:
        _, n, m = cost.shape
        tile = _narrowed(self._tile("row", cost), m)
        blocks = _ceil_div(n, tile.rows)
        self._launch("row_lse_kernel", cost, len(log_v) * blocks, tile, items, log_v, reg, out, *_strides(cost), n, m,
                     blocks, STAGES=tile.stages)

    def _launch_col_lse(self, cost: Tensor, items: Tensor | None, cut: Cut, log_u: Tensor, reg: Tensor,
                        mask: Tensor | None, anchors: Tensor, totals: Tensor) -> None:
        """Log-sum-exps of each slab, (anchor, total), both (B, slabs, m), of the columns that a mask flags."""
        _, n, m = cost.shape
        self._launch("col_lse_kernel", cost, len(log_u) * cut.slabs * cut.blocks, cut.tile, items, log_u, reg, mask,
                     anchors, totals, *_strides(cost), n, m, cut.slabs, cut.rows, cut.blocks, STAGES=cut.tile.stages)

    def _launch_merge(self, kernel: str, partial: Tensor, *rest: Tensor | None) -> None:
        count, slabs, m = partial.shape
        # The partial results of a program fit in one column block of theirs, or a mask would leave some unwritten.
        tile = _narrowed(self.table.merge, m)
        blocks = _ceil_div(m, tile.cols)
        arguments = [None if value is None else value.contiguous() for value in rest]
        self._run(kernel, partial.device, count * blocks, tile, partial, *arguments, m, slabs, blocks, SLABS=tile.rows,
                  COLS=tile.cols)

    def _launch(self, kernel: str, cost: Tensor, programs: int, tile: Tile, items: Tensor | None, *arguments: Any,
                **options: Any) -> None:
        """``options`` are the kernel's own constants, and results that have strides of their own."""
        arguments = tuple(value.contiguous() if isinstance(value, Tensor) else value for value in arguments)
        strided = [value for value in options.values() if isinstance(value, Tensor)]
        self._run(kernel, cost.device, programs, tile, cost, items, *arguments, ROWS=tile.rows, COLS=tile.cols,
                  VECTOR=min(map(_vector_width, (cost, *strided))), **options)

    def _run(self, kernel: str, device: torch.device, programs: int, tile: Tile, *arguments: Any,
             **options: Any) -> None:
        with _on(device):
            _kernel(kernel)[(programs,)](*arguments, **options, **launch_options(tile))

    def _tile(self, kind: str, cost: Tensor) -> Tile:
        return getattr(self.table, kind + "_float64" if cost.dtype == torch.float64 else kind)

    def _slabs(self, cost: Tensor, count: int, n: int, tile: Tile, columns: int,
               longest: int | None = None) -> tuple[int, int]:
        longest = min(longest or self.table.slab_rows, self.table.slab_rows)
        return slab_layout(count, n, tile, _multiprocessors(cost.device), columns, longest)

    def _spans(self, cost: Tensor, programs: int, other: int, tile: Tile) -> tuple[int, int]:
        return span_layout(programs, other, tile, _multiprocessors(cost.device))


def _sizes(cost: Tensor, items: Tensor | None) -> tuple[int, int, int]:
    batch, n, m = cost.shape
    return (batch if items is None else items.shape[0]), n, m


def _strides(cost: Tensor) -> tuple[int, int]:
    return cost.stride(0), cost.stride(1)


def _narrowed(tile: Tile, m: int) -> Tile:
    """The tile without the columns that a narrow cost would leave idle."""
    cols = min(tile.cols, max(16, 1 << (m - 1).bit_length()))
    return tile if cols == tile.cols else Tile(tile.rows, cols, max(1, tile.warps * cols // tile.cols), tile.stages,
                                               tile.per_sm)


def _vector_width(cost: Tensor) -> int:
    """Entries that one load may take, up to 16 bytes: what pointer, strides and width are all multiples of."""
    widest = 16 // cost.element_size()
    _, _, m = cost.shape
    whole = all(size % widest == 0 for size in (m, *_strides(cost))) and cost.data_ptr() % 16 == 0
    return widest if whole else 1
