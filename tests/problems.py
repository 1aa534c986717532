"""Problems that the tests are about: seeded, float64, deliberately not square and not uniform."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import uotlib
from uotlib.reference import ReferenceSolution, reference_sinkhorn

INF = math.inf
#: Every kind of pair of penalties: equal, unequal, one exact, both exact.
PENALTIES = [(0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF), (INF, INF)]
CONVENTIONS = ["kl", "entropy"]
KINDS = ["random", "clustered"]


@dataclass(frozen=True)
class Case:
    """Arguments of one call, with and without a batch."""

    cost: Tensor
    a: Tensor
    b: Tensor
    reg: float
    reg_m: tuple[float, float]
    reg_type: str = "kl"

    def solve(self, **settings: Any) -> uotlib.Solution:
        """By the library; ``settings`` override the problem's own arguments too."""
        arguments = {"reg": self.reg, "reg_m": self.reg_m, "reg_type": self.reg_type} | settings
        return uotlib.unbalanced_sinkhorn(self.cost, self.a, self.b, **arguments)

    def reference(self, n_iter: int) -> ReferenceSolution:
        return reference_sinkhorn(*self.definition, n_iter=n_iter)

    @property
    def definition(self) -> tuple[Tensor, Tensor, Tensor, float, tuple[float, float], str]:
        """In the order in which `uotlib.reference` takes it."""
        return self.cost, self.a, self.b, self.reg, self.reg_m, self.reg_type

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)

    def item(self, *index: int) -> Case:
        return self.but(cost=self.cost[index], a=self.a[index], b=self.b[index])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masses(shape: tuple[int, ...], rng: torch.Generator, total: float | None = None) -> Tensor:
    """Positive masses that vary by a factor of five, with this total if one is given."""
    mass = 0.2 + torch.rand(shape, generator=rng, dtype=torch.float64)
    return mass if total is None else mass * (total / mass.sum(-1, keepdim=True))


def unit_vectors(shape: tuple[int, ...], rng: torch.Generator, centres: Tensor | None = None) -> Tensor:
    """Directions, around the given centres (k, d) if there are any."""
    x = torch.randn(shape, generator=rng, dtype=torch.float64)
    if centres is not None:
        member = torch.randint(len(centres), shape[:-1], generator=rng)
        x = centres[member] + 0.05 * x
    return torch.nn.functional.normalize(x, dim=-1)


def cost_matrix(kind: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Costs in [0, 1] without structure, or cosine distances in [0, 2] between clustered directions."""
    if kind == "random":
        return torch.rand(shape, generator=rng, dtype=torch.float64)
    *batch, n, m = shape
    centres = torch.nn.functional.normalize(torch.randn(4, 8, generator=rng, dtype=torch.float64), dim=-1)
    x, z = (unit_vectors((*batch, points, 8), rng, centres) for points in (n, m))
    return (1 - x @ z.mT).clamp(0, 2)


def draw(n: int = 13, m: int = 17, *, seed: int = 0, kind: str = "random", batch: tuple[int, ...] = (),
         reg: float = 0.1, reg_m: float | tuple[float, float] = (0.5, 0.5), reg_type: str = "kl") -> Case:
    """A problem with unequal totals, or equal ones where both marginals are exact."""
    rng = generator(seed)
    reg_m = reg_m if isinstance(reg_m, tuple) else (reg_m, reg_m)
    both_exact = math.isinf(reg_m[0]) and math.isinf(reg_m[1])
    return Case(cost=cost_matrix(kind, (*batch, n, m), rng), a=masses((*batch, n), rng, total=1.0),
                b=masses((*batch, m), rng, total=1.0 if both_exact else 1.7), reg=reg, reg_m=reg_m, reg_type=reg_type)


def with_outliers(n: int, *, seed: int = 0, share: float = 0.25, distance: float = 1.0) -> Tensor:
    """Cosine distances of clustered directions; a share of rows and of columns is farther from everything."""
    rng = generator(seed)
    cost = cost_matrix("clustered", (n, n), rng)
    count = int(share * n)
    cost[torch.randperm(n, generator=rng)[:count]] += distance
    cost[:, torch.randperm(n, generator=rng)[:count]] += distance
    return cost


def dirac_mass(c: float, a: float, b: float, reg: float, reg_m: tuple[float, float], reg_type: str) -> float:
    r"""The plan of a 1 x 1 problem, from :math:`c + \tau_a\log(t/a) + \tau_b\log(t/b) + \varepsilon\log(t/w) = 0`.

    w is ab ("kl") or 1 ("entropy").  An exact marginal fixes t.
    """
    tau_a, tau_b = reg_m
    if math.isinf(tau_a):
        return a
    if math.isinf(tau_b):
        return b
    weight = math.log(a * b) if reg_type == "kl" else 0.0
    return math.exp((tau_a * math.log(a) + tau_b * math.log(b) + reg * weight - c) / (tau_a + tau_b + reg))
