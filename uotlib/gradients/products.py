r"""What reads the plan, as functions of a, b, reg, f, g and the cost: products, marginals, the plan, <C, T>.

Each streams over blocks of the plan, forward and backward, and keeps vectors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .solved import Solved, Weigh, matmul, normalising, plan_gradients


class PlanProduct(torch.autograd.Function):
    r"""Y = M V (``side`` 0, V of shape (B, m, k)) or M' V (``side`` 1, V of shape (B, n, k)).

    M is the plan T or, ``normalised``, :math:`\mathrm{diag}(1/T\mathbf 1)\,T` (side 0) or
    :math:`T\,\mathrm{diag}(1/T^\top\mathbf 1)` (side 1), in which that side's potential and mass drop out: each row is
    a softmax.  For an incoming gradient D of Y, :math:`W = M\cdot(D V^\top)` less, for a softmax,
    :math:`M\cdot\langle D, Y\rangle`, the inner product being that of rows; V gets M' D.

    A softmax is divided by the sums of the very entries that it is made of: where float32 rounds them by 1e-4 (at eps
    1e-4), W would not sum to zero otherwise, and the adjoint magnifies that by tau / eps.
    """

    @staticmethod
    def forward(ctx: Any, solved: Solved, side: int, normalised: bool, v: Tensor, *inputs: Tensor) -> Tensor:
        ctx.solved, ctx.side, ctx.normalised = solved, side, normalised
        kernel = solved.kernel
        answer = v.new_zeros(len(v), kernel.m if side else kernel.n, v.shape[2])
        sums = v.new_zeros(answer.shape[:2]) if normalised else None
        for span, _, plan in solved.blocks(*_scalings(solved, side, normalised)):
            if side == 0:
                answer[:, span] = matmul(plan, v)
            else:
                answer += matmul(plan.mT, v[:, span])
            if sums is not None and side == 0:
                sums[:, span] = plan.sum(2)
            elif sums is not None:
                sums += plan.sum(1)
        if sums is not None:
            sums = torch.where(sums > 0, sums, 1.0)
            answer /= sums[:, :, None]
        ctx.save_for_backward(v, answer, sums)
        return answer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        solved: Solved = ctx.solved
        solved.check()
        v, answer, sums = ctx.saved_tensors
        side, normalised = ctx.side, ctx.normalised
        needs = ctx.needs_input_grad[4:]
        to_v = torch.zeros_like(v) if ctx.needs_input_grad[3] else None
        mean = None
        if normalised:
            grad = grad / sums[:, :, None]
            mean = (grad * answer).sum(2)
        scalings = _scalings(solved, side, normalised)

        def to_operand(span: slice, plan: Tensor) -> None:
            if to_v is not None and side == 0:
                to_v.add_(matmul(plan.mT, grad[:, span]))
            elif to_v is not None:
                to_v[:, span] = matmul(plan, grad)

        def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, None]:
            slope = matmul(grad[:, span], v.mT) if side == 0 else matmul(v[:, span], grad.mT)
            if mean is not None:
                slope -= mean[:, span, None] if side == 0 else mean[:, None, :]
            return slope.mul_(plan), None

        gradients: list[Tensor | None] = [None] * len(needs)
        if any(needs):
            gradients = plan_gradients(solved, *scalings, weigh, needs, rows=not (normalised and side == 0),
                                       cols=not (normalised and side == 1), see=to_operand)
        else:
            for span, _, plan in solved.blocks(*scalings):
                to_operand(span, plan)
        return (None, None, None, to_v, *gradients)


class Marginal(torch.autograd.Function):
    """Row sums of the plan (``side`` 0), (B, n), or its column sums (1), (B, m): float64, as the solver found them."""

    @staticmethod
    def forward(ctx: Any, solved: Solved, side: int, *inputs: Tensor) -> Tensor:
        ctx.solved, ctx.side = solved, side
        return (solved.pair.col_mass if side else solved.pair.row_mass).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, None]:
            slope = grad[:, None, :] if ctx.side else grad[:, span, None]
            return plan * slope.to(plan.dtype), None

        return None, None, *_of_plan(ctx, weigh, ctx.needs_input_grad[2:])


class Plan(torch.autograd.Function):
    """The dense plan, (B, n, m)."""

    @staticmethod
    def forward(ctx: Any, solved: Solved, *inputs: Tensor) -> Tensor:
        ctx.solved = solved
        kernel, problem = solved.kernel, solved.problem
        plan = torch.empty(problem.batch, kernel.n, kernel.m, dtype=problem.dtype, device=problem.device)
        for span, panel in kernel.panels(solved.pair.log_u, solved.pair.log_v, problem.reg):
            plan[:, span] = panel
        return plan

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, None]:
            return plan * grad[:, span], None

        return None, *_of_plan(ctx, weigh, ctx.needs_input_grad[1:])


class TransportCost(torch.autograd.Function):
    """<C, T>, (B,), summed in float64; an empty entry of the plan costs nothing, be it forbidden."""

    @staticmethod
    def forward(ctx: Any, solved: Solved, *inputs: Tensor) -> Tensor:
        ctx.solved = solved
        total = torch.zeros_like(solved.problem.reg)
        for _, cost, plan in solved.blocks(solved.pair.log_u, solved.pair.log_v):
            total += torch.where(plan > 0, plan * cost, 0.0).sum(2).double().sum(1)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, Tensor]:
            direct = plan * grad[:, None, None].to(plan.dtype)
            return torch.where(direct != 0, direct * cost, 0.0), direct

        return None, *_of_plan(ctx, weigh, ctx.needs_input_grad[1:])


def _of_plan(ctx: Any, weigh: Weigh, needs: Sequence[bool]) -> list[Tensor | None]:
    """`plan_gradients` for a loss of the plan itself."""
    solved: Solved = ctx.solved
    solved.check()
    return plan_gradients(solved, solved.pair.log_u, solved.pair.log_v, weigh, needs)


def _scalings(solved: Solved, side: int, normalised: bool) -> tuple[Tensor, Tensor]:
    pair = solved.pair
    return (normalising(pair.row_lse) if normalised and side == 0 else pair.log_u,
            normalising(pair.col_lse) if normalised and side == 1 else pair.log_v)
