"""The backend's sweep alone, beside one read of the cost by the simplest kernel, and its exact fallback."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .ceilings import read_call
from .correctness import BOUND, TRITON, draw, sweep_error
from .stage import Row, Stage
from .timing import Call, copies_beyond_l2

SHAPES = ((1, 4096, 4096), (1, 2048, 2048), (1, 1024, 1024), (8, 4096, 4096), (64, 512, 512), (1, 4096, 16384))
REGS = (1e-1, 1e-2, 1e-3, 1e-4)


def measure(stage: Stage) -> None:
    for shape in stage.choose(SHAPES, ((2, 9, 21),)):
        for eps in stage.choose(REGS if shape[0] == 1 else REGS[1:2], (1e-1,)):
            stage.row({"case": "sweep", "shape": list(shape), "eps": eps}, partial(_sweep, stage, shape, eps))
    n = stage.choose(4096, 24)
    for name, flagged in (("none", 0), ("one", 1), ("all", n)):
        stage.row({"case": "fallback", "shape": [1, n, n], "flagged": name}, partial(_fallback, stage, n, flagged))


def _sweep(stage: Stage, shape: tuple[int, int, int], eps: float) -> Row:
    """From memory, from the cache, and over the time of one read: microseconds from a CUDA graph."""
    case = draw(shape, eps, stage.device)
    wrong = sweep_error(case)
    row: Row = {"error": wrong, "bound": BOUND[torch.float32], "correct": wrong <= BOUND[torch.float32]}
    if not row["correct"]:
        return row
    cost = case["cost"]
    costs = [cost, *(cost.clone() for _ in range(copies_beyond_l2(cost.nbytes, stage.hardware["l2_bytes"] or 1) - 1))]
    reads = [read_call(each, stage.hardware["multiprocessors"] or 2) for each in costs]
    calls = _calls(case, costs)
    read, seconds = stage.timer.graph(reads), stage.timer.graph(calls)
    return row | {"seconds": seconds, "cached_s": stage.timer.graph(calls[:1] * stage.choose(10, 1)), "read_s": read,
                  "over_one_read": seconds / read, "of_copy": stage.share_of_copy(cost.nbytes, seconds)}


def _calls(case: dict[str, Tensor], costs: list[Tensor]) -> list[Call]:
    mass = torch.zeros_like(case["log_v"])
    return [lambda cost=cost: TRITON.sweep(**{**case, "cost": cost}, col_mass=mass) for cost in costs]


def _fallback(stage: Stage, n: int, flagged: int) -> Row:
    """What redoing weak columns takes."""
    case = draw((1, n, n), 1e-2, stage.device)
    mask = torch.arange(n, device=stage.device)[None] < flagged
    return {"seconds": stage.timer.graph([lambda: TRITON.col_lse_masked(case["cost"], case["offset"], case["reg"],
                                                                        mask)])}
