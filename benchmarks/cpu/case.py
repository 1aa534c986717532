"""What is solved: one problem in the terms of every method, and the list of the cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.problems import draw


@dataclass(frozen=True)
class Target:
    """A regularisation, a penalty and the violation to reach."""

    reg: float
    reg_m: float
    violation: float

    def __str__(self) -> str:
        return f"eps {self.reg:g}, tau {self.reg_m:g}, to {self.violation:g}"


#: From easy to hard; the last three are those that the project has targets for.
TARGETS = (Target(1e-1, 1.0, 1e-4), Target(1e-2, 1.0, 1e-4), Target(1e-3, 0.1, 1e-3), Target(1e-4, 0.1, 1e-3))
#: Harder than any peer gets to: the library alone.
BEYOND = Target(1e-4, 1.0, 1e-3)
#: The order in which methods are compared: as drawn, which favours none.  The library is timed in the others too.
ORDER = "shuffled"
#: (eps, tau) at which an iteration is timed: a dense plan, and one that is empty but for a few entries a row.
ITERATION_REGS = ((0.05, 1.0), (1e-3, 0.1))
#: (problems, points a side) of the batches, and what they are solved to.
BATCHES = ((64, 512), (256, 128), (4096, 32))
BATCH_TARGET = Target(1e-2, 1.0, 1e-4)


@dataclass(frozen=True)
class Problem:
    """A problem in float32, with or without a batch: every method gets these very numbers."""

    cost: Tensor
    a: Tensor
    b: Tensor
    reg: float
    reg_m: float
    reg_type: str = "kl"

    def but(self, **changes: object) -> Problem:
        return replace(self, **changes)  # type: ignore[arg-type]

    def item(self, index: int) -> Problem:
        return self.but(cost=self.cost[index], a=self.a[index], b=self.b[index])

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return self.cost.to(dtype), self.a.to(dtype), self.b.to(dtype)


@lru_cache(maxsize=2)
def _drawn(order: str, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return draw(order, n, seed=seed, dtype=torch.float32)


def problem(n: int, order: str, reg: float, reg_m: float, seed: int = 0) -> Problem:
    """n points a side in this order."""
    return Problem(*_drawn(order, n, seed), reg=reg, reg_m=reg_m)


@lru_cache(maxsize=1)
def batch_problem(count: int, n: int, target: Target) -> Problem:
    """``count`` problems, each drawn with a seed of its own."""
    drawn = [draw(ORDER, n, seed=item, dtype=torch.float32) for item in range(count)]
    cost, a, b = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    return Problem(cost, a, b, target.reg, target.reg_m)
