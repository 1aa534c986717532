"""What a whole solve takes beside its sweeps over the cost: everything in the call that is not the kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cpu_sweep import NATIVE, Late

from .bench import Bench
from .case import ORDER, TARGETS, Target, problem
from .measure import alternate
from .methods.ours import NAME, solve
from .record import Row

#: Sweeps of one call, and solves timed at a time: one of either is too short for the clock's surroundings.
TOGETHER = 32


def sweeps(late: Late, count: int) -> Callable[[], Tensor]:
    """So many sweeps of one cost in one call of the backend, each told what to expect: the kernel and nothing else."""
    items = torch.zeros(count, dtype=torch.int64)
    log_v, offset, hint = (vector.expand(count, -1).contiguous() for vector in (late.log_v, late.log_a, late.row))
    one, reg, shift = torch.ones(count, dtype=torch.float64), late.reg, late.log_a.mean()
    mass = torch.zeros_like(log_v)
    return lambda: NATIVE.sweep(late.cost, log_v, offset, one, reg * one, shift * one, mass, items, row_hint=hint)


def overhead(bench: Bench, n: int, target: Target = TARGETS[1]) -> Row:
    """A whole solve, argument checks included, over as many native sweeps as it has passes, both on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        drawn = problem(n, ORDER, target.reg, target.reg_m)
        passes = int(solve(drawn, target.violation).n_iter)
        together = TOGETHER if bench.measuring else 1
        sweep = sweeps(Late(drawn.cost, drawn.a, drawn.b, target.reg), together)

        def solves() -> None:
            for _ in range(together):
                solve(drawn, target.violation)

        def kernels() -> None:
            for _ in range(passes):
                sweep()

        times = alternate({"solves": solves, "sweeps": kernels}, bench.repeats)
    finally:
        torch.set_num_threads(threads)
    return bench.recorder.add(Row(
        "overhead", n, NAME, eps=target.reg, tau=target.reg_m, target=target.violation, setting="auto",
        seconds=times["solves"].median / together, of_floor=times["solves"].median / times["sweeps"].median,
        iterations=passes, note="a whole solve over its sweeps alone"))
