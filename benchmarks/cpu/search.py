"""The fewest iterations with which a method is within a violation, and how its violation falls on the way there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .case import Problem
from .methods.base import Answer, Runner
from .violation import Verdict, judge

#: Least plan mass, over the mass of a, that is not called zero.
EMPTY = 1e-12
#: Potentials that move less than this many eps while the iterations double stand still.
STILL = 1e-3
#: Iterations before which standing still or an empty plan is no verdict: a schedule may be on its way down.
EARLY = 256


@dataclass
class Trace:
    """What a search found.

    Attributes:
        status: "reached"; "slow" if time ran out first; "wrong" if it stands still elsewhere; "zero plan" or
            "not finite", which are wrong too.
        iterations: The fewest that were within the target, or the last tried.
        seconds, verdict, answer: Of those iterations.
        points: (iterations, seconds, violation) of every run, by iterations.
    """

    status: str
    iterations: int
    seconds: float
    verdict: Verdict
    answer: Answer
    points: list[tuple[int, float, float]] = field(default_factory=list)


def timed(run: Callable[[], object]) -> tuple[float, object]:
    begin = time.perf_counter()
    raw = run()
    return time.perf_counter() - begin, raw


def search(runner: Runner, problem: Problem, violation: float, budget: float, start: int = 4,
           refinements: int = 3) -> Trace:
    """Double the iterations until the judge is content, then halve the gap in log iterations.

    Every run begins anew, so that its time is that of a whole call.  A peer's own convergence test is not used: it
    stops at the iterations found here and not one later.

    Args:
        budget: Seconds of runs after which the search ends; judging is not counted.
        start: First number of iterations.
        refinements: Bisections after the first success.
    """
    runner.run(1)  # pages, caches and thread pools
    points: list[tuple[int, float, float]] = []
    spent = 0.0

    def attempt(count: int) -> Trace:
        nonlocal spent
        seconds, raw = timed(lambda: runner.run(count))
        spent += seconds
        answer = runner.answer(raw, count)
        verdict = judge(problem, answer.f, answer.g)
        points.append((count, seconds, verdict.violation))
        return Trace(_status(problem, answer, verdict, violation), count, seconds, verdict, answer)

    latest, before, count = attempt(start), 0, start
    while latest.status == "slow" or (latest.status == "zero plan" and count < EARLY):
        rate = max(latest.seconds, 1e-6) / latest.iterations
        following = min(2 * count, int((budget - spent) / rate))
        if following < 1.2 * count:
            break
        before, earlier, count = count, latest, following
        latest = attempt(count)
        if latest.status == "slow" and count >= EARLY and _moved(earlier.answer, latest.answer) < STILL * problem.reg:
            latest.status = "wrong"
    if latest.status == "reached":
        low, best = before, latest
        for _ in range(refinements):
            middle = round(math.sqrt(max(low, 1) * best.iterations))
            if not low < middle < best.iterations:
                break
            tried = attempt(middle)
            low, best = (low, tried) if tried.status == "reached" else (middle, best)
        latest = best
    latest.points = sorted(points)
    return latest


def _status(problem: Problem, answer: Answer, verdict: Verdict, violation: float) -> str:
    least = EMPTY * float(problem.a.double().sum(-1).max())
    if math.isnan(verdict.violation) or math.isnan(verdict.mass) or not _finite(answer):
        return "not finite"
    if verdict.mass <= least or (answer.returned_mass is not None and answer.returned_mass <= least):
        return "zero plan"
    return "reached" if verdict.violation <= violation else "slow"


def _finite(answer: Answer) -> bool:
    """No NaN, and no potential of +inf; -inf is a scaling that underflowed, whose plan is for the judge."""
    return all(bool((part < torch.inf).all()) for part in (answer.f, answer.g))


def _moved(earlier: Answer, later: Answer) -> float:
    """How far the potentials went, in units of the cost."""

    def far(p: Tensor, q: Tensor) -> float:
        return float(torch.nan_to_num(p - q, nan=0.0).abs().max())

    return max(far(earlier.f, later.f), far(earlier.g, later.g))
