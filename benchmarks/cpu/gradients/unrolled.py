"""Peers in torch, differentiated by autograd through their iterations, or through what of them they leave to it."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch
from torch import Tensor

from uotlib import ConvergenceWarning, unbalanced_sinkhorn

from ..case import Target
from ..methods.base import need
from ..methods.logsumexp import half_steps
from .base import LOSSES, Differentiable, Pass, Task, draw_task, torch_pass

#: Iterations that autograd is given where a method does not say how many are enough: what is commonly written.
COMMON = 100


@lru_cache
def textbook_iterations(n: int, target: Target) -> int:
    """Iterations of the textbook to a violation: POT's iteration is that one, and counted here it takes no time."""
    problem = draw_task(LOSSES[0], n, target).problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return int(unbalanced_sinkhorn(problem.cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m,
                                       reg_type=problem.reg_type, method="sinkhorn", tol=target.violation,
                                       max_iter=5000, backend="native").n_iter)


def logsumexp_pass(task: Task, _: int) -> Pass:
    """Two log-sum-exps an iteration; the value is the dual of the last potentials."""
    one, v = task.problem, task.v
    log_a, log_b, mass = one.a.log(), one.b.log(), one.a.sum() * one.b.sum()
    step = one.reg_m * one.reg / (one.reg_m + one.reg)

    def loss(cost: Tensor, iterations: int) -> Tensor:
        f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
        for _ in range(iterations):
            f, g = half_steps(cost, log_a, log_b, f, g, one.reg, step)
        plan = torch.exp((f[:, None] + g - cost) / one.reg + log_a[:, None] + log_b)
        if task.of_plan:
            return task.loss_of(plan, v)
        kept = sum((weight * -torch.expm1(-potential / one.reg_m)).sum() for weight, potential in (
            (one.a, f), (one.b, g)))
        return one.reg_m * kept - one.reg * (plan.sum() - mass)

    return torch_pass(task, torch.float32, loss)


def pot_pass(task: Task, _: int) -> Pass:
    """POT's torch backend, float64 (float32 underflows at eps 1e-2): autograd through all of its iterations.

    The value is of its plan: what it returns itself, ``returnCost="total"``, leaves the masses out of KL and is zero,
    as is its gradient, at every solution.
    """
    need("ot", "POT")
    from ot import unbalanced

    one, v = task.problem, task.v.double()
    a, b = one.a.double(), one.b.double()

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (torch.special.xlogy(p, p / q) - p + q).sum()

    def loss(cost: Tensor, iterations: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is what the judge sees
            plan = unbalanced.sinkhorn_unbalanced(a, b, cost, one.reg, one.reg_m, reg_type=one.reg_type,
                                                  numItermax=iterations, stopThr=0.0)
        if task.of_plan:
            return task.loss_of(plan, v)
        penalties = kl(plan.sum(1), a) + kl(plan.sum(0), b)
        return (cost * plan).sum() + one.reg_m * penalties + one.reg * kl(plan, a[:, None] * b)

    return torch_pass(task, torch.float64, loss)


def geomloss_pass(task: Task, _: int) -> Pass:
    """GeomLoss's ``ot.solve``: autograd sees its last step alone."""
    need("geomloss", "geomloss")
    from geomloss import ot

    one, v = task.problem, task.v

    def loss(cost: Tensor, iterations: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution = ot.solve(cost, a=one.a, b=one.b, reg=one.reg, unbalanced=one.reg_m,
                                max_iter=iterations)
        return task.loss_of(solution.plan, v) if task.of_plan else solution.value

    return torch_pass(task, torch.float32, loss)


def _common(n: int, target: Target) -> int:
    return COMMON


LOGSUMEXP = Differentiable("torch, two logsumexp", f"autograd, {COMMON} iterations", logsumexp_pass, _common)
POT = Differentiable("POT", "autograd, torch, float64", pot_pass, textbook_iterations, package="POT")
GEOMLOSS = Differentiable("GeomLoss", f"ot.solve, {COMMON} iterations", geomloss_pass, _common, package="geomloss")
