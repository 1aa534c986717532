"""The library's gradients: to the benchmark's tolerance, and the truth that every gradient is compared with."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from uotlib import ConvergenceWarning, CosineCost, SolverOptions, unbalanced_sinkhorn

from ..methods.ours import MARGIN
from .base import Pass, Task, torch_pass

#: Violation of the truth, and residual of its backward: far below what any method is asked for.
EXACT = 1e-8


def our_pass(task: Task, violation: float, adjoint_tol: float | None = None,
             dtype: torch.dtype = torch.float32) -> Pass:
    """A whole call and its backward, to this violation and, unless told otherwise, this residual of the adjoint."""
    problem, v = task.problem, task.v.to(dtype)
    a, b = problem.a.to(dtype), problem.b.to(dtype)
    options = SolverOptions(adjoint_tol=violation if adjoint_tol is None else adjoint_tol)

    def loss(cost: Tensor | CosineCost, _: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the judge says what it is worth
            solution = unbalanced_sinkhorn(cost, a, b, reg=problem.reg, reg_m=problem.reg_m,
                                           reg_type=problem.reg_type, tol=MARGIN * violation, max_iter=5000,
                                           grad="implicit" if task.of_plan else "envelope", backend="native",
                                           options=options)
            if not task.of_plan:
                return solution.value
            return (solution.barycentric if task.of_averages else solution.apply)(v).square().sum()

    return torch_pass(task, dtype, loss, CosineCost)


def true_gradient(task: Task) -> Tensor:
    """In float64, of a solution to 1e-8: that it is the gradient is for the tests, beside the reference."""
    exact = our_pass(task, EXACT, EXACT, torch.float64)
    return exact.backward(exact.forward(0))


def gradient_error(gradient: Tensor, true: Tensor) -> float:
    """Frobenius norm of what is off, over that of the truth."""
    return float((gradient.double() - true).norm() / true.norm())
