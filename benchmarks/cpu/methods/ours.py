"""The library itself: whole calls, with everything that a user's call does."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from uotlib import ConvergenceWarning, Solution, unbalanced_sinkhorn

from ..case import Problem
from .base import Answer

NAME = "uotlib"


def solve(problem: Problem, tol: float, max_iter: int = 5000) -> Solution:
    """To this violation, from nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the judge says whether it arrived
        return unbalanced_sinkhorn(problem.cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m,
                                   reg_type=problem.reg_type, tol=tol, max_iter=max_iter, backend="native")


def answer(solution: Solution) -> Answer:
    """The float64 potentials that the plan is built from: ``solution.f`` rounds them to the cost's type."""
    pair, shape = solution._pair, solution.violation.shape
    return Answer(pair.f.reshape(*shape, -1), pair.g.reshape(*shape, -1))


def iterations(problem: Problem, method: str) -> Callable[[int], Solution]:
    """So many iterations at the target eps, near the solution, where most iterations of a solve are."""
    near = answer(solve(problem, 1e-2))
    init = (near.f.to(torch.float64), near.g.to(torch.float64))
    return lambda count: unbalanced_sinkhorn(
        problem.cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m, reg_type=problem.reg_type,
        method=method, init=init, tol=0, max_iter=count, backend="native")
