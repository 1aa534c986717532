"""A whole solve by csrc/cpu/solve.cpp: the loop of `uotlib.solver` without Python between the passes.

Small problems of a batch are solved one by a thread; a large one by all threads.  Every problem runs on its own:
neither the batch nor the number of threads changes its answer.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._extension import extension, missing
from ..options import Progress, SolverOptions
from ..outcome import Outcome, Pair

if TYPE_CHECKING:
    from ..problem import Problem, Side

#: Seconds between looks at Python: how long an interrupt may wait.
TURN = 0.05


def solve(problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
          init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome:
    """See `uotlib.backends.base.Backend.solve`."""
    if extension is None:
        raise ImportError(missing)
    batch, (_, n, m) = problem.batch, cost.shape
    items = problem.cost_items
    keep = [items, cost]  # what the solve reads by address must live as long as it runs

    def address(values: Tensor | None) -> int:
        if values is None:
            return 0
        keep.append(values := values.contiguous())
        return values.data_ptr()

    def side(of: Side) -> dict[str, int]:
        return {"mass": address(of.mass), "log_mass": address(of.log_mass), "tau": address(of.penalty.tau)}

    out, outcome = _answers(batch, n, m)
    watched = options.progress is not False and tol != 0
    settings: dict[str, Any] = vars(options) | {
        "textbook": method == "sinkhorn", "synchronous": tol != 0, "max_iter": max_iter, "tol": tol or 0.0,
        "lockstep": watched}
    run = extension.Solve(
        {"data": cost.data_ptr(), "is_double": cost.dtype == torch.float64, "batch_stride": cost.stride(0),
         "row_stride": cost.stride(1), "items": address(items), "count": batch, "n": n, "m": m},
        side(problem.rows), side(problem.cols),
        {"entropy": problem.reg_type == "entropy", "reg": address(problem.reg),
         "start": address(None if init is None else init[1])},
        settings, out, torch.get_num_threads())
    finished = False
    while not finished:
        finished = run.advance(math.inf if watched else TURN)
        if watched:
            _report(options, *run.status())
    return outcome


def _answers(batch: int, n: int, m: int) -> tuple[dict[str, int], Outcome]:
    """Addresses of the answers, and the answers that the solve will fill in."""
    rows, cols = torch.empty(3, batch, n, dtype=torch.float64), torch.empty(3, batch, m, dtype=torch.float64)
    f, log_u, row_lse = rows
    g, log_v, col_lse = cols
    violation, gap = torch.empty(2, batch, dtype=torch.float64)
    n_iter = torch.empty(batch, dtype=torch.int64)
    converged, at_floor = torch.empty(2, batch, dtype=torch.bool)
    answers = {"f": f, "g": g, "log_u": log_u, "log_v": log_v, "row_lse": row_lse, "col_lse": col_lse,
               "violation": violation, "gap": gap, "n_iter": n_iter, "converged": converged, "at_floor": at_floor}
    outcome = Outcome(Pair(f, g, log_u, log_v, row_lse, col_lse), violation, gap, n_iter, converged, at_floor)
    return {name: values.data_ptr() for name, values in answers.items()}, outcome


def _report(options: SolverOptions, passes: int, eps: float, violation: float, running: int) -> None:
    if not passes:
        return  # ended at max_iter, between checks
    state = Progress(passes, eps, violation, running)
    if callable(options.progress):
        options.progress(state)
    else:
        print(f"pass {state.n_iter:5d}  eps {state.reg:.3g}  violation {state.violation:.3e}  "
              f"running {state.running}", file=sys.stderr)
