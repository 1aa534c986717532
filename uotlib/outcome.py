"""What a solve comes back with: a pair of potentials for every problem of the batch, and how it was reached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .tracing import lazy

#: Numbers of a stored problem: violation, gap, iterations, whether converged, whether at the rounding floor.
SCALARS = 5


@dataclass
class Pair:
    """Potentials with the log-sum-exps that belong to them: rows from g, columns from f.  float64, (A, n) or (A, m)."""

    f: Tensor
    g: Tensor
    log_u: Tensor
    log_v: Tensor
    row_lse: Tensor
    col_lse: Tensor

    @lazy
    def row_mass(self) -> Tensor:
        return torch.exp(self.log_u + self.row_lse)

    @lazy
    def col_mass(self) -> Tensor:
        return torch.exp(self.log_v + self.col_lse)


@dataclass
class Outcome:
    """The pair of every problem of the batch, and how it was reached.  Scalars per item, (B,)."""

    pair: Pair
    violation: Tensor
    gap: Tensor
    n_iter: Tensor
    converged: Tensor
    at_floor: Tensor

    @lazy
    def all_converged(self) -> bool:
        return bool(self.converged.all())


class StoredPair(Pair):
    """A pair whose vectors lie in one array: f, log_u, row_lse, (3, B, n), and g, log_v, col_lse, (3, B, m).

    Views are made when they are wanted: six of them take longer than a pass over a small cost.
    """

    def __init__(self, values: Tensor, batch: int, n: int, m: int) -> None:
        self._values, self._shapes = values, ((3, batch, n), (3, batch, m))

    @lazy
    def f(self) -> Tensor:
        return self._rows[0]

    @lazy
    def log_u(self) -> Tensor:
        return self._rows[1]

    @lazy
    def row_lse(self) -> Tensor:
        return self._rows[2]

    @lazy
    def g(self) -> Tensor:
        return self._cols[0]

    @lazy
    def log_v(self) -> Tensor:
        return self._cols[1]

    @lazy
    def col_lse(self) -> Tensor:
        return self._cols[2]

    @lazy
    def _rows(self) -> Tensor:
        return self._values[: math.prod(self._shapes[0])].view(self._shapes[0])

    @lazy
    def _cols(self) -> Tensor:
        first = math.prod(self._shapes[0])
        return self._values[first : first + math.prod(self._shapes[1])].view(self._shapes[1])


class StoredOutcome(Outcome):
    """An outcome in one array: that of a `StoredPair`, then `SCALARS` numbers of each problem, (SCALARS, B), float64.

    As uot::Answers of csrc/cpu/solve.h has it.
    """

    def __init__(self, values: Tensor, batch: int, n: int, m: int, all_converged: bool) -> None:
        self.pair = StoredPair(values, batch, n, m)
        self.all_converged = all_converged
        self._values, self._batch = values, batch

    @lazy
    def violation(self) -> Tensor:
        return self._scalars[0]

    @lazy
    def gap(self) -> Tensor:
        return self._scalars[1]

    @lazy
    def n_iter(self) -> Tensor:
        return self._scalars[2].long()

    @lazy
    def converged(self) -> Tensor:
        return self._scalars[3].bool()

    @lazy
    def at_floor(self) -> Tensor:
        return self._scalars[4].bool()

    @lazy
    def _scalars(self) -> Tensor:
        return self._values[len(self._values) - SCALARS * self._batch :].view(SCALARS, self._batch)
