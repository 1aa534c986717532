"""Whole solves through the public function, timed from the host."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch

PROBLEMS = ((1e-1, 1.0, 1e-4), (1e-2, 1.0, 1e-4), (1e-3, 0.1, 1e-3), (1e-4, 0.1, 1e-3), (1e-4, 1.0, 1e-3))


def time_solves(n: int, device: torch.device) -> list[dict[str, Any]]:
    """Time to a violation, on clustered unit vectors.  A solve that does not reach it is not timed."""
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
                violation = float(solution.violation.max())
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        row |= {"n_iter": int(solution.n_iter.max()), "violation": violation}
        row["correct"] = math.isfinite(violation) and violation <= tol
        if row["correct"]:
            row["solve_ms"] = 1e3 * statistics.median(times[1:])
            row["us_per_iteration"] = 1e3 * row["solve_ms"] / max(1, row["n_iter"])
        rows.append(row)
    return rows
