"""What is differentiated on a GPU: a barycentric loss, in a cost or in features, by the library and by its peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.cpu.gradients.unrolled import COMMON
from benchmarks.cpu.methods.base import need
from benchmarks.cpu.methods.logsumexp import Pair, half_steps
from benchmarks.cpu.methods.ours import MARGIN
from uotlib import ConvergenceWarning, CosineCost, SolverOptions, unbalanced_sinkhorn

from . import problems
from .peers import compiled_by
from .stage import Stage

#: Violation of the library's solution and residual of its backward; those of the truth.
VIOLATION, EXACT = 1e-4, 1e-9
#: Memory of a block of the truth.
BLOCK_BYTES = 1 << 30


@dataclass(frozen=True)
class Task(problems.Featured):
    """sum |z carried over to x|^2, the carried being (T z) / (T 1), for the cosine cost of x and z.

    Args:
        to: "C" for the gradient to the dense cost, "x" for that to features.
        streamed: Features only: the library is told not to build the cost.
    """

    to: str
    streamed: bool = False

    def double(self) -> Task:
        return replace(self, **{name: getattr(self, name).double() for name in ("x", "z", "a", "b")}, streamed=False)

    def leaf(self) -> Tensor:
        """What the gradient is to, fresh; the cost as float32 has it."""
        given = self.x if self.to == "x" else (1 - self.x.float() @ self.z.float().T).to(self.x.dtype)
        return given.detach().clone().requires_grad_()


#: The loss of a leaf.
Loss = Callable[[Tensor], Tensor]


def draw(to: str, n: int, d: int, reg: float, device: torch.device, streamed: bool = False) -> Task:
    x, z, a, b = (part[0] for part in problems.clustered_features(1, n, d, device))
    return Task(x, z, a, b, reg, 1.0, to, streamed)


def ours(task: Task, backend: str = "triton", violation: float = VIOLATION) -> Loss:
    """A whole call."""
    options = SolverOptions(adjoint_tol=violation, **({"block_bytes": BLOCK_BYTES} if backend == "reference" else {}))

    def loss(leaf: Tensor) -> Tensor:
        cost = leaf if task.to == "C" else CosineCost(leaf, task.z, materialize=not task.streamed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the gradient is judged
            solution = unbalanced_sinkhorn(cost, task.a, task.b, reg=task.reg, reg_m=task.reg_m,
                                           tol=MARGIN * violation, max_iter=3000, backend=backend, options=options)
            return solution.barycentric(task.z).square().sum()
    return loss


def truth(task: Task) -> Tensor:
    """The gradient of the solution to 1e-9 in float64, by the library's reference backend, which is plain torch."""
    exact = task.double()
    return gradient(exact, ours(exact, "reference", EXACT))


def gradient(task: Task, loss: Loss) -> Tensor:
    leaf = task.leaf()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def _carried(plan: Tensor, z: Tensor) -> Tensor:
    return ((plan @ z) / plan.sum(1, keepdim=True)).square().sum()


def _cost(task: Task, leaf: Tensor) -> Tensor:
    """As anyone writes it; lengths are part of it."""
    return leaf if task.to == "C" else 1 - normalize(leaf, dim=1) @ normalize(task.z, dim=1).T


def unrolled(stage: Stage, compiled: bool) -> Callable[[Task], Loss]:
    """Autograd through `COMMON` iterations of two log-sum-exps."""
    def prepare(task: Task) -> Loss:
        iteration: Callable[..., Pair] = half_steps
        if compiled:
            iteration = compiled_by(stage, half_steps)
        reg, step = (torch.full((), value, device=task.x.device)
                     for value in (task.reg, task.reg_m * task.reg / (task.reg_m + task.reg)))
        log_a, log_b = task.a.log(), task.b.log()

        def loss(leaf: Tensor) -> Tensor:
            cost = _cost(task, leaf)
            f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
            for _ in range(stage.choose(COMMON, 3)):
                f, g = iteration(cost, log_a, log_b, f, g, reg, step)
            return _carried(torch.exp((f[:, None] + g - cost) / reg + log_a[:, None] + log_b), task.z)
        return loss
    return prepare


def geomloss(stage: Stage) -> Callable[[Task], Loss]:
    """``ot.solve`` and its plan: autograd sees its last step alone."""
    def prepare(task: Task) -> Loss:
        need("geomloss", "geomloss")
        from geomloss import ot

        def loss(leaf: Tensor) -> Tensor:
            solution = ot.solve(_cost(task, leaf), a=task.a, b=task.b, reg=task.reg, unbalanced=task.reg_m,
                                max_iter=stage.choose(COMMON, 3))
            return _carried(solution.plan, task.z)
        return loss
    return prepare
