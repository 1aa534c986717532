"""One fused iteration of the native backend beside the time to read the cost once.

    python -m benchmarks.cpu_sweep [--n 4096] [--repeats 21] [--dtype float32]

Each run comes right after a `C.sum()` of the same cost, which comes right after another: both find the caches alike,
and a ratio is that of their medians.  Both start after a pause: torch's OpenMP threads spin for some milliseconds after
an operation, on cores that the backend's own threads need.  On as many threads as torch has.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.problems import clustered, raster
from uotlib import SolverOptions, unbalanced_sinkhorn
from uotlib.backends.native import NativeBackend

NATIVE = NativeBackend()
#: Seconds before each run.
PAUSE = 0.01


@dataclass
class Late:
    """A balanced problem after some iterations at every level of eps down to reg, and what the last one expects."""

    cost: Tensor
    a: Tensor
    b: Tensor
    reg: float
    iterations: int = 12

    def __post_init__(self) -> None:
        self.cost = self.cost[None]
        self.one = torch.ones(1, dtype=torch.float64)
        self.log_a, self.log_b = self.a.double().log()[None], self.b.double().log()[None]
        self.table = NATIVE.block_min(self.cost)
        g, reg = torch.zeros_like(self.log_b), 0.4
        while True:
            reg = max(reg, self.reg)
            eps = reg * self.one
            for _ in range(self.iterations):
                self.row = NATIVE.row_lse(self.cost, self.log_b + g / reg, eps)
                self.column = NATIVE.col_lse(self.cost, self.log_a - self.row, eps)
                g = -reg * self.column
            if reg == self.reg:
                break
            reg *= 0.5
        self.log_v = self.log_b + g / reg

    def sweep(self, hint: bool = False, skip: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        mass, missed = torch.zeros_like(self.log_v), torch.zeros(1, self.table.shape[2], dtype=torch.float64)
        lse = NATIVE.sweep(self.cost, self.log_v, self.log_a, self.one, self.reg * self.one, self.log_a.mean().view(1),
                           mass, row_hint=self.row if hint else None, col_hint=self.column if skip else None,
                           block_min=self.table if skip else None, missed=missed if skip else None)
        return lse, mass, missed

    def skipping_error(self) -> tuple[float, float]:
        """Largest relative error of the columns' masses, and the share of columns that would have to be redone."""
        mass, (_, some, missed) = self.sweep(hint=True)[1], self.sweep(hint=True, skip=True)
        bound = missed.repeat_interleave(64, 1)[:, : mass.shape[1]]
        weak = bound > torch.finfo(self.cost.dtype).eps / 2 * some
        return float((some / mass - 1).abs().max()), float(weak.double().mean())


def timed(run: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    arguments = parser.parse_args()

    dtype = getattr(torch, arguments.dtype)
    cost, a, b = clustered(arguments.n, dtype=dtype)
    smooth = Late(cost, a, b, 0.05)
    late = {"shuffled": Late(cost, a, b, 1e-3),
            "clustered": Late(*clustered(arguments.n, order="clustered", dtype=dtype), 1e-3),
            "raster": Late(*raster(arguments.n, dtype=dtype), 1e-3)}

    def torch_iteration() -> Tensor:
        f = -0.05 * torch.logsumexp(b.log() - cost / 0.05, 1)
        return torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / 0.05, 0)

    def solve(passes: int) -> Callable[[], object]:
        options = SolverOptions()
        return lambda: unbalanced_sinkhorn(cost, a, b, reg=0.05, reg_m=1.0, tol=0, max_iter=passes, options=options)

    cases: dict[str, tuple[Tensor, Callable[[], object], int]] = {
        "C.sum()": (cost, cost.sum, 1), "sweep, eps 0.05": (cost, smooth.sweep, 1),
        "+ hint": (cost, lambda: smooth.sweep(hint=True), 1),
        "+ skipping": (cost, lambda: smooth.sweep(hint=True, skip=True), 1),
        "block minima": (cost, lambda: NATIVE.block_min(smooth.cost), 1)}
    for order, problem in late.items():
        cases[f"{order}, eps 0.001, hint"] = (problem.cost, partial(problem.sweep, hint=True), 1)
        cases[f"{order}, + skipping"] = (problem.cost, partial(problem.sweep, hint=True, skip=True), 1)
    cases |= {"whole solve, per pass": (cost, solve(40), 40), "two torch.logsumexp": (cost, torch_iteration, 1)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(arguments.repeats):
        for name, (matrix, run, count) in cases.items():
            matrix.sum()
            floor = timed(matrix.sum)
            times[name].append((floor, timed(run) / count))
    print(f"n = m = {arguments.n}, {arguments.dtype}, {torch.get_num_threads()} threads, ratios to C.sum()")
    for name, taken in times.items():
        floors, runs = zip(*taken, strict=True)
        ratio = statistics.median(runs) / statistics.median(floors)
        print(f"{name:28s} {ratio:8.2f}   (least {min(runs) / min(floors):.2f})")
    for order, problem in late.items():
        error, weak = problem.skipping_error()
        print(f"{order}: columns with and without skipping agree to {error:.0e}, {100 * weak:.1f}% to be redone")


if __name__ == "__main__":
    main()
