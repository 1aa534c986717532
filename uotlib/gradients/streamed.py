r"""The passes of this package over a cost of features that the backend streams: no block of cost or plan is made.

Every function takes the features, `GibbsKernel.features`, of a solved problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backends.features import Features

if TYPE_CHECKING:
    from .solved import LowRank, Solved


def product(solved: Solved, features: Features, log_x: Tensor, log_y: Tensor, operand: Tensor, side: int) -> Tensor:
    """M V (``side`` 0) or M' V (1), of the M of these log-scalings, in the solver's type."""
    reg, items = solved.problem.reg, solved.kernel.cost_items
    if side:
        features, log_x, log_y = features.transposed(), log_y, log_x
    answer = features.weigh(log_x, log_y, reg, items=items, factor=operand).product
    assert answer is not None  # there was a factor
    return answer


def transport_cost(solved: Solved, features: Features) -> Tensor:
    """<C, T>, (B,)."""
    pair = solved.pair
    found = features.weigh(pair.log_u, pair.log_v, solved.problem.reg, items=solved.kernel.cost_items, cost=True)
    assert found.cost_sum is not None  # it was asked for
    return found.cost_sum.sum(1)


def low_rank_sums(solved: Solved, features: Features, log_x: Tensor, log_y: Tensor, weigh: LowRank, rows: bool,
                  cols: bool, cost: bool = False, to_cost: Sequence[bool] = (False, False)
                  ) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None] | None]:
    r"""W 1 (B, n) and W' 1 (B, m), 0 where not wanted, <W, C> (B,), and :math:`-W/\varepsilon` pulled back to the cost.

    Args:
        rows, cols, cost, to_cost: What is wanted; the features' gradients come each from a pass along its side.
    """
    reg, items = solved.problem.reg, solved.kernel.cost_items
    x, z = of_problems(solved, solved.kernel.prepared)
    left, right, scale = weigh.left, weigh.right, weigh.scale[:, None]
    sums = [torch.zeros_like(solved.pair.f), torch.zeros_like(solved.pair.g)]
    cost_sum, into = torch.zeros_like(reg), list[Tensor | None]([None, None])
    by_side = ((features, log_x, log_y, left, right, z), (features.transposed(), log_y, log_x, right, left, x))
    for side, (along, log_own, log_other, own, other, factor) in enumerate(by_side):
        if not ((rows, cols)[side] or to_cost[side] or (cost and side == 0)):
            continue
        found = along.weigh(log_own, log_other, reg, own, other, items, factor=factor if to_cost[side] else None,
                            cost=cost and side == 0)
        if (rows, cols)[side]:
            sums[side] = found.row_sum * scale
        if found.cost_sum is not None:
            cost_sum = (found.cost_sum * scale).sum(1)
        if found.product is not None:
            into[side] = of_cost(solved, found.product * (scale / -reg[:, None])[:, :, None], side)
    return sums[0], sums[1], cost_sum, into if any(to_cost) else None


def tangent_sums(solved: Solved, features: Features, tangents: Sequence[Tensor], moved: LowRank,
                 weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    r"""<T, D> (B,), and the gradients of :math:`\sum_b w_b \langle T_b, D_b\rangle` to the features with T held.

    Args:
        tangents: By which the prepared features move the cost by D.
        moved: D.
        weight: w, (B,).
    """
    pair = solved.pair
    total, _, _, _ = low_rank_sums(solved, features, pair.log_u, pair.log_v, moved, rows=True, cols=False)
    dx, dz = of_problems(solved, tangents)
    second = [of_cost(solved, product(solved, features, pair.log_u, pair.log_v, factor, side)
                      * weight[:, None, None], side) for side, factor in enumerate((dz, dx))]
    return total.sum(1), second


def of_problems(solved: Solved, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of the cost's own batch, for each of the problems."""
    items = solved.kernel.cost_items
    return [tensor if items is None else tensor.index_select(0, items) for tensor in tensors]


def of_cost(solved: Solved, gradient: Tensor, index: int) -> Tensor:
    """A gradient to a prepared tensor of each problem, summed over those that share it; of its type."""
    like, items = solved.kernel.prepared[index], solved.kernel.cost_items
    gradient = gradient.to(like.dtype)
    return gradient if items is None else torch.zeros_like(like).index_add_(0, items, gradient)
