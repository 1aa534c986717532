"""What an operator has to know that is no tensor, as one string: operators of PyTorch take tensors and plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .backends import BACKENDS
from .costs import cost_of_kind
from .divergences import KLPenalty
from .operators import GibbsKernel
from .options import NUMBERS, SolverOptions
from .problem import Problem, Side


@dataclass(eq=False)
class Settings:
    """How a problem was posed and how what reads its cost is run.

    Args:
        cost: Key of the kind of cost (`Cost.key`).
        reg_type: "kl" or "entropy".
        dtype: The solver's type.
        backend: Name of a backend.
        block_bytes, adjoint_tol, adjoint_max_iter, storage: As in `SolverOptions`.
        precision: Of products of float32 features, where the backend streams them.
    """

    cost: str
    reg_type: str
    dtype: torch.dtype
    backend: str
    block_bytes: int
    adjoint_tol: float
    adjoint_max_iter: int
    storage: str | None = None
    precision: str = "float32"

    @property
    def kept(self) -> torch.dtype:
        """Type of a cost that is in memory."""
        return self.dtype if self.storage is None else getattr(torch, self.storage)

    def encode(self) -> str:
        kind = "float64" if self.dtype == torch.float64 else "float32"
        return (f"{self.cost}|{self.reg_type}|{kind}|{self.backend}|{self.block_bytes}|{self.adjoint_tol}|"
                f"{self.adjoint_max_iter}|{self.storage}|{self.precision}")

    @staticmethod
    def decode(text: str) -> Settings:
        cost, reg_type, kind, backend, block_bytes, adjoint_tol, adjoint_max_iter, storage, precision = text.split("|")
        return Settings(cost, reg_type, getattr(torch, kind), backend, int(block_bytes), float(adjoint_tol),
                        int(adjoint_max_iter), None if storage == "None" else storage, precision)


def flat_problem(settings: Settings, a: Tensor, b: Tensor, reg: Tensor, tau_a: Tensor, tau_b: Tensor,
                 items: Tensor | None) -> Problem:
    """The problem of checked tensors with one flat batch dimension, float64."""
    by_mass = settings.reg_type == "kl"
    return Problem(
        cost=cost_of_kind(settings.cost), cost_items=items, rows=Side(a, by_mass, KLPenalty(tau_a)),
        cols=Side(b, by_mass, KLPenalty(tau_b)), reg=reg, smallest_reg=math.nan, reg_type=settings.reg_type,
        batch_shape=torch.Size((len(a),)), dtype=settings.dtype, device=a.device, inputs=(a, b, reg, tau_a, tau_b),
        named=())


def kernel_of(problem: Problem, prepared: tuple[Tensor, ...], matrix: Tensor | None, how: Settings) -> GibbsKernel:
    """What reads the cost of this problem."""
    size = problem.batch, problem.rows.mass.shape[1], problem.cols.mass.shape[1]
    cost = problem.cost
    whole = prepared[0] if matrix is None and cost.dense else matrix
    return GibbsKernel(cost, prepared, whole, problem.cost_items, size, how.dtype,
                       BACKENDS[how.backend], how.block_bytes, how.precision)


@dataclass(frozen=True)
class Run:
    """How a problem is solved: the arguments of `uotlib.solver.solve` that are neither tensors nor ``max_iter``."""

    method: str
    tol: float | None
    options: SolverOptions

    def encode(self) -> str:
        numbers = "|".join([f"{name}={getattr(self.options, name)}" for name in NUMBERS])
        return f"{self.method}|{self.tol}|{numbers}"

    @staticmethod
    def decode(text: str) -> Run:
        method, tol, *numbers = text.split("|")
        pairs = [number.split("=") for number in numbers]
        values: dict[str, Any] = {
            name: None if value == "None" else int(value) if NUMBERS[name][0] is Integral else float(value)
            for name, value in pairs}
        options = SolverOptions(**values)
        return Run(method, None if tol == "None" else float(tol), options)
