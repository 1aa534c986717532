r"""The gradient of the value as a differentiable expression: Hessian-vector products through the adjoint.

On the optima, :math:`T\mathbf 1 = a\,e^{-f/\tau_a}`, so that every gradient of `value.envelope_gradients` is written in
(a, b, reg, tau, f, g) but for two that read the cost: <C, T>, and T pulled back to the cost's tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..costs import full_precision_matmul
from ..problem import Side
from .potentials import Potentials
from .products import TransportCost
from .solved import Solved, plan_gradients, shared_sum


class CostGradient(torch.autograd.Function):
    r"""Gradients of :math:`\sum_b w_b \langle C_b, T_b\rangle` to the cost's prepared tensors, T held, w of shape (B,).

    For a tangent of those tensors that moves the cost by D, the result's inner product with it is
    :math:`\sum w_b \langle T_b, D_b\rangle`, whose gradients are those of a loss of the plan, W = w T D, and the second
    derivative of the cost itself.
    """

    @staticmethod
    def forward(ctx: Any, solved: Solved, weight: Tensor, a: Tensor, b: Tensor, reg: Tensor, f: Tensor, g: Tensor,
                *prepared: Tensor) -> tuple[Tensor, ...]:
        ctx.solved = solved
        ctx.save_for_backward(weight)
        return tuple(pulled_back_plan(solved, weight, [True] * len(prepared)))  # type: ignore[arg-type]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        solved: Solved = ctx.solved
        solved.check()
        (weight,) = ctx.saved_tensors
        pair, kernel = solved.pair, solved.kernel
        needs = ctx.needs_input_grad[2:]

        def moved(span: slice) -> Tensor:
            change = kernel.cost.tangent(kernel.prepared, tangents, span, kernel.dtype)
            return change if kernel.cost_items is None else change.index_select(0, kernel.cost_items)

        def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, None]:
            return plan * weight[:, None, None].to(plan.dtype) * moved(span), None

        to_weight = torch.zeros_like(weight)
        second = tuple(torch.zeros_like(tensor) for tensor in kernel.prepared)
        for span, _, plan in solved.blocks(pair.log_u, pair.log_v):
            to_weight += (plan * moved(span)).sum(2).double().sum(1)
            weighted = shared_sum(solved, plan * weight[:, None, None].to(plan.dtype))
            _add_second_derivative(solved, span, tangents, weighted, second)
        gradients = plan_gradients(solved, pair.log_u, pair.log_v, weigh, needs)
        for index, extra in enumerate(second, start=5):
            gradient = gradients[index]
            if gradient is not None:
                gradients[index] = gradient + extra
        return (None, to_weight, *gradients)


def differentiable_envelope(solved: Solved, grad: Tensor, inputs: tuple[Tensor, ...],
                            needs: tuple[bool, ...]) -> list[Tensor | None]:
    """`value.envelope_gradients` attached to ``grad`` (B,) and to the inputs (a, b, reg, tau_a, tau_b, cost)."""
    a, b, reg, tau_a, tau_b, *prepared = inputs
    f, g = Potentials.apply(solved, *inputs)
    plan_inputs = a, b, reg, f, g, *prepared
    rows = _Asked(solved.problem.rows, a, tau_a, f)
    cols = _Asked(solved.problem.cols, b, tau_b, g)

    def mass_gradient(own: _Asked, other: _Asked) -> Tensor:
        slope = own.price
        if solved.by_product:
            slope = slope + reg[:, None] * (other.mass.sum(-1, keepdim=True) - own.ratio)
        else:
            slope = torch.where(own.side.massive, slope, 0.0)
        return grad[:, None] * slope

    def reg_gradient() -> Tensor:
        linear = (rows.marginal * rows.potential).sum(-1) + (cols.marginal * cols.potential).sum(-1)
        entropy = (linear - TransportCost.apply(solved, *plan_inputs)) / reg - rows.marginal.sum(-1)
        return grad * (entropy + (a.sum(-1) * b.sum(-1) if solved.by_product else 0.0))

    return [mass_gradient(rows, cols) if needs[0] else None, mass_gradient(cols, rows) if needs[1] else None,
            reg_gradient() if needs[2] else None,
            grad * rows.divergence if needs[3] else None, grad * cols.divergence if needs[4] else None,
            *(CostGradient.apply(solved, grad, *plan_inputs) if any(needs[5:]) else [None] * len(prepared))]


class _Asked:
    r"""What one potential asks for, differentiable and finite: :math:`e^{-f/\tau}`, the marginal, its divergence."""

    def __init__(self, side: Side, mass: Tensor, tau: Tensor, potential: Tensor) -> None:
        self.side = side
        exact = side.penalty.exact[:, None]
        finite = torch.isfinite(potential)
        self.mass = mass
        self.potential = torch.where(finite, potential, 0.0)
        tau = torch.where(exact, 1.0, tau[:, None])
        scaled = torch.where(exact, 0.0, self.potential / tau)
        #: Marginal over mass; a point that nothing can reach gives everything up.
        self.ratio = torch.where(finite | exact, torch.exp(-scaled), 0.0)
        self.marginal = mass * self.ratio
        #: Price of a unit of mass in the dual, `KLPenalty.marginal_value`.
        self.price = torch.where(exact, self.potential, torch.where(finite, -torch.expm1(-scaled), 1.0) * tau)
        self.divergence = (mass * torch.where(exact, 0.0, 1 - self.ratio * (1 + scaled))).sum(-1)


def pulled_back_plan(solved: Solved, weight: Tensor, needs: list[bool]) -> list[Tensor | None]:
    """dV/dC = T, times ``weight`` (B,), to the cost's prepared tensors."""
    scale = -weight * solved.problem.reg

    def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, None]:
        """As the W of a loss whose gradient to the cost is -W / eps."""
        return plan * scale[:, None, None].to(plan.dtype), None

    return plan_gradients(solved, solved.pair.log_u, solved.pair.log_v, weigh, [False] * 5 + needs)[5:]


def _add_second_derivative(solved: Solved, rows: slice, tangents: tuple[Tensor, ...], weight: Tensor,
                           into: tuple[Tensor, ...]) -> None:
    """Add the gradients to the prepared tensors of <D, weight>, D the change of the cost along the tangents."""
    kernel = solved.kernel
    with torch.enable_grad(), full_precision_matmul(weight.device):
        leaves = tuple(tensor.detach().requires_grad_() for tensor in kernel.prepared)
        change = kernel.cost.tangent(leaves, tangents, rows, kernel.dtype)
        if not change.requires_grad:  # the cost is linear in them
            return
        gradients = torch.autograd.grad(change, leaves, weight, allow_unused=True)
    for total, gradient in zip(into, gradients, strict=True):
        if gradient is not None:
            total += gradient
