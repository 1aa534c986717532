"""What a whole solve takes beside its sweeps over the cost: everything in the loop that is not the kernel."""

from __future__ import annotations

from benchmarks.cpu_sweep import sweep_call

from .bench import Bench
from .case import TARGETS, Target, problem
from .measure import alternate
from .methods.ours import NAME, solve
from .record import Row

#: Sweeps and solves timed at a time: one of either is too short for the clock's surroundings.
TOGETHER = 20


def overhead(bench: Bench, n: int, target: Target = TARGETS[1]) -> Row:
    """A whole solve over as many native sweeps as it has passes."""
    drawn = problem(n, "clustered", target.reg, target.reg_m)
    passes = int(solve(drawn, target.violation).n_iter)
    sweep = sweep_call(drawn.cost, drawn.a, drawn.b, target.reg)
    together = TOGETHER if bench.measuring else 1

    def solves() -> None:
        for _ in range(together):
            solve(drawn, target.violation)

    def sweeps() -> None:
        for _ in range(together * passes):
            sweep()

    times = alternate({"solves": solves, "sweeps": sweeps}, bench.repeats)
    return bench.recorder.add(Row(
        "overhead", n, NAME, eps=target.reg, tau=target.reg_m, target=target.violation, setting="auto",
        seconds=times["solves"].median / together, of_floor=times["solves"].median / times["sweeps"].median,
        iterations=passes, note="a whole solve over its sweeps alone"))
