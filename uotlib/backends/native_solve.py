"""A whole solve by csrc/cpu/solve.cpp: the loop of `uotlib.solver` without Python between the passes.

Small problems of a batch are solved one by a thread; a large one by all threads.  Every problem runs on its own:
neither the batch nor the number of threads changes its answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._extension import extension, missing
from ..options import Progress, SolverOptions
from ..outcome import SCALARS, Outcome, StoredOutcome

if TYPE_CHECKING:
    from ..problem import Problem

#: Seconds between looks at Python: how long an interrupt may wait.
TURN = 0.05


def solve(problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
          init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome:
    """See `uotlib.backends.base.Backend.solve`."""
    if extension is None:
        raise ImportError(missing)
    batch, (_, n, m) = problem.batch, cost.shape
    rows, cols = problem.rows, problem.cols
    answers = torch.empty(batch * (3 * n + 3 * m + SCALARS), dtype=torch.float64, device="cpu")
    # What the solve reads by address must live as long as it runs.
    keep = [rows.mass, rows.penalty.tau, cols.mass, cols.penalty.tau, problem.reg, problem.cost_items,
            None if init is None else init[1]]
    keep = [None if values is None else values.contiguous() for values in keep]
    mass_a, tau_a, mass_b, tau_b, reg, items, start = [0 if values is None else values.data_ptr() for values in keep]
    watched = options.progress is not False and tol != 0
    run = extension.Solve(
        (cost.data_ptr(), cost.dtype == torch.float64, cost.stride(0), cost.stride(1), items, batch, n, m),
        (mass_a, tau_a), (mass_b, tau_b), reg, start, answers.data_ptr(), problem.reg_type == "entropy",
        method == "sinkhorn", max_iter, tol or 0.0, tol != 0, watched,
        vars(options) | {"check_every": options.looks_every(asynchronous=False)}, torch.get_num_threads())
    finished = False
    while not finished:
        finished = run.advance(math.inf if watched else TURN)
        if watched:
            _report(options, *run.status())
    return StoredOutcome(answers, batch, n, m, run.converged())


def extremes(values: Tensor) -> tuple[float, float] | None:
    """Least and largest entry, NaN where one is; None for what the extension cannot read as it lies."""
    if (extension is None or not values.is_cpu or values.dtype not in (torch.float32, torch.float64)
            or not values.is_contiguous()):
        return None
    return extension.extremes(values.data_ptr(), values.dtype == torch.float64, values.numel())


def _report(options: SolverOptions, passes: int, eps: float, violation: float, running: int) -> None:
    if not passes:
        return  # ended at max_iter, between checks
    Progress(passes, eps, violation, running).tell(options.progress)
