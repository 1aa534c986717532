"""Forward and backward: times and peaks of memory of the library's gradients and its peers', each judged."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from benchmarks.cpu.backward import WRONG
from benchmarks.cpu.gradients.unrolled import COMMON

from . import gradients
from .gradients import Loss, Task
from .stage import Row, Stage

#: (gradient to, n, d, whether the library streams the cost), most worth first.
CASES = (("x", 4096, 64, False), ("C", 4096, 64, False), ("x", 16384, 128, True), ("x", 4096, 128, True),
         ("C", 1024, 64, False), ("x", 16384, 128, False))
TINY = (("x", 12, 3, True), ("C", 12, 3, False))
#: Where peers are run: what they store does not fit further up.
PEERS_TO = 4096
REG = 1e-2
REPEATS = 5


def measure(stage: Stage) -> None:
    cases = stage.choose(CASES, TINY)
    for case in cases:
        stage.row(_key("uotlib", case), partial(_row, stage, case, gradients.ours))
    peers: dict[str, Callable[[Task], Loss]] = {
        f"torch, autograd through {COMMON} iterations": gradients.unrolled(stage, False),
        f"torch.compile, autograd through {COMMON} iterations": gradients.unrolled(stage, True),
        f"GeomLoss, {COMMON} iterations": gradients.geomloss(stage),
    }
    for case in cases:
        if case[1] > PEERS_TO or (case[3] and not stage.rehearsing):
            continue
        for name, prepare in peers.items():
            stage.row(_key(name, case), partial(_row, stage, case, prepare))


def _key(method: str, case: tuple[str, int, int, bool]) -> Row:
    to, n, d, streamed = case
    return {"method": method, "to": to, "n": n, "d": d, "streamed": streamed}


@lru_cache(maxsize=1)
def _task(device: torch.device, case: tuple[str, int, int, bool], reg: float) -> tuple[Task, Tensor]:
    to, n, d, streamed = case
    task = gradients.draw(to, n, d, reg, device, streamed)
    return task, gradients.truth(task)


def _row(stage: Stage, case: tuple[str, int, int, bool], prepare: Callable[[Task], Loss]) -> Row:
    reg = stage.choose(REG, 0.1)
    task, true = _task(stage.device, case, reg)
    loss = prepare(task)
    found = gradients.gradient(task, loss)
    error = float((found.double() - true).norm() / true.norm())
    row: Row = {"eps": reg, "error": error, "bound": WRONG, "correct": error <= WRONG}
    del found
    if not row["correct"] and prepare is gradients.ours:
        return row
    # A gradient that is wrong takes its time too: a peer's is shown with its error.
    forward, backward = _times(stage, task, loss)
    peak = stage.timer.peak(lambda: gradients.gradient(task, loss))
    return row | {"seconds": forward + backward, "forward_s": forward, "backward_s": backward,
                  "peak_bytes": peak, "cost_bytes": 4 * case[1] ** 2}


def _times(stage: Stage, task: Task, loss: Loss) -> tuple[float, float]:
    """Medians of forward and of backward, which follow one another."""
    leaf, forward, backward = task.leaf(), [], []
    for _ in range(stage.choose(REPEATS, 1)):
        made: list[Tensor] = []
        forward.append(stage.timer.once(lambda made=made: made.append(loss(leaf))))
        backward.append(stage.timer.once(lambda made=made: torch.autograd.grad(made.pop(), leaf)))
    return statistics.median(forward), statistics.median(backward)
