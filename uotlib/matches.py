r"""The largest entries of the plan in each row or column, found block by block without building it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .gradients.solved import Solved


def best(solved: Solved, k: int, side: int) -> tuple[Tensor, Tensor]:
    """Masses (B, points, k), decreasing, and indices of the best of each row (``side`` 0) or column (1); -1 for none.

    A point of zero mass has the match that it would have with some, of mass 0.
    """
    log_mass, index = _of_rows(solved, k) if side == 0 else _of_columns(solved, k)
    own = solved.pair.log_v if side else solved.pair.log_u
    mass = torch.exp(log_mass + own[:, :, None]).to(solved.problem.dtype)
    return mass, torch.where(log_mass > -torch.inf, index, -1)


def _of_rows(solved: Solved, k: int) -> tuple[Tensor, Tensor]:
    values = solved.pair.log_u.new_empty(solved.problem.batch, solved.kernel.n, k)
    indices = torch.empty_like(values, dtype=torch.int64)
    for rows, score in _scores(solved, solved.pair.log_v[:, None, :], side=0):
        values[:, rows], indices[:, rows] = torch.topk(score, k, dim=2)
    return values, indices


def _of_columns(solved: Solved, k: int) -> tuple[Tensor, Tensor]:
    values = solved.pair.log_u.new_empty(solved.problem.batch, 0, solved.kernel.m)
    indices = torch.empty_like(values, dtype=torch.int64)
    for rows, score in _scores(solved, solved.pair.log_u[:, :, None], side=1):
        index = torch.arange(rows.start, rows.stop, device=score.device)[None, :, None].expand_as(score)
        values, indices = torch.cat([values, score], 1), torch.cat([indices, index], 1)
        values, order = torch.topk(values, min(k, values.shape[1]), dim=1)
        indices = indices.gather(1, order)
    return values.mT.contiguous(), indices.mT.contiguous()


def _scores(solved: Solved, scaling: Tensor, side: int) -> Iterator[tuple[slice, Tensor]]:
    """log K + the other side's log-scaling, float64: what the entries of a row (column) are ranked by."""
    kernel, reg = solved.kernel, solved.problem.reg[:, None, None]
    for rows, cost, items in kernel.blocks(bytes_per_entry=32, limit=kernel.panel_limit):
        cost = cost if items is None else cost.index_select(0, items)
        yield rows, (scaling[:, rows] if side else scaling) - cost.double() / reg
