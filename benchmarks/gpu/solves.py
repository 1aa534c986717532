"""Whole solves through the public function: large ones timed from the host, small ones as graphs."""

from __future__ import annotations

import math
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .timing import graph_us

if TYPE_CHECKING:
    from uotlib import Solution

PROBLEMS = ((1e-1, 1.0, 1e-4), (1e-2, 1.0, 1e-4), (1e-3, 0.1, 1e-3), (1e-4, 0.1, 1e-3), (1e-4, 1.0, 1e-3))
#: Relative differences to the float64 solve that are allowed, in units of tol: both stop within tol, and their values
#: and masses agree far better than that.
AGREEMENT = 0.1


def time_solves(n: int, device: torch.device) -> list[dict[str, Any]]:
    """Time to a violation, on clustered unit vectors.  Only a solve that `check` finds correct gets a time."""
    from uotlib import unbalanced_sinkhorn

    centres = torch.nn.functional.normalize(torch.randn(16, 64, device=device), dim=1)
    x, z = (torch.nn.functional.normalize(centres[torch.randint(16, (n,), device=device)]
                                          + 0.1 * torch.randn(n, 64, device=device), dim=1) for _ in range(2))
    cost = (1 - x.double() @ z.double().T).float()
    rows = []
    for reg, reg_m, tol in PROBLEMS:
        row: dict[str, Any] = {"n": n, "reg": reg, "reg_m": reg_m, "tol": tol}
        times = []
        for _ in range(4):  # the first compiles
            torch.cuda.synchronize()
            begin = time.perf_counter()
            with torch.no_grad():
                solution = unbalanced_sinkhorn(cost, reg=reg, reg_m=reg_m, backend="triton", tol=tol, max_iter=2000)
                float(solution.violation.max())  # waits for the answer, as a caller would
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        row |= {"n_iter": int(solution.n_iter.max())} | check(solution, cost, reg, reg_m, tol)
        if row["correct"]:
            row["solve_ms"] = 1e3 * statistics.median(times[1:])
            row["us_per_iteration"] = 1e3 * row["solve_ms"] / max(1, row["n_iter"])
        rows.append(row)
    return rows


def time_small(device: torch.device) -> list[dict[str, Any]]:
    """Whole solves in one launch: a pass of every problem of a batch, from replays of a graph with 100 passes."""
    from uotlib import unbalanced_sinkhorn

    problem: dict[str, Any] = {"reg": 1e-2, "reg_m": 1.0}
    rows = []
    for n in (32, 64, 128, 256):
        for batch in (1, 132, 1056):
            cost = torch.rand(batch, n, n, device=device)
            with torch.no_grad():
                solution = unbalanced_sinkhorn(cost, **problem, backend="triton", tol=1e-4)
                alone = unbalanced_sinkhorn(cost[-1], **problem, backend="triton", tol=1e-4)
            row: dict[str, Any] = {"n": n, "batch": batch, "n_iter": int(solution.n_iter.max())}
            row |= check(alone, cost[-1], **problem, tol=1e-4)
            row["correct"] &= bool(solution.converged.all()) and torch.equal(solution.f[-1], alone.f)
            if row["correct"]:
                row["us_per_pass"] = graph_us([lambda cost=cost: unbalanced_sinkhorn(
                    cost, **problem, backend="triton", tol=0, max_iter=100, grad="none")]) / 100
            rows.append(row)
    return rows


def check(solution: Solution, cost: Tensor, reg: float, reg_m: float, tol: float) -> dict[str, Any]:
    """Whether a solve reached tol, and its value and the mass of its dense plan are those of a solve in float64."""
    from uotlib import unbalanced_sinkhorn

    with torch.no_grad():
        exact = unbalanced_sinkhorn(cost.double(), reg=reg, reg_m=reg_m, backend="reference", tol=tol, max_iter=2000)
        mass, exact_mass = float(solution.plan.sum(dtype=torch.float64)), float(exact.row_mass.sum())
        value, exact_value = float(solution.value), float(exact.value)
    violation = float(solution.violation.max())
    errors = {"value_error": abs(value - exact_value) / abs(exact_value),
              "mass_error": abs(mass - exact_mass) / exact_mass}
    correct = (bool(exact.converged) and math.isfinite(violation) and violation <= tol
               and all(error <= AGREEMENT * tol for error in errors.values()))  # NaN is not
    return {"violation": violation, **errors, "correct": correct}
