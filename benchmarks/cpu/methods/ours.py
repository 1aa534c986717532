"""The library itself: whole calls, with everything that a user's call does."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from uotlib import ConvergenceWarning, Solution, unbalanced_sinkhorn

from ..case import Problem
from .base import Answer

NAME = "uotlib"
#: Share of the violation that the library is asked for: its float32 certificate does not see the rounding of its own
#: sums, about 1% of a violation of 1e-3 at eps 1e-4, and the judge does.
MARGIN = 0.95


def solve(problem: Problem, violation: float, max_iter: int = 5000) -> Solution:
    """To this violation as the judge sees it, from nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the judge says whether it arrived
        return unbalanced_sinkhorn(problem.cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m,
                                   reg_type=problem.reg_type, tol=MARGIN * violation, max_iter=max_iter,
                                   backend="native")


def answer(solution: Solution) -> Answer:
    """The float64 potentials that the plan is built from: ``solution.f`` rounds them to the cost's type."""
    pair, shape = solution._pair, solution.violation.shape
    return Answer(pair.f.reshape(*shape, -1), pair.g.reshape(*shape, -1))


def iterations(problem: Problem, method: str) -> Callable[[int], Solution]:
    """So many iterations at the target eps, near the solution, where most iterations of a solve are."""
    near = answer(solve(problem, 1e-2))
    init = near.f, near.g
    return lambda count: unbalanced_sinkhorn(
        problem.cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m, reg_type=problem.reg_type,
        method=method, init=init, tol=0, max_iter=count, backend="native")
