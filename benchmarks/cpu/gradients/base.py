"""What is differentiated, and what a method that differentiates is to the suite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import clustered_features

from ..case import ORDER, Problem, Target

#: A loss and what its gradient is to.  "plan": sum (T v)^2 with v = n z; "barycentric": the same of diag(1 / T 1) T z,
#: values carried over as averages; "value" is the objective alone.
LOSSES = ("plan to C", "plan to x", "value to C", "barycentric to C")


@dataclass(frozen=True)
class Task:
    """A loss on a problem of unit vectors, in float32: every method gets these very numbers.

    Args:
        loss: Of `LOSSES`.
        problem: Its cost is 1 - x z'.
        x, z: Unit vectors (n, d) and (m, d).
    """

    loss: str
    problem: Problem
    x: Tensor
    z: Tensor

    def but(self, loss: str | None = None, **changes: object) -> Task:
        return replace(self, loss=loss or self.loss, problem=self.problem.but(**changes))

    @property
    def v(self) -> Tensor:
        """n z, or z for averages: the product has entries of the order of one, and so has what tolerances meet."""
        return self.z if self.of_averages else len(self.x) * self.z

    @property
    def of_plan(self) -> bool:
        return not self.loss.startswith("value")

    @property
    def of_averages(self) -> bool:
        return self.loss.startswith("barycentric")

    def loss_of(self, plan: Any, v: Any) -> Any:
        """The loss of a plan, where it is one of the plan; arrays of any kind."""
        carried = plan @ v
        if self.of_averages:
            carried = carried / plan.sum(1)[:, None]
        return (carried * carried).sum()

    @property
    def to_features(self) -> bool:
        return self.loss.endswith("x")


@dataclass(frozen=True)
class Pass:
    """A method set on a task.

    Args:
        forward: The loss after this many iterations, with whatever its backward needs.
        backward: The gradient from what ``forward`` returned.
        tensor: That gradient for the judge, untimed.
    """

    forward: Callable[[int], Any]
    backward: Callable[[Any], Any]
    tensor: Callable[[Any], Tensor] = torch.Tensor.double


@dataclass(frozen=True)
class Differentiable:
    """A peer that gives gradients.

    Args:
        name, setting, convention, package: As in `methods.Method`.
        prepare: Sets it on a task for this many iterations.
        iterations: How many it needs at n points a side to the target's violation, or how many it is given.
        affine: Whether its time and memory are affine in the iterations, so that a few tell what many take.
    """

    name: str
    setting: str
    prepare: Callable[[Task, int], Pass]
    iterations: Callable[[int, Target], int]
    convention: str = "kl"
    package: str = "torch"
    affine: bool = True

    @property
    def label(self) -> str:
        return f"{self.name} ({self.setting})"


@lru_cache(maxsize=2)
def _drawn(n: int, order: str) -> tuple[Tensor, ...]:
    x, z, a, b = clustered_features(n, order=order)
    return x.float(), z.float(), a.float(), b.float(), cosine(x, z).float()


def draw_task(loss: str, n: int, target: Target, order: str = ORDER) -> Task:
    """The task at n points a side."""
    x, z, a, b, cost = _drawn(n, order)
    return Task(loss, Problem(cost, a, b, target.reg, target.reg_m), x, z)


def cosine(x: Tensor, z: Tensor) -> Tensor:
    """The cost as anyone writes it in torch; lengths are part of it, and of the gradient to x."""
    unit = torch.nn.functional.normalize
    return 1 - unit(x, dim=-1) @ unit(z, dim=-1).T


def torch_pass(task: Task, dtype: torch.dtype, loss: Callable[[Tensor, int], Tensor],
               cost: Callable[[Tensor, Tensor], Any] = cosine) -> Pass:
    """A loss in torch, of the cost and a number of iterations; autograd does the rest."""
    given, z = (task.x if task.to_features else task.problem.cost).to(dtype), task.z.to(dtype)

    def forward(iterations: int) -> tuple[Tensor, Tensor]:
        leaf = given.detach().requires_grad_()
        with torch.enable_grad():
            return loss(cost(leaf, z) if task.to_features else leaf, iterations), leaf

    return Pass(forward, lambda made: torch.autograd.grad(*made)[0])
