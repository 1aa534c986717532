"""One problem given by features, and how its answers are judged: in float64, on a sample of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uotlib import CosineCost, SqEuclideanCost

from . import problems
from .stage import Row

#: Columns that are judged.
SAMPLED = 256
#: Entries of the cost, in float64, that they are judged by at a time.
BLOCK = 1 << 22
#: Largest error of a potential in units of eps: the product's precision is chosen to err by less than half of it.
BOUND = 0.02


@dataclass(frozen=True)
class FeatureProblem(problems.Featured):
    """Float32 features and masses, as many points on both sides; their cost is of a ``kind``."""

    kind: str

    def cost(self, **how: Any) -> CosineCost | SqEuclideanCost:
        """The library's cost object."""
        return (CosineCost if self.kind == "cosine" else SqEuclideanCost)(self.x, self.z, **how)

    @property
    def step(self) -> float:
        """Factor of a half-step."""
        return self.reg / (1 + self.reg / self.reg_m)

    def exact(self, rows: slice, cols: Tensor) -> Tensor:
        """Entries of the cost in float64, by differences and not by products where it is a distance."""
        x, z = self.x[rows].double(), self.z[cols].double()
        if self.kind == "cosine":
            return 1 - torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(z, dim=1).T
        return torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist").square_()


def draw(kind: str, n: int, d: int, device: torch.device) -> FeatureProblem:
    """Cosines between clustered directions, unbalanced; or flash-sinkhorn's own: normal points, balanced, eps 0.1."""
    if kind == "cosine":
        x, z, a, b = (part[0] for part in problems.clustered_features(1, n, d, device))
        return FeatureProblem(x, z, a, b, reg=1e-2, reg_m=1.0, kind=kind)
    return FeatureProblem(*problems.normal_features(n, d, device), reg=0.1, reg_m=float("inf"), kind=kind)


def judged(problem: FeatureProblem, f: Tensor, g: Tensor) -> Row:
    r"""Error of the last half-step of the textbook, whose g is to be that of f, in units of eps.

    .. math:: \max_j |g_j + \lambda\,\mathrm{LSE}_i[\log a_i + (f_i - C_{ij})/\varepsilon]| / \varepsilon

    over a sample of columns: the relative error in the plan's marginals, and the one figure of precision that methods
    which take the same half-step can be compared by.
    """
    n = len(problem.x)
    cols = torch.linspace(0, n - 1, min(n, SAMPLED), device=f.device).long()
    total = torch.full((len(cols),), -torch.inf, dtype=torch.float64, device=f.device)
    rows = max(1, BLOCK // len(cols))
    log_a = problem.a.double().log()
    for begin in range(0, n, rows):
        part = slice(begin, begin + rows)
        exponent = log_a[part, None] + (f[part, None].double() - problem.exact(part, cols)) / problem.reg
        total = torch.logaddexp(total, exponent.logsumexp(0))
    error = float((g[cols].double() + problem.step * total).abs().nan_to_num(nan=torch.inf).max()) / problem.reg
    return {"error": error, "bound": BOUND, "correct": error <= BOUND}


def flop(problem: FeatureProblem) -> int:
    """Of the two products of an iteration that stores nothing: one for the rows, one for the columns."""
    n, d = problem.x.shape
    return 4 * n * len(problem.z) * d
