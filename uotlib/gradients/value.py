r"""The value, and its gradient by the envelope theorem.

At the optimum the value is stationary in the potentials, so its derivative is that of the dual with f, g held:
dV/dC = T, and for the masses and parameters the formulas in `envelope_gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..divergences import kl
from ..outcome import Pair
from ..problem import Problem, Side
from .products import transport_cost
from .solved import COST, LowRank, Solved, dot, plan_gradients


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


def envelope_gradients(solved: Solved, grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients to the inputs (none to f and g, which are held) of a loss with gradient ``grad`` (B,) to the value."""
    problem, pair = solved.problem, solved.pair
    rows, cols, reg = problem.rows, problem.cols, problem.reg

    def mass_gradient(side: Side, potential: Tensor, other_total: Tensor) -> Tensor:
        slope = side.penalty.marginal_value(potential)
        if solved.by_product:
            slope = slope + reg[:, None] * (other_total[:, None] - side.penalty.target(
                torch.ones_like(side.mass), potential))
        else:  # the true limit at zero mass is -inf: padding gets 0 instead
            slope = torch.where(side.massive, slope, 0.0)
        return grad[:, None] * torch.where(unpriced(side, potential), 0.0, slope)

    def reg_gradient() -> Tensor:
        total = pair.row_mass.sum(-1)
        entropy = (dot(pair.row_mass, pair.f) + dot(pair.col_mass, pair.g)
                   - transport_cost(solved)) / reg
        return grad * (entropy - total + (rows.mass.sum(-1) * cols.mass.sum(-1) if solved.by_product else 0.0))

    def tau_gradient(side: Side, marginal: Tensor) -> Tensor:
        return grad * torch.where(side.penalty.exact, 0.0, kl(marginal, side.mass))

    gradients: list[Tensor | None] = [
        mass_gradient(rows, pair.f, cols.mass.sum(-1)) if needs[0] else None,
        mass_gradient(cols, pair.g, rows.mass.sum(-1)) if needs[1] else None,
        reg_gradient() if needs[2] else None,
        tau_gradient(rows, pair.row_mass) if needs[3] else None,
        tau_gradient(cols, pair.col_mass) if needs[4] else None, None, None]
    if any(needs[COST:]):
        return gradients + pulled_back_plan(solved, grad, needs[COST:])
    return gradients + [None] * len(needs[COST:])


def unpriced(side: Side, potential: Tensor) -> Tensor:
    """Points without mass that reach no other, of an exact marginal: the slope there is infinite, and 0 is given."""
    return ~side.massive & torch.isinf(potential) & side.penalty.exact[:, None]


def pulled_back_plan(solved: Solved, weight: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """dV/dC = T, times ``weight`` (B,), to the cost's prepared tensors."""
    left, right = (torch.ones(*points.shape, 1, dtype=solved.kernel.dtype, device=points.device)
                   for points in (solved.pair.f, solved.pair.g))
    weigh = LowRank(left, right, -weight * solved.problem.reg)  # W of a loss whose gradient to the cost is -W / eps
    needs = [*[False] * COST, *needs]
    return plan_gradients(solved, solved.pair.log_u, solved.pair.log_v, weigh, needs)[COST:]
