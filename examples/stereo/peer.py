"""The same problem given to POT, in float64, and its answer held against the same certificate."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np

from uotlib import Solution, unbalanced_sinkhorn

from .matching import Problem


@dataclass(frozen=True)
class Comparison:
    """One solver's answer on the headline problem.

    Args:
        solver: Its name.
        seconds: Wall time.
        mass: Total of its plan.
        violation: Norm of the dual's gradient over that mass, from float64 row and column sums.
        distance: L1 distance of its plan from the reference plan, over the reference's mass.
        same_match: Share of rows whose largest entry stands in the same column as the reference's.
        note: What the solver itself had to say.
    """

    solver: str
    seconds: float
    mass: float
    violation: float
    distance: float
    same_match: float
    note: str = ""


def compare(problem: Problem, reg: float, reg_m: float, iterations: dict[str, int]) -> list[Comparison]:
    """uotlib and POT on one problem; the reference plan is uotlib's at its default tolerance.

    Args:
        problem: Cost and masses, float32: POT gets the same numbers as float64.
        reg, reg_m: eps and tau.
        iterations: Most iterations of each of POT's methods.
    """
    rows = []
    reference, best = None, None
    for name, settings in (("uotlib auto", {}), ("uotlib sinkhorn", {"method": "sinkhorn"})):
        start = time.perf_counter()
        solution = unbalanced_sinkhorn(problem.cost, problem.a, problem.b, reg=reg, reg_m=reg_m, grad="none",
                                       **settings)
        seconds = time.perf_counter() - start
        plan = _float64_plan(problem, solution, reg)
        if reference is None:
            reference, best = plan, solution.argmax().numpy()
        rows.append(_row(name, seconds, plan, solution.f.double().numpy(), solution.g.double().numpy(), problem, reg_m,
                         reference, best, f"{int(solution.n_iter)} passes, float32"))
    for method, limit in iterations.items():
        rows.append(_pot(problem, reg, reg_m, method, limit, reference, best))
    return rows


def _float64_plan(problem: Problem, solution: Solution, reg: float) -> np.ndarray:
    """The plan of the returned potentials, with no rounding after them."""
    f, g = solution.f.double().numpy(), solution.g.double().numpy()
    a, b = problem.a.double().numpy(), problem.b.double().numpy()
    plan = problem.cost.double().numpy()
    plan *= -1
    plan += f[:, None]
    plan += g
    plan /= reg
    np.exp(plan, out=plan)
    plan *= a[:, None]
    plan *= b
    return plan


def _pot(problem: Problem, reg: float, reg_m: float, method: str, limit: int, reference: np.ndarray,
         best: np.ndarray) -> Comparison:
    import ot

    cost, a, b = (part.double().numpy() for part in (problem.cost, problem.a, problem.b))
    with warnings.catch_warnings(record=True) as said, np.errstate(all="ignore"):
        warnings.simplefilter("always")
        start = time.perf_counter()
        plan, log = ot.unbalanced.sinkhorn_unbalanced(a, b, cost, reg, reg_m, method=method, reg_type="kl",
                                                      numItermax=limit, log=True)
        seconds = time.perf_counter() - start
    note = f"at most {limit} iterations, float64"
    if method == "sinkhorn":
        note = f"{len(log['err'])} iterations, float64"
    if said:
        note += "; warned: " + str(said[-1].message).split(".")[0]
    return _row(f"POT {method}", seconds, plan, reg * log["logu"], reg * log["logv"], problem, reg_m, reference, best,
                note)


def _row(name: str, seconds: float, plan: np.ndarray, f: np.ndarray, g: np.ndarray, problem: Problem, reg_m: float,
         reference: np.ndarray, best: np.ndarray, note: str) -> Comparison:
    mass = float(plan.sum())
    distance = float(np.abs(plan - reference).sum() / reference.sum())
    same = float((plan.argmax(1) == best).mean())
    a, b = problem.a.double().numpy(), problem.b.double().numpy()
    return Comparison(name, seconds, mass, violation(plan, f, g, a, b, reg_m), distance, same, note)


def violation(plan: np.ndarray, f: np.ndarray, g: np.ndarray, a: np.ndarray, b: np.ndarray, reg_m: float) -> float:
    """(|T1 - a e^(-f/tau)|_1 + |T'1 - b e^(-g/tau)|_1) / m(T), finite tau: zero at the optimum alone."""
    with np.errstate(all="ignore"):
        rows = np.abs(plan.sum(1) - a * np.exp(-f / reg_m)).sum()
        columns = np.abs(plan.sum(0) - b * np.exp(-g / reg_m)).sum()
        return float((rows + columns) / plan.sum())
