"""The library as it is timed: whole calls of the public function, and iterations near the solution."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.case import Problem
from benchmarks.cpu.methods.logsumexp import half_steps
from benchmarks.cpu.methods.ours import MARGIN, answer
from benchmarks.cpu.violation import judge
from uotlib import ConvergenceWarning, Solution, unbalanced_sinkhorn

#: Textbook iterations after which potentials are compared with float64.
CHECKED = 4
#: Largest error of such potentials, in units of eps: relative in the plan.
POTENTIAL_BOUND = 1e-4
#: What the certificate of a float32 cost may be off: a share, and the rounding of its own sums.
CERTIFICATE_SHARE, CERTIFICATE_FLOOR = 0.05, 3e-5


def solve(problem: Problem, backend: str = "triton", **settings: Any) -> Solution:
    """The library's call, without gradients."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the judge says whether it arrived
        return unbalanced_sinkhorn(
            problem.cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m, reg_type=problem.reg_type,
            backend=backend, grad="none", **settings)


def to_violation(problem: Problem, violation: float, max_iter: int = 3000, **how: Any) -> Solution:
    """To this violation as the judge sees it."""
    return solve(problem, tol=MARGIN * violation, max_iter=max_iter, **how)


@lru_cache(maxsize=1)
def near(problem: Problem) -> tuple[Tensor, Tensor]:
    """Potentials near the solution, where most iterations of a solve are."""
    found = answer(solve(problem, tol=1e-2, max_iter=200))
    return found.f, found.g


def iterations(problem: Problem, method: str, init: tuple[Tensor, Tensor], **how: Any) -> Callable[[int], Solution]:
    """So many iterations at the target eps."""
    return lambda count: solve(problem, method=method, init=init, tol=0, max_iter=count, **how)


def check(problem: Problem, method: str, init: tuple[Tensor, Tensor], **how: Any) -> dict[str, Any]:
    """Whether iterations are right: the textbook's against float64, others' certificate against the judge."""
    if method == "sinkhorn":
        textbook = answer(solve(problem, method=method, tol=0, max_iter=CHECKED, **how))
        error = potential_error(problem, textbook.f, textbook.g)
        return {"error": error, "bound": POTENTIAL_BOUND, "correct": error <= POTENTIAL_BOUND}
    solution = iterations(problem, method, init, **how)(CHECKED)
    pair = answer(solution)
    judged, claimed = judge(problem, pair.f, pair.g).violation, float(solution.violation.max())
    bound = CERTIFICATE_SHARE * judged + CERTIFICATE_FLOOR
    return {"violation": judged, "claimed": claimed, "error": abs(judged - claimed), "bound": bound,
            "correct": abs(judged - claimed) <= bound}  # NaN is not


def potential_error(problem: Problem, f: Tensor, g: Tensor, count: int = CHECKED) -> float:
    """Largest difference to ``count`` textbook iterations in float64 ("kl"), in units of eps."""
    cost, a, b = problem.arguments(torch.float64)
    step = problem.reg_m * problem.reg / (problem.reg_m + problem.reg)
    exact = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(count):
        exact = half_steps(cost, a.log(), b.log(), *exact, problem.reg, step)
    off = [(found.double() - wanted).abs().nan_to_num(nan=torch.inf).max() / problem.reg
           for found, wanted in zip((f, g), exact, strict=True)]
    return float(max(off))
