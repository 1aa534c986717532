"""One fused iteration of the native backend beside the time to read the cost once.

    python -m benchmarks.cpu_sweep [--n 4096] [--repeats 21]

Medians of runs that alternate, on as many threads as torch has; only the ratios mean anything on a shared machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.problems import clustered
from uotlib import SolverOptions, unbalanced_sinkhorn
from uotlib.backends import choose


def sweep_call(cost: Tensor, a: Tensor, b: Tensor, reg: float) -> Callable[[], Tensor]:
    """One fused iteration of the native backend and nothing around it."""
    native = choose("native", cost.device, cost.dtype)
    one, eps = torch.ones(1, dtype=torch.float64), torch.full((1,), reg, dtype=torch.float64)
    log_a, log_v = a.double().log()[None], b.double().log()[None]
    return lambda: native.sweep(cost[None], log_v, log_a, one, eps, 0 * one, torch.zeros_like(log_v))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()

    cost, a, b = clustered(arguments.n, dtype=torch.float32)

    def torch_iteration() -> Tensor:
        f = -0.05 * torch.logsumexp(b.log() - cost / 0.05, 1)
        return torch.logsumexp(a.log()[:, None] + (f[:, None] - cost) / 0.05, 0)

    def solve(passes: int) -> Callable[[], object]:
        options = SolverOptions()
        return lambda: unbalanced_sinkhorn(cost, a, b, reg=0.05, reg_m=1.0, tol=0, max_iter=passes, options=options)

    cases: dict[str, tuple[Callable[[], object], int]] = {
        "C.sum()": (cost.sum, 1), "native sweep": (sweep_call(cost, a, b, 0.05), 1),
        "whole solve, per pass": (solve(40), 40), "two torch.logsumexp": (torch_iteration, 1)}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(arguments.repeats):
        for name, (run, count) in cases.items():
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) / count)
    floor = statistics.median(times["C.sum()"])
    print(f"n = m = {arguments.n}, float32, {torch.get_num_threads()} threads, ratios to C.sum()")
    for name, taken in times.items():
        print(f"{name:24s} {statistics.median(taken) / floor:8.2f}   (least {min(taken) / min(times['C.sum()']):.2f})")


if __name__ == "__main__":
    main()
