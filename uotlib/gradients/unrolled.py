r"""Gradients of the iterations that were run, rather than of their limit: ``grad="unrolled"``.

The textbook iteration is replayed as a torch expression of half-steps; each keeps vectors, O(n + m), and computes its
exponentials again in the backward.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..outcome import Pair
from ..problem import Side
from .products import Marginal
from .solved import Solved, dot, normalising, plan_gradients
from .value import primal_value


class LogSumExp(torch.autograd.Function):
    r""":math:`\log\sum_j e^{\log v_j - C_{ij}/\varepsilon}` over columns (``side`` 0) or, from log u, over rows (1).

    A function of the mass, eps and potential of the side that is summed over, and of the cost.  With softmax P and
    incoming gradient d, :math:`W_{ij} = d_i P_{ij}` in `plan_gradients`.
    """

    @staticmethod
    def forward(ctx: Any, solved: Solved, side: int, log_scaling: Tensor, mass: Tensor, reg: Tensor,
                potential: Tensor, *prepared: Tensor) -> Tensor:
        kernel, eps = solved.kernel, solved.problem.reg
        lse = log_scaling.new_full((kernel.batch, kernel.m if side else kernel.n), -torch.inf)
        for rows, block, entries in kernel.blocks():
            if side == 0:
                lse[:, rows] = kernel.backend.row_lse(block, log_scaling, eps, entries)
            else:
                lse = torch.logaddexp(lse, kernel.backend.col_lse(block, log_scaling[:, rows], eps, entries))
        ctx.solved, ctx.side, ctx.log_scaling, ctx.lse = solved, side, log_scaling, lse
        ctx.potential = potential.detach()
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        solved, side = ctx.solved, ctx.side
        solved.check()
        own, other = normalising(ctx.lse), ctx.log_scaling

        def weigh(span: slice, cost: Tensor, plan: Tensor) -> tuple[Tensor, None]:
            return plan * (grad[:, None, :] if side else grad[:, span, None]).to(plan.dtype), None

        mass, reg, potential, *cost = ctx.needs_input_grad[3:]
        needs = (mass and side == 1, mass and side == 0, reg, potential and side == 1, potential and side == 0, *cost)
        at = _with_potential(solved, 1 - side, ctx.potential)
        log_x, log_y = (own, other) if side == 0 else (other, own)
        a, b, to_reg, f, g, *to_cost = plan_gradients(at, log_x, log_y, weigh, needs, rows=side == 1, cols=side == 0)
        return (None, None, None, b if side == 0 else a, to_reg, g if side == 0 else f, *to_cost)


def unrolled_potentials(solved: Solved, start: Tensor, n_iter: Tensor, inputs: tuple[Tensor, ...],
                        prepared: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(f, g) after ``n_iter`` (B,) textbook iterations from the column potential ``start`` (B, m), attached.

    Their values are the solver's own, from which this replay differs by rounding.
    """
    problem = solved.problem
    a, b, reg, tau_a, tau_b = inputs
    f, g = torch.zeros_like(a), start
    for iteration in range(int(n_iter.max()) if n_iter.numel() else 0):
        log_v = problem.cols.log_scaling(g.detach(), problem.reg)
        if iteration == 0 and not solved.by_product:
            log_v = g / problem.reg[:, None]  # as the solver: v_0 has an entry for every column
        row_lse = LogSumExp.apply(solved, 0, log_v, b, reg, g, *prepared)
        f_next = _update(problem.rows, row_lse, a, tau_a, reg, solved.by_product)
        log_u = problem.rows.log_scaling(f_next.detach(), problem.reg)
        col_lse = LogSumExp.apply(solved, 1, log_u, a, reg, f_next, *prepared)
        g_next = _update(problem.cols, col_lse, b, tau_b, reg, solved.by_product)
        more = (iteration < n_iter)[:, None]
        f, g = torch.where(more, f_next, f), torch.where(more, g_next, g)
    return _valued(solved.pair.f, f), _valued(solved.pair.g, g)


def unrolled_value(solved: Solved, *inputs: Tensor) -> Tensor:
    """The primal objective (B,) of the plan of (a, b, reg, tau_a, tau_b, f, g, cost), not supposed to be optimal."""
    a, b, reg, tau_a, tau_b, f, g, *prepared = inputs
    r, c = (Marginal.apply(solved, side, a, b, reg, f, g, *prepared) for side in (0, 1))
    value = dot(r, f) + dot(c, g) - reg * r.sum(-1)
    if solved.by_product:
        value = value + reg * a.sum(-1) * b.sum(-1)
    problem, pair = solved.problem, solved.pair
    for side, tau, marginal, mass, own in ((problem.rows, tau_a, r, a, pair.f), (problem.cols, tau_b, c, b, pair.g)):
        exact = side.penalty.exact
        some = side.massive & (marginal.detach() > 0)
        ratio = torch.where(some, marginal, 1.0) / torch.where(some, mass, 1.0)
        # In the entropy convention the slope at zero mass has no bound: padding gets 0, as everywhere.
        given = mass if solved.by_product else torch.where(side.massive, mass, 0.0)
        divergence = (torch.where(some, marginal * ratio.log() - marginal, 0.0) + given).sum(-1)
        value = value + torch.where(exact, 0.0, torch.where(exact, 1.0, tau) * divergence)
        if solved.by_product:  # where mass is 0 the marginal is, and their ratio is what a little mass would have
            lse = pair.row_lse if side is problem.rows else pair.col_lse
            log_ratio = torch.where(side.massive, 0.0, own / problem.reg[:, None] + lse)
            log_ratio = torch.where(torch.isfinite(log_ratio), log_ratio, -1e4)
            potential = torch.where(torch.isfinite(own), own, 0.0)
            slope = log_ratio.exp() * (potential + torch.where(exact, 0.0, side.penalty.tau)[:, None] * (log_ratio - 1))
            value = value + torch.where(side.massive, 0.0, mass * slope).sum(-1)
    return _valued(primal_value(problem, pair), value)


def _update(side: Side, lse: Tensor, mass: Tensor, tau: Tensor, reg: Tensor, by_product: bool) -> Tensor:
    """`Side.potential` as an expression that has gradients everywhere that they are finite."""
    step = (1 / (1 / tau + 1 / reg))[:, None]
    reached = lse > -torch.inf
    some = reached if by_product else reached & side.massive
    residual = 0.0 if by_product else torch.where(side.massive, mass, 1.0).log()
    limit = torch.where(side.massive | by_product, torch.inf, -torch.inf)
    return torch.where(some, step * (residual - torch.where(reached, lse, 0.0)), limit)


def _valued(value: Tensor, attached: Tensor) -> Tensor:
    """This value, with the gradient of what differs from it by rounding."""
    finite = torch.isfinite(value) & torch.isfinite(attached)
    return torch.where(finite, attached + torch.where(finite, value - attached, 0.0).detach(), value)


def _with_potential(solved: Solved, side: int, potential: Tensor) -> Solved:
    """The same problem at another potential of one side, which is all that `plan_gradients` looks at."""
    pair = solved.pair
    f, g = (potential, pair.g) if side == 0 else (pair.f, potential)
    return replace(solved, pair=Pair(f, g, pair.log_u, pair.log_v, pair.row_lse, pair.col_lse))
