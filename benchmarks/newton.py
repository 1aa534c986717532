r"""A trial that was not kept: truncated Newton on the dual reduced to g, counted in passes over the cost.

The reduced dual's Hessian is :math:`\mathrm{diag}(\hat b/\tau + c/\varepsilon) - T^\top \mathrm{diag}(1/(r(1+
\varepsilon/\tau)))\,T/\varepsilon`, so that a step of conjugate gradients costs one fused pass, as a Sinkhorn iteration
does.  Dense, float64, one problem, both penalties equal and finite: enough to count passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class _ReducedDual:
    """The dual as a function of g alone (f is optimal for it), and a count of what evaluating it costs."""

    def __init__(self, cost: Tensor, a: Tensor, b: Tensor, tau: float) -> None:
        self.cost, self.log_a, self.log_b, self.tau, self.passes = cost, a.log(), b.log(), tau, 0

    def evaluate(self, g: Tensor, eps: float) -> _Point:
        self.passes += 1
        step = -eps * self.tau / (self.tau + eps)
        f = step * torch.logsumexp(self.log_b + (g - self.cost) / eps, 1)
        plan = torch.exp(self.log_a[:, None] + self.log_b + (f[:, None] + g - self.cost) / eps)
        answer = step * torch.logsumexp(self.log_a[:, None] + (f[:, None] - self.cost) / eps, 0)
        asked = [torch.exp(log_mass - potential / self.tau) for log_mass, potential in
                 ((self.log_a, f), (self.log_b, g), (self.log_b, answer))]
        value = -self.tau * (asked[0].sum() + asked[1].sum()) - eps * plan.sum()
        shift = 0.5 * self.tau * (asked[0].sum() / asked[2].sum()).log()
        return _Point(g, plan, asked[1], asked[1] - plan.sum(0), float(value), answer - shift)

    def direction(self, at: _Point, eps: float, forcing: float, most: int) -> Tensor:
        """Conjugate gradients on Newton's equations, preconditioned by their diagonal, to a relative residual."""
        diagonal = at.target / self.tau + at.plan.sum(0) / eps
        inverse = 1 / (at.plan.sum(1) * (1 + eps / self.tau))
        solution, residual = torch.zeros_like(at.g), at.gradient
        search = scaled = residual / diagonal
        energy = first = residual @ scaled
        for _ in range(most):
            self.passes += 1
            image = diagonal * search - at.plan.T @ (inverse * (at.plan @ search)) / eps
            length = energy / (search @ image)
            solution, residual = solution + length * search, residual - length * image
            scaled = residual / diagonal
            energy, before = residual @ scaled, energy
            if energy <= forcing**2 * first:
                break
            search = scaled + energy / before * search
        return solution


@dataclass
class _Point:
    g: Tensor
    plan: Tensor
    target: Tensor
    gradient: Tensor
    value: float
    answer: Tensor

    @property
    def violation(self) -> float:
        return float(self.gradient.abs().sum() / self.plan.sum())


def newton_passes(cost: Tensor, a: Tensor, b: Tensor, reg: float, reg_m: float, tol: float, *, limit: int,
                  factor: float = 0.5, forcing: float = 0.1, level: float = 0.1) -> float:
    """Passes to the violation ``tol``: annealing by ``factor``, Newton with line search and a Sinkhorn step between."""
    dual = _ReducedDual(cost, a, b, reg_m)
    eps = max(reg, 0.2)
    here = dual.evaluate(torch.zeros_like(b), eps)
    while dual.passes < limit:
        if here.violation <= (tol if eps <= reg else level):
            if eps <= reg:
                return float(dual.passes)
            eps = max(reg, eps * factor)
            here = dual.evaluate(here.answer, eps)
            continue
        direction = dual.direction(here, eps, forcing, most=40)
        length = min(1.0, 30 * eps / float(direction.abs().max()))
        ahead = dual.evaluate(here.g + length * direction, eps)
        while not ahead.value >= here.value and length > 1e-3:
            length *= 0.3
            ahead = dual.evaluate(here.g + length * direction, eps)
        here = dual.evaluate(ahead.answer, eps)
    return float("inf")
