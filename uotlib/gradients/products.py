r"""What reads the plan: products, marginals, the plan, <C, T>, each with its gradients to all inputs.

Each streams over blocks of the plan, forward and backward, and keeps vectors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..process import on_threads
from . import streamed
from .solved import COST, ByCost, LowRank, Solved, normalising, plan_gradients


def product(solved: Solved, v: Tensor, side: int, normalised: bool) -> tuple[Tensor, Tensor]:
    r"""Y = M V (``side`` 0, V of shape (B, m, k)) or M' V (``side`` 1, V of shape (B, n, k)).

    M is the plan T or, ``normalised``, :math:`\mathrm{diag}(1/T\mathbf 1)\,T` (side 0) or
    :math:`T\,\mathrm{diag}(1/T^\top\mathbf 1)` (side 1), in which that side's potential and mass drop out: each row is
    a softmax.  It is divided by the sums of the very entries that it is made of: where float32 rounds them by 1e-4 (at
    eps 1e-4), W would not sum to zero otherwise, and the adjoint magnifies that by tau / eps.

    Returns:
        Y, and the sums that it was divided by, (B, points of that side); 1 for a plain product.
    """
    kernel = solved.kernel
    with on_threads(1):
        operand = torch.cat([v, v.new_ones(*v.shape[:2], 1)], 2) if normalised else v  # sums are one more column
        answer = v.new_zeros(len(v), kernel.m if side else kernel.n, operand.shape[2])
    _multiply(solved, *_scalings(solved, side, normalised), operand, side, answer)
    if not normalised:
        return answer, v.new_ones(answer.shape[:2])
    sums = torch.where(answer[:, :, -1] > 0, answer[:, :, -1], 1.0)
    return answer[:, :, :-1] / sums[:, :, None], sums


def product_gradients(solved: Solved, grad: Tensor, v: Tensor, answer: Tensor, sums: Tensor, side: int,
                      normalised: bool, needs: Sequence[bool]) -> list[Tensor | None]:
    r"""For an incoming gradient D of Y, :math:`W = M\cdot(D V^\top)` less, for a softmax,
    :math:`M\cdot\langle D, Y\rangle`, the inner product being that of rows; V gets M' D.

    Returns:
        Gradients to the inputs, and to v.
    """
    *needs, needs_v = needs
    weight = weight_of(solved, grad, v, answer, sums, side, normalised) if any(needs) else None
    gradients = [None] * len(needs) if weight is None else weight.gradients(solved, needs)
    return [*gradients, operand_gradient(solved, grad, v, sums, side, normalised) if needs_v else None]


def operand_gradient(solved: Solved, grad: Tensor, v: Tensor, sums: Tensor, side: int, normalised: bool) -> Tensor:
    """M' D, or M D for ``side`` 1."""
    with on_threads(1):
        to_v, operand = torch.zeros_like(v), grad / sums[:, :, None]
    _multiply(solved, *_scalings(solved, side, normalised), operand, 1 - side, to_v)
    return to_v


@dataclass(frozen=True)
class Weight:
    """W of a product as a weight of M, whose log-scalings are ``log_x`` and ``log_y``; see `plan_gradients`."""

    log_x: Tensor
    log_y: Tensor
    weigh: LowRank
    rows: bool
    cols: bool

    def gradients(self, solved: Solved, needs: Sequence[bool]) -> list[Tensor | None]:
        return plan_gradients(solved, self.log_x, self.log_y, self.weigh, needs, rows=self.rows, cols=self.cols)


def weight_of(solved: Solved, grad: Tensor, v: Tensor, answer: Tensor, sums: Tensor, side: int,
              normalised: bool) -> Weight:
    """Of what `product_gradients` gets."""
    own, other = grad, v
    with on_threads(1):
        if normalised:  # <D, Y> is one more column
            own = torch.cat([grad, -(grad * answer).sum(2, keepdim=True)], 2) / sums[:, :, None]
            other = torch.cat([v, v.new_ones(*v.shape[:2], 1)], 2)
        weigh = LowRank.of(*((own, other) if side == 0 else (other, own)), solved.kernel.dtype)
    return Weight(*_scalings(solved, side, normalised), weigh, rows=not (normalised and side == 0),
                  cols=not (normalised and side == 1))


def marginal(solved: Solved, side: int) -> Tensor:
    """Row sums of the plan (``side`` 0), (B, n), or its column sums (1), (B, m): float64, as the solver found them."""
    return solved.pair.col_mass if side else solved.pair.row_mass


def marginal_gradients(solved: Solved, grad: Tensor, side: int, needs: Sequence[bool]) -> list[Tensor | None]:
    ones = torch.ones_like(solved.pair.f if side else solved.pair.g)[:, :, None]
    factors = (ones, grad[:, :, None]) if side else (grad[:, :, None], ones)
    weigh = LowRank.of(*factors, solved.kernel.dtype)
    return plan_gradients(solved, solved.pair.log_u, solved.pair.log_v, weigh, needs)


def dense_plan(solved: Solved) -> Tensor:
    """The dense plan, (B, n, m)."""
    kernel, problem = solved.kernel, solved.problem
    plan = torch.empty(problem.batch, kernel.n, kernel.m, dtype=problem.dtype, device=problem.device)
    for span, panel in kernel.panels(solved.pair.log_u, solved.pair.log_v, problem.reg):
        plan[:, span] = panel
    return plan


def dense_plan_gradients(solved: Solved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    def weigh(rows: slice, plan: Tensor) -> Tensor:
        return plan * grad[:, rows]

    return plan_gradients(solved, solved.pair.log_u, solved.pair.log_v, weigh, needs)


def transport_cost(solved: Solved) -> Tensor:
    """<C, T>, (B,), summed in float64; an empty entry of the plan costs nothing, be it forbidden."""
    pair, kernel, features = solved.pair, solved.kernel, solved.kernel.features
    if features is not None:
        return streamed.transport_cost(solved, features)
    total = torch.zeros_like(solved.problem.reg)
    for rows, block, entries in kernel.panel_blocks(kernel.backend.weigh_cost_temporaries):
        kernel.backend.weigh_cost(block, pair.log_u[:, rows], pair.log_v, solved.problem.reg, None, None, None, None,
                                  total, entries)
    return total


def transport_cost_gradients(solved: Solved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    if solved.kernel.features is not None:
        return _transport_cost_gradients_by_rank(solved, grad, needs)
    return plan_gradients(solved, solved.pair.log_u, solved.pair.log_v, ByCost(grad), needs)


def _transport_cost_gradients_by_rank(solved: Solved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """The same where the cost is the product of its tensors: W = g T C has their rank, and g T reaches the cost."""
    pair, kind = solved.pair, solved.kernel.dtype
    x, z = streamed.of_problems(solved, solved.kernel.prepared)
    cost = LowRank.of(x, z, kind)
    through = plan_gradients(solved, pair.log_u, pair.log_v, replace(cost, scale=cost.scale * grad), needs)
    left, right = (torch.ones(*points.shape, 1, dtype=kind, device=points.device) for points in (pair.f, pair.g))
    only_cost = [*[False] * COST, *needs[COST:]]
    direct = plan_gradients(solved, pair.log_u, pair.log_v, LowRank(left, right, -grad * solved.problem.reg), only_cost)
    return [*through[:COST], *(None if one is None or other is None else one + other
                               for one, other in zip(through[COST:], direct[COST:], strict=True))]


def _multiply(solved: Solved, log_x: Tensor, log_y: Tensor, operand: Tensor, side: int, into: Tensor) -> None:
    """Add M V (``side`` 0) or M' V (1), of the M of these log-scalings."""
    kernel, reg = solved.kernel, solved.problem.reg
    if kernel.features is not None:
        into += streamed.product(solved, kernel.features, log_x, log_y, operand, side)
        return
    backend = kernel.backend
    for rows, block, entries in kernel.panel_blocks(backend.weigh_temporaries):
        if side == 0:
            backend.weigh(block, log_x[:, rows], log_y, reg, None, None, None, None, entries, factor=operand,
                          product=into[:, rows])
        else:
            backend.weigh_columns(block, log_x[:, rows], log_y, reg, None, None, operand[:, rows], into, entries)


def _scalings(solved: Solved, side: int, normalised: bool) -> tuple[Tensor, Tensor]:
    pair = solved.pair
    return (normalising(pair.row_lse) if normalised and side == 0 else pair.log_u,
            normalising(pair.col_lse) if normalised and side == 1 else pair.log_v)
