r"""The potentials (f, g) as functions of every input: one adjoint solve, whatever the loss was made of.

With :math:`\hat l, \hat u` from `adjoint.solve_adjoint`, l and u without their scaling, and Z = T (l_i + u_j):

.. math::
    \frac{\partial L}{\partial C} = \frac{Z}{\varepsilon},\quad
    \frac{\partial L}{\partial\varepsilon} = \frac{\langle Z, f + g - C\rangle}{\varepsilon^2},\quad
    \frac{\partial L}{\partial\tau_a} = \frac{\langle r l, f\rangle}{\tau_a^2},\quad
    \frac{\partial L}{\partial a_i} = -\sum_j \frac{T_{ij}}{a_i} u_j \;\text{("kl")},\;
    \frac{r_i l_i}{a_i} \;\text{("entropy")}

and likewise for the columns.  At :math:`a_i = 0` the "kl" form is finite, and computed; the "entropy" form diverges,
and is 0 here.  The potential of a point without mass is the update that its pairs ask for, and has that gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problem import Side
from .adjoint import Multipliers, Scaled, solve_adjoint, system_product, times
from .products import Weight
from .solved import COST, Gradients, LowRank, Solved, dot, normalising, plan_gradients


def potential_gradients(solved: Solved, grad_f: Tensor, grad_g: Tensor, needs: Sequence[bool],
                        carried: Weight | None = None, into: Gradients | None = None) -> list[Tensor | None]:
    """Gradients to the inputs (none to f and g) of a loss with gradients (B, n) and (B, m) to the potentials.

    Args:
        carried: A weight whose gradient to the cost is added, in the pass that there is for that anyway.
        into: Gradients to the cost's tensors, to which these are added in place.
    """
    total = _Total(needs, into)
    problem, pair = solved.problem, solved.pair
    grads = [torch.where(torch.isfinite(potential), grad, 0.0)
             for potential, grad in ((pair.f, grad_f), (pair.g, grad_g))]
    system = Scaled.of(solved)
    # Points that do not act on any other: their update is an explicit function of the other side.
    for side, root in enumerate((system.root_r, system.root_c)):
        idle = (root == 0) & (grads[side] != 0)
        if bool(idle.any()):
            grads[1 - side] = grads[1 - side] + _through_update(solved, side, torch.where(idle, grads[side], 0.0),
                                                                total)
    found = solve_adjoint(system, *grads)
    del grads
    l, u = found.l, found.u
    _add_plan_part(system, found, total, carried)
    row_weight, col_weight = system.root_r * l, system.root_c * u  # r l and c u
    for name, own, potential, weight in (("a", problem.rows, pair.f, row_weight),
                                         ("b", problem.cols, pair.g, col_weight)):
        total.add(f"tau_{name}", dot(weight, potential) * own.penalty.inverse.square())
        if not solved.by_product:
            total.add(name, torch.where(own.massive, weight / torch.where(own.massive, own.mass, 1.0), 0.0))
    return total.gradients()


class _Total:
    """Sums of gradients in the order of the inputs; only those that are needed."""

    NAMES = ("a", "b", "reg", "tau_a", "tau_b")

    def __init__(self, needs: Sequence[bool], cost: Gradients | None) -> None:
        self.needs = dict(zip(self.NAMES, needs, strict=False))
        self.cost_needs = needs[COST:]
        self.sums: dict[str, Tensor] = {}
        self.cost = cost

    def add(self, name: str, gradient: Tensor | None) -> None:
        if gradient is not None and self.needs[name]:
            self.sums[name] = self.sums[name] + gradient if name in self.sums else gradient

    def keep_cost(self, gradients: Gradients) -> None:
        """What a pass has added to ``cost``, or begun."""
        if any(self.cost_needs):
            self.cost = gradients

    def gradients(self) -> list[Tensor | None]:
        gradients: list[Tensor | None] = [self.sums.get(name) for name in self.NAMES] + [None, None]
        gradients += self.cost or [None] * len(self.cost_needs)
        return gradients


def _add_plan_part(system: Scaled, found: Multipliers, total: _Total, carried: Weight | None) -> None:
    """What comes through the entries of the plan: gradients to cost and reg, and to the masses ("kl")."""
    solved, l, u = system.solved, found.l, found.u
    pair, problem, features, items = solved.pair, solved.problem, solved.kernel.features, solved.kernel.cost_items
    reg = problem.reg[:, None]
    needs = (False, False, total.needs["reg"], *[False] * 4, *total.cost_needs)
    if any(needs):
        # -Z = -N (l_i sqrt(c_j) + sqrt(r_i) u_j)
        log_x, log_y = system.log_x, system.log_y
        weigh = LowRank.of(torch.stack([-l, -system.root_r], 2), torch.stack([system.root_c, u], 2),
                           solved.kernel.dtype)
        if carried is not None:
            # In terms of N, but for points without mass, which it has not.
            log_x, log_y = (torch.where(own > -torch.inf, own, other)
                            for own, other in ((log_x, carried.log_x), (log_y, carried.log_y)))
            weigh = weigh.joined(carried.weigh.rescaled(_quotient(carried.log_x, log_x),
                                                        _quotient(carried.log_y, log_y)))
        gradients = plan_gradients(solved, log_x, log_y, weigh, needs, into=total.cost)
        total.add("reg", gradients[2])
        total.keep_cost(gradients[COST:])
    if not solved.by_product:
        return

    def mass_gradient(side: Side, root: Tensor, sums: Tensor) -> Tensor:
        return torch.where(side.massive, -root * sums / torch.where(side.massive, side.mass, 1.0), 0.0)

    total.add("a", mass_gradient(problem.rows, system.root_r, found.nu))
    if total.needs["b"]:
        total.add("b", mass_gradient(problem.cols, system.root_c, system_product(system, l, side=1)))
    massless_rows, massless_cols = solved.massless
    # T / a for rows without mass, against u; T / b for columns without mass, against l.
    if total.needs["a"] and bool(massless_rows.any()):
        log_x = torch.where(massless_rows, pair.f / reg, -torch.inf)
        at_zero = torch.zeros_like(l)
        if features is not None:
            at_zero = features.times(log_x, pair.log_v, problem.reg, _unscaled(u, system.root_c), items)
        else:
            for span, _, plan in solved.blocks(log_x, pair.log_v):
                at_zero[:, span] = times(plan, _unscaled(u, system.root_c))
        total.add("a", -at_zero)
    if total.needs["b"] and bool(massless_cols.any()):
        log_y = torch.where(massless_cols, pair.g / reg, -torch.inf)
        at_zero = torch.zeros_like(u)
        if features is not None:
            at_zero = features.transposed().times(log_y, pair.log_u, problem.reg, _unscaled(l, system.root_r), items)
        else:
            for span, _, plan in solved.blocks(pair.log_u, log_y):
                at_zero += times(plan.mT, _unscaled(l, system.root_r)[:, span])
        total.add("b", -at_zero)


def _through_update(solved: Solved, side: int, grad: Tensor, total: _Total) -> Tensor:
    r"""Gradient to the other side's potential of potentials that are :math:`f_i = -\lambda\,\mathrm{LSE}_i`.

    .. math:: f_i\,(1/\tau_a + 1/\varepsilon) + \log\sum_j e^{\log v_j - C_{ij}/\varepsilon} = 0 \;\text{("kl")}

    for the points where ``grad`` is not 0; the gradients to everything else are added to ``total``.
    """
    problem, pair = solved.problem, solved.pair
    own: Side = (problem.rows, problem.cols)[side]
    potential = (pair.f, pair.g)[side]
    multiplier = grad / (own.penalty.inverse + 1 / problem.reg)[:, None]
    log_x = torch.where(grad != 0, normalising(pair.row_lse), -torch.inf) if side == 0 else pair.log_u
    log_y = torch.where(grad != 0, normalising(pair.col_lse), -torch.inf) if side == 1 else pair.log_v

    ones = torch.ones_like(pair.g if side == 0 else pair.f)[:, :, None]
    factors = (-multiplier[:, :, None], ones) if side == 0 else (ones, -multiplier[:, :, None])
    weigh = LowRank.of(*factors, solved.kernel.dtype)
    needs = (total.needs["a"] and side == 1, total.needs["b"] and side == 0, total.needs["reg"], False, False,
             True, True, *total.cost_needs)
    a, b, reg, _, _, f, g, *cost = plan_gradients(solved, log_x, log_y, weigh, needs, rows=side == 1, cols=side == 0,
                                                  into=total.cost)
    total.keep_cost(cost)
    weighted = dot(multiplier, potential)
    total.add("a", a)
    total.add("b", b)
    total.add("reg", None if reg is None else reg + weighted / problem.reg.square())
    total.add(("tau_a", "tau_b")[side], weighted * own.penalty.inverse.square())
    other = f if side == 1 else g
    assert other is not None  # it was asked for
    return other


def _quotient(log_scaling: Tensor, other: Tensor) -> Tensor:
    """Of two scalings; 0 of two that are."""
    return torch.where(log_scaling > -torch.inf, torch.exp(log_scaling - other), 0.0)


def _unscaled(scaled: Tensor, root: Tensor) -> Tensor:
    """l from its scaled form; 0 for a point that takes no part."""
    return torch.where(root > 0, scaled / torch.where(root > 0, root, 1.0), 0.0)
