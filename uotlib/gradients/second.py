r"""The gradient of the value as a differentiable expression: Hessian-vector products through the adjoint.

On the optima, :math:`T\mathbf 1 = a\,e^{-f/\tau_a}`, so that every gradient of `value.envelope_gradients` is written in
(a, b, reg, tau, f, g) but for two that read the cost: <C, T>, and T pulled back to the cost's tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..problem import Side
from . import streamed
from .solved import COST, LowRank, Solved, plan_gradients, shared_sum
from .value import pulled_back_plan, unpriced

if TYPE_CHECKING:
    from ..primitives import State


def cost_gradient(solved: Solved, weight: Tensor) -> list[Tensor]:
    r"""Gradients to the cost's tensors of :math:`\sum_b w_b \langle C_b, T_b\rangle`, T held, w of shape (B,)."""
    gradients = pulled_back_plan(solved, weight, [True] * len(solved.kernel.prepared))
    return [gradient for gradient in gradients if gradient is not None]


def cost_gradient_gradients(solved: Solved, tangents: Sequence[Tensor], weight: Tensor,
                            needs: Sequence[bool]) -> list[Tensor | None]:
    r"""Gradients of `cost_gradient`'s inner product with ``tangents`` to the inputs, and to the weight.

    The tangents move the cost by D, and the inner product is :math:`\sum w_b \langle T_b, D_b\rangle`: its gradients
    are those of a loss of the plan, W = w T D, and the second derivative of the cost itself.
    """
    pair, kernel = solved.pair, solved.kernel
    *needs, _ = needs
    if kernel.features is not None:
        x, z, dx, dz = streamed.of_problems(solved, [*kernel.prepared, *tangents])
        change = LowRank.of(torch.cat([dx, x], 2), torch.cat([z, dz], 2), kernel.dtype)
        to_weight, extras = streamed.tangent_sums(solved, kernel.features, tangents, change, weight)
        by_plan = replace(change, scale=change.scale * weight)
        gradients = plan_gradients(solved, pair.log_u, pair.log_v, by_plan, needs)
        return [*_with(gradients, extras), to_weight]

    def moved(span: slice) -> Tensor:
        change = kernel.cost.tangent(kernel.prepared, tuple(tangents), span, kernel.dtype)
        return change if kernel.cost_items is None else change.index_select(0, kernel.cost_items)

    def weigh(span: slice, plan: Tensor) -> Tensor:
        return plan * weight[:, None, None].to(plan.dtype) * moved(span)

    to_weight = torch.zeros_like(weight)
    second = tuple(torch.zeros_like(tensor) for tensor in kernel.prepared)
    for span, _, plan in solved.blocks(pair.log_u, pair.log_v):
        to_weight += (plan * moved(span)).sum(2).double().sum(1)
        weighted = shared_sum(solved, plan * weight[:, None, None].to(plan.dtype))
        kernel.cost.pull_back_tangent(kernel.prepared, tuple(tangents), span, kernel.dtype, weighted, second)
    return [*_with(plan_gradients(solved, pair.log_u, pair.log_v, weigh, needs), second), to_weight]


def _with(gradients: list[Tensor | None], extras: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients with these added to those of the cost's tensors that were asked for."""
    to_cost = [None if gradient is None else gradient + extra
               for gradient, extra in zip(gradients[COST:], extras, strict=True)]
    return [*gradients[:COST], *to_cost]


def differentiable_envelope(state: State, grad: Tensor, inputs: Sequence[Tensor],
                            needs: Sequence[bool]) -> list[Tensor | None]:
    """`value.envelope_gradients` attached to ``grad`` (B,) and to the inputs; f and g are taken as what these give."""
    f, g = state.potentials(inputs)
    inputs = [*inputs[:5], f, g, *inputs[COST:]]
    problem = state.problem(inputs)
    by_product = problem.reg_type == "kl"
    a, b, reg, tau_a, tau_b = inputs[:5]
    rows, cols = _Asked(problem.rows, a, tau_a, f), _Asked(problem.cols, b, tau_b, g)

    def mass_gradient(own: _Asked, other: _Asked) -> Tensor:
        slope = own.price
        if by_product:
            slope = slope + reg[:, None] * (other.mass.sum(-1, keepdim=True) - own.ratio)
        else:
            slope = torch.where(own.side.massive, slope, 0.0)
        return grad[:, None] * torch.where(own.unpriced, 0.0, slope)

    def reg_gradient() -> Tensor:
        linear = (rows.marginal * rows.potential).sum(-1) + (cols.marginal * cols.potential).sum(-1)
        entropy = (linear - state.transport_cost(inputs)) / reg - rows.marginal.sum(-1)
        return grad * (entropy + (a.sum(-1) * b.sum(-1) if by_product else 0.0))

    return [mass_gradient(rows, cols) if needs[0] else None, mass_gradient(cols, rows) if needs[1] else None,
            reg_gradient() if needs[2] else None,
            grad * rows.divergence if needs[3] else None, grad * cols.divergence if needs[4] else None, None, None,
            *(state.cost_gradient(inputs, grad) if any(needs[COST:]) else [None] * len(needs[COST:]))]


class _Asked:
    r"""What one potential asks for, differentiable and finite: :math:`e^{-f/\tau}`, the marginal, its divergence."""

    def __init__(self, side: Side, mass: Tensor, tau: Tensor, potential: Tensor) -> None:
        self.side = side
        exact = side.penalty.exact[:, None]
        finite = torch.isfinite(potential)
        self.unpriced = unpriced(side, potential)
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
