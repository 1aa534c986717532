"""The three methods that are compared, behind one result type."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from uotlib import CosineCost, Solution, cross_masses, unbalanced_sinkhorn

#: Violation at which every solve of the table stops.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Problem:
    """What all methods share.

    Args:
        features: The cost as uotlib takes it, from unit descriptors of left and right cells.
        cost: The same as a matrix, 1 - cosine, (n, n) float32: for the nearest neighbour and for POT.
        a, b: Masses of Eq. 3, (n,).
    """

    features: CosineCost
    cost: Tensor
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Match:
    """One method's answer.

    Args:
        method: "cosine", "OT" or "UOT".
        cell: The right cell that each left cell is matched with, (n,).
        seconds: Wall time.
        reg, reg_m: eps and tau; None where the method has none.
        kept: (T1)_i / a_i, (n,); None for the nearest neighbour.
        solution: uotlib's answer.
    """

    method: str
    cell: np.ndarray
    seconds: float
    reg: float | None = None
    reg_m: float | None = None
    kept: np.ndarray | None = None
    solution: Solution | None = None


def build_problem(x: Tensor, z: Tensor) -> Problem:
    """Cost and masses of left descriptors x and right descriptors z, (n, d) each."""
    x, z = F.normalize(x, dim=-1), F.normalize(z, dim=-1)
    return Problem(CosineCost(x, z), (1 - x @ z.T).clamp(0, 2), *cross_masses(x, z))


def nearest_neighbour(problem: Problem) -> Match:
    """The right cell of the smallest cosine distance, for each left cell by itself."""
    start = time.perf_counter()
    cell = problem.cost.argmin(1).numpy()
    return Match("cosine", cell, time.perf_counter() - start)


def transport(problem: Problem, reg: float, reg_m: float, uniform: bool = False) -> Match:
    """The largest entry of each row of the plan.

    Balanced (``reg_m = inf``) is classical OT: uniform masses, which is also all that it could take, since it asks for
    equal totals and those of Eq. 3 differ.  Unbalanced takes the masses of Eq. 3, unless ``uniform``.
    """
    balanced = math.isinf(reg_m)
    n = len(problem.a)
    a, b = (None, None) if balanced or uniform else (problem.a, problem.b)
    start = time.perf_counter()
    solution = unbalanced_sinkhorn(problem.features, a, b, reg=reg, reg_m=reg_m, tol=TOLERANCE, grad="none")
    seconds = time.perf_counter() - start
    kept = solution.row_mass * n if a is None else solution.row_mass / a
    name = "OT" if balanced else "UOT, a = 1/n" if uniform else "UOT"
    return Match(name, solution.argmax().numpy(), seconds, reg, reg_m, kept.numpy(), solution)
