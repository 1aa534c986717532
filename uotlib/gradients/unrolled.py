r"""Gradients of the iterations that were run, rather than of their limit: ``grad="unrolled"``.

The textbook iteration is replayed as a torch expression of half-steps; each keeps vectors, O(n + m), and computes its
exponentials again in the backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..outcome import Pair
from ..problem import Side
from .solved import COST, LowRank, Solved, dot, normalising, plan_gradients
from .value import primal_value, unpriced

if TYPE_CHECKING:
    from ..primitives import State


def log_sum_exp(solved: Solved, log_scaling: Tensor, side: int) -> Tensor:
    r""":math:`\log\sum_j e^{\log v_j - C_{ij}/\varepsilon}` over columns (``side`` 0) or, from log u, over rows (1).

    A function of the mass, eps and potential of the side that is summed over, and of the cost.
    """
    kernel, eps = solved.kernel, solved.problem.reg
    if kernel.features is not None:
        features = kernel.features.transposed() if side else kernel.features
        return features.lse(log_scaling, eps, kernel.cost_items)
    lse = log_scaling.new_full((kernel.batch, kernel.m if side else kernel.n), -torch.inf)
    for rows, block, entries in kernel.blocks():
        if side == 0:
            lse[:, rows] = kernel.backend.row_lse(block, log_scaling, eps, entries)
        else:
            lse = torch.logaddexp(lse, kernel.backend.col_lse(block, log_scaling[:, rows], eps, entries))
    return lse


def log_sum_exp_gradients(solved: Solved, grad: Tensor, log_scaling: Tensor, lse: Tensor, side: int,
                          needs: Sequence[bool]) -> list[Tensor | None]:
    r"""With softmax P and incoming gradient d, :math:`W_{ij} = d_i P_{ij}` in `plan_gradients`.

    Returns:
        Gradients to the inputs; None to the log-scaling, which is a function of them.
    """
    own, other = normalising(lse), log_scaling
    ones = torch.ones_like(log_scaling)[:, :, None]
    grad = grad[:, :, None]
    weigh = LowRank.of(*((grad, ones) if side == 0 else (ones, grad)), solved.kernel.dtype)
    scalings = (own, other) if side == 0 else (other, own)
    return [*plan_gradients(solved, *scalings, weigh, needs[:-1], rows=side == 1, cols=side == 0), None]


def unrolled_potentials(state: State, inputs: Sequence[Tensor], start: Tensor, n_iter: Tensor,
                        most: int) -> tuple[Tensor, Tensor]:
    """(f, g) after ``n_iter`` (B,) textbook iterations from the column potential ``start`` (B, m), attached.

    Their values are the solver's own, from which this replay differs by rounding.

    Args:
        inputs: With the solver's f and g.
        most: The largest of ``n_iter``.
    """
    problem = state.problem(inputs)
    by_product = problem.reg_type == "kl"
    a, b, reg, tau_a, tau_b, found_f, found_g, *prepared = inputs
    f, g = torch.zeros_like(a), start

    def lse(side: int, log_scaling: Tensor) -> Tensor:
        return state.log_sum_exp([a, b, reg, tau_a, tau_b, f, g, *prepared], log_scaling, side)

    for iteration in range(most):
        log_v = problem.cols.log_scaling(g.detach(), problem.reg)
        if iteration == 0 and not by_product:
            log_v = (g / problem.reg[:, None]).detach()  # as the solver: v_0 has an entry for every column
        f_next = _update(problem.rows, lse(0, log_v), a, tau_a, reg, by_product)
        more = (iteration < n_iter)[:, None]
        before, f = f, f_next
        log_u = problem.rows.log_scaling(f_next.detach(), problem.reg)
        g_next = _update(problem.cols, lse(1, log_u), b, tau_b, reg, by_product)
        f, g = torch.where(more, f_next, before), torch.where(more, g_next, g)
    return _valued(found_f, f), _valued(found_g, g)


def unrolled_value(state: State, inputs: Sequence[Tensor], pair: Pair) -> Tensor:
    """The primal objective (B,) of the plan of the inputs, f and g among them, not supposed to be optimal."""
    a, b, reg, tau_a, tau_b, f, g = inputs[:COST]
    problem = state.problem(inputs)
    a = torch.where(unpriced(problem.rows, pair.f), a.detach(), a)
    b = torch.where(unpriced(problem.cols, pair.g), b.detach(), b)
    by_product = problem.reg_type == "kl"
    r, c = (state.marginal(inputs, side) for side in (0, 1))
    value = dot(r, f) + dot(c, g) - reg * r.sum(-1)
    if by_product:
        value = value + reg * a.sum(-1) * b.sum(-1)
    for side, tau, marginal, mass, own in ((problem.rows, tau_a, r, a, pair.f), (problem.cols, tau_b, c, b, pair.g)):
        exact = side.penalty.exact
        some = side.massive & (marginal.detach() > 0)
        ratio = torch.where(some, marginal, 1.0) / torch.where(some, mass, 1.0)
        # In the entropy convention the slope at zero mass has no bound: padding gets 0, as everywhere.
        given = mass if by_product else torch.where(side.massive, mass, 0.0)
        divergence = (torch.where(some, marginal * ratio.log() - marginal, 0.0) + given).sum(-1)
        value = value + torch.where(exact, 0.0, torch.where(exact, 1.0, tau) * divergence)
        if by_product:  # where mass is 0 the marginal is, and their ratio is what a little mass would have
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
