r"""The only backward: gradients of the value by the envelope theorem.

At the optimum the value is stationary in the potentials, so its derivative is that of the dual with f, g held:
dV/dC = T, and for the masses and parameters the formulas in `EnvelopeValue.backward`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .divergences import kl
from .operators import GibbsKernel
from .problem import Problem, Side
from .solver import Pair


def dot(mass: Tensor, potential: Tensor) -> Tensor:
    """<mass, potential> over the last dimension, where no mass meets any potential."""
    return torch.where(mass > 0, mass * torch.where(mass > 0, potential, 0.0), 0.0).sum(-1)


def primal_value(problem: Problem, pair: Pair) -> Tensor:
    r"""The whole primal objective of the pair's plan, (B,), without reading the cost.

    :math:`\langle C,T\rangle + \varepsilon\,\mathrm{KL}(T|ab^\top) = \langle r,f\rangle + \langle c,g\rangle
    - \varepsilon(m(T) - m(a)m(b))`, since :math:`\varepsilon\log(T/ab^\top) = f + g - C`; without the product of masses
    in the entropy convention.
    """
    rows, cols = problem.rows, problem.cols
    row_mass, col_mass = pair.row_mass, pair.col_mass
    free = rows.mass.sum(-1) * cols.mass.sum(-1) if problem.reg_type == "kl" else 0.0
    linear = dot(row_mass, pair.f) + dot(col_mass, pair.g) - problem.reg * (row_mass.sum(-1) - free)
    return linear + rows.penalty.primal(row_mass, rows.mass) + cols.penalty.primal(col_mass, cols.mass)


def transport_cost(problem: Problem, pair: Pair, kernel: GibbsKernel) -> Tensor:
    """<C, T>, (B,): one pass over cost and plan, summed in float64; an empty entry of the plan costs nothing."""
    total = torch.zeros_like(problem.reg)
    for _, cost, plan in kernel.plan_and_cost(pair.log_u, pair.log_v, problem.reg):
        total += torch.where(plan > 0, plan * cost, 0.0).sum(2).double().sum(1)
    return total


class EnvelopeValue(torch.autograd.Function):
    """Value as a function of a, b, reg, tau_a, tau_b and the cost's prepared tensors."""

    @staticmethod
    def forward(ctx: FunctionCtx, problem: Problem, pair: Pair, kernel: GibbsKernel, check: Callable[[], None],
                *inputs: Tensor) -> Tensor:
        ctx.problem, ctx.pair, ctx.kernel, ctx.check = problem, pair, kernel, check  # type: ignore[attr-defined]
        return primal_value(problem, pair)

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("second derivatives of Solution.value are not available: its backward was asked to be "
                               "differentiable (create_graph=True)")
        ctx.check()  # type: ignore[attr-defined]
        problem: Problem = ctx.problem  # type: ignore[attr-defined]
        pair: Pair = ctx.pair  # type: ignore[attr-defined]
        kernel: GibbsKernel = ctx.kernel  # type: ignore[attr-defined]
        needs = ctx.needs_input_grad[4:]  # type: ignore[attr-defined]
        rows, cols, reg = problem.rows, problem.cols, problem.reg
        by_kl = problem.reg_type == "kl"

        def mass_gradient(side: Side, potential: Tensor, other_total: Tensor) -> Tensor:
            slope = side.penalty.marginal_value(potential)
            if by_kl:
                slope = slope + reg[:, None] * (other_total[:, None] - side.penalty.target(
                    torch.ones_like(side.mass), potential))
            else:  # the true limit at zero mass is -inf: padding gets 0 instead
                slope = torch.where(side.massive, slope, 0.0)
            return grad[:, None] * slope

        def reg_gradient() -> Tensor:
            total = pair.row_mass.sum(-1)
            entropy = (dot(pair.row_mass, pair.f) + dot(pair.col_mass, pair.g)
                       - transport_cost(problem, pair, kernel)) / reg
            return grad * (entropy - total + (rows.mass.sum(-1) * cols.mass.sum(-1) if by_kl else 0.0))

        def tau_gradient(side: Side, marginal: Tensor) -> Tensor:
            return grad * torch.where(side.penalty.exact, 0.0, kl(marginal, side.mass))

        gradients: list[Tensor | None] = [
            mass_gradient(rows, pair.f, cols.mass.sum(-1)) if needs[0] else None,
            mass_gradient(cols, pair.g, rows.mass.sum(-1)) if needs[1] else None,
            reg_gradient() if needs[2] else None,
            tau_gradient(rows, pair.row_mass) if needs[3] else None,
            tau_gradient(cols, pair.col_mass) if needs[4] else None]
        if any(needs[5:]):
            gradients += _cost_gradient(problem, pair, kernel, grad)
        else:
            gradients += [None] * len(needs[5:])
        return (None, None, None, None, *gradients)


def _cost_gradient(problem: Problem, pair: Pair, kernel: GibbsKernel, grad: Tensor) -> list[Tensor]:
    """dV/dC = T, pulled back to the cost's prepared tensors block by block."""
    prepared = kernel.prepared
    into = tuple(torch.zeros_like(tensor) for tensor in prepared)
    for rows, plan in kernel.panels(pair.log_u, pair.log_v, problem.reg):
        plan = plan * grad[:, None, None].to(plan.dtype)
        if problem.cost_items is not None:
            plan = plan.new_zeros(len(prepared[0]), *plan.shape[1:]).index_add_(0, problem.cost_items, plan)
        kernel.cost.pull_back(prepared, rows, problem.dtype, plan, into)
    return list(into)
