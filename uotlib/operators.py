r"""The Gibbs kernel :math:`e^{-C/\varepsilon}` of a batch of costs as an operator: cost and backend put together.

Everything that reads a cost goes through here.  A dense cost is read in place; a feature cost is built once or comes
as blocks of rows, each computed, used and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends.base import LOST_TERMS, WEAK_COLUMN, Backend, log_scaling
from .backends.features import Features
from .costs import Cost, InnerProductCost
from .tracing import lazy

#: Rows of the cost that its spread is taken from.
SAMPLED_ROWS = 32
#: Columns that the spread of streamed features is taken from.
SAMPLED_COLUMNS = 1024
#: Memory of a block of the plan with all that is made of it, on a CPU: what its cache holds.
PANEL_BYTES = 1 << 22


def cost_matrix(cost: Cost, prepared: tuple[Tensor, ...], n: int, m: int, dtype: torch.dtype, backend: Backend,
                block_bytes: int, kept: torch.dtype) -> Tensor:
    """The whole of a cost that is not dense, (B', n, m), computed in ``dtype`` in blocks of rows, and ``kept`` so."""
    count = len(prepared[0])
    matrix = backend.fresh(torch.empty(count, n, m, dtype=kept, device=prepared[0].device))
    limit = block_bytes if backend.asynchronous else min(block_bytes, PANEL_BYTES)
    step = max(1, limit // max(1, count * m * 16))
    blocks = [slice(start, start + step) for start in range(0, n, step)]
    plain = isinstance(cost, InnerProductCost) and type(cost).block is InnerProductCost.block
    if plain and isinstance(cost, InnerProductCost) and prepared[0].dtype == dtype == kept:
        x, z = prepared[0], prepared[1].mT.contiguous()
        for rows in blocks:
            backend.product(x[:, rows], z, matrix[:, rows])
            cost.finish(matrix[:, rows])
        return matrix
    for rows in blocks:
        matrix[:, rows] = kept_in(cost.block(prepared, rows, dtype), kept)
    return matrix


def kept_in(cost: Tensor, dtype: torch.dtype) -> Tensor:
    """The cost in another type; NaN where this cannot hold a finite entry, which must not become a forbidden pair."""
    if cost.dtype == dtype:
        return cost
    rounded = cost.to(dtype)
    return rounded.masked_fill_(torch.isinf(rounded) & torch.isfinite(cost), torch.nan)


@dataclass
class Sweep:
    """What one pass over the cost tells: log-sum-exps of rows and columns, and log u; (A, n) or (A, m)."""

    row_lse: Tensor
    col_lse: Tensor
    log_u: Tensor


class GibbsKernel:
    """A batch of costs bound to a backend.

    Args:
        cost: Its kind.
        prepared: Its tensors, detached (`Cost.prepare`).
        matrix: The whole cost, (B', n, m), with unit stride along the columns; None if it is to be streamed.
        cost_items: Which entry of the cost's own batch each problem uses, (B,); None if they are the same.
        size: B, n, m.
        dtype: Of the cost as solved.
        backend: Runs the blocks.
        block_bytes: Memory that a block may take, temporaries included.
        precision: Of products of float32 features that the backend streams.
    """

    def __init__(self, cost: Cost, prepared: tuple[Tensor, ...], matrix: Tensor | None, cost_items: Tensor | None,
                 size: tuple[int, int, int], dtype: torch.dtype, backend: Backend, block_bytes: int,
                 precision: str = "float32") -> None:
        self.cost, self.prepared, self.matrix, self.cost_items = cost, prepared, matrix, cost_items
        self.batch, self.n, self.m = size
        self.dtype, self.backend, self.block_bytes, self.precision = dtype, backend, block_bytes, precision

    @lazy
    def features(self) -> Features | None:
        """The cost as features that the backend streams, no block of which is ever made; None for any other."""
        if self.matrix is not None or not self.cost.bilinear:
            return None
        return self.backend.features(self.prepared, self.dtype, self.precision)

    @property
    def panel_limit(self) -> int | None:
        """Memory of a block that is worked on entry by entry; None for as much as any block may take."""
        return None if self.backend.asynchronous else PANEL_BYTES

    def blocks(self, items: Tensor | None = None,
               bytes_per_entry: int = 0, limit: int | None = None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """(rows, cost block, items of that block) for the active problems; at most ``block_bytes`` at a time."""
        limit = self.block_bytes if limit is None else min(limit, self.block_bytes)
        entries = self.items_of(items)
        batch = self.batch if items is None else len(items)
        # A streamed block is a product, its last touch and the result in the solver's type.
        streamed = 0 if self.matrix is not None else 2 * self.prepared[0].element_size() + self.dtype.itemsize
        bytes_per_entry = max(bytes_per_entry, self.backend.bytes_per_entry + streamed)
        step = max(1, limit // max(1, batch * self.m * bytes_per_entry)) if bytes_per_entry else self.n
        prepared = self.prepared
        if self.matrix is None and entries is not None:
            prepared, entries = tuple(tensor.index_select(0, entries) for tensor in prepared), None
        for start in range(0, self.n, step):
            rows = slice(start, min(start + step, self.n))
            yield rows, self._block(prepared, rows), entries

    def panel_blocks(self, panels: int, items: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """`blocks` for work that takes so many tensors of a block's size, in the solver's type: where it takes any, no
        more than are worked on fast."""
        limit = self.panel_limit if panels else None
        return self.blocks(items, panels * self.dtype.itemsize, limit)

    def _block(self, prepared: tuple[Tensor, ...], rows: slice) -> Tensor:
        """Rows of the cost.  Not part of the generator above: one that yields with gradients off may leave them off."""
        if self.matrix is not None:
            return self.matrix[:, rows]
        with torch.no_grad():
            return self.cost.block(prepared, rows, self.dtype)

    def reachable(self, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows have an allowed pair with one of the columns ``cols`` (B, m), and columns with one of ``rows``."""
        if self.features is not None:  # every pair is allowed
            return cols.any(1, keepdim=True).expand_as(rows), rows.any(1, keepdim=True).expand_as(cols)
        row_reach, col_reach = torch.zeros_like(rows), torch.zeros_like(cols)
        for span, block, entries in self.blocks(bytes_per_entry=8):
            allowed = torch.isfinite(block if entries is None else block.index_select(0, entries))
            row_reach[:, span] = (allowed & cols[:, None, :]).any(2)
            col_reach |= (allowed & rows[:, span, None]).any(1)
        return row_reach, col_reach

    def spread(self) -> Tensor:
        """Half the difference of the largest and smallest finite cost over a sample of rows, (B,), float64.

        Of streamed features, over a sample of columns too.
        """
        rows = slice(None, None, max(1, self.n // SAMPLED_ROWS))
        prepared = self.prepared
        if self.features is not None:
            prepared = prepared[0], prepared[1][:, :: max(1, self.m // SAMPLED_COLUMNS)]
        block = self._block(prepared, rows)
        finite = torch.isfinite(block)
        high = torch.where(finite, block, -torch.inf).amax((1, 2)).double()
        low = torch.where(finite, block, torch.inf).amin((1, 2)).double()
        spread = 0.5 * (high - low)
        spread = torch.where(torch.isfinite(spread), spread, 0.0)
        return spread if self.cost_items is None else spread[self.cost_items]

    def items_of(self, items: Tensor | None) -> Tensor | None:
        """Entries of the cost's batch that these problems use; None for all in order."""
        if self.cost_items is None:
            return items
        return self.cost_items if items is None else self.cost_items.index_select(0, items)

    def sweep(self, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
              items: Tensor | None = None) -> Sweep:
        """Row update and, with it, the columns' log-sum-exps: one pass over the cost (`Backend.sweep`).

        Columns whose sum may have underflowed are redone with a running maximum; their cost is read again.
        """
        if self.features is not None:  # two passes, both exact
            entries = self.items_of(items)
            row_lse = self.features.lse(log_v, reg, entries)
            log_u = log_scaling(offset, damping, row_lse)
            return Sweep(row_lse, self.features.transposed().lse(log_u, reg, entries), log_u)
        col_mass = torch.zeros_like(log_v)
        row_lse = torch.empty_like(offset)
        for rows, block, entries in self.blocks(items):
            row_lse[:, rows] = self.backend.sweep(block, log_v, offset[:, rows], damping, reg, shift, col_mass, entries)
        log_u = log_scaling(offset, damping, row_lse)
        alive = log_v > -torch.inf
        col_lse = torch.where(alive, col_mass.log() + shift[:, None] - torch.where(alive, log_v, 0.0), -torch.inf)
        heaviest = torch.exp((log_u + row_lse).nan_to_num(nan=-torch.inf).amax(1) - shift)
        least = (self.n * LOST_TERMS * heaviest).clamp_min(WEAK_COLUMN)[:, None]
        weak = alive & ~((col_mass >= least) & (col_mass <= 1 / WEAK_COLUMN))
        if self.backend.asynchronous or bool(weak.any()):
            col_lse = torch.where(weak, self.col_lse(log_u, reg, weak, items), col_lse)
        return Sweep(row_lse, col_lse, log_u)

    def col_lse(self, log_u: Tensor, reg: Tensor, mask: Tensor, items: Tensor | None = None) -> Tensor:
        r""":math:`\log\sum_i e^{\log u_i - C_{ij}/\varepsilon}` where mask holds, -inf elsewhere, (A, m)."""
        if self.features is not None:
            return self.features.transposed().lse(log_u, reg, self.items_of(items)).masked_fill_(~mask, -torch.inf)
        total = torch.full_like(mask, -torch.inf, dtype=torch.float64)
        for rows, block, entries in self.blocks(items):
            total = torch.logaddexp(total, self.backend.col_lse_masked(block, log_u[:, rows], reg, mask, entries))
        return total

    def panels(self, log_u: Tensor, log_v: Tensor, reg: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of rows of the plan, (B, rows, m), in the solver's type."""
        for rows, _, plan in self.plan_and_cost(log_u, log_v, reg):
            yield rows, plan

    def plan_and_cost(self, log_u: Tensor, log_v: Tensor, reg: Tensor, temporaries: int = 3,
                      items: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, cost, plan) block by block, both (A, rows, m), for vectors of the active problems.

        Args:
            temporaries: Tensors of a block's size that the caller holds at a time, the plan among them.
            items: The active problems, (A,); None for all.
        """
        for rows, block, entries in self.panel_blocks(temporaries, items):
            plan = self.backend.panel(block, log_u[:, rows], log_v, reg, entries)
            yield rows, block if entries is None else block.index_select(0, entries), plan
