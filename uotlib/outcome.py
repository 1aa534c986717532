"""What a solve comes back with: a pair of potentials for every problem of the batch, and how it was reached."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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


def _part(name: str, index: int, kind: torch.dtype | None = None) -> lazy[Tensor]:
    """One of the parts of a stored array, made when it is wanted: a view takes as long as a pass over a small cost."""
    def part(stored: Any) -> Tensor:
        found = getattr(stored, name)[index]
        return found if kind is None else found.to(kind)

    return lazy(part)


class StoredPair(Pair):
    """A pair whose vectors lie in one array: f, log_u, row_lse, (3, B, n), and g, log_v, col_lse, (3, B, m)."""

    f, log_u, row_lse = (_part("_rows", index) for index in range(3))
    g, log_v, col_lse = (_part("_cols", index) for index in range(3))

    def __init__(self, values: Tensor, batch: int, n: int, m: int) -> None:
        self._values, self._shapes = values, ((3, batch, n), (3, batch, m))

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

    Args:
        all_converged: Whether all problems are; None where that is not known without looking.
    """

    violation, gap = _part("_scalars", 0), _part("_scalars", 1)
    n_iter = _part("_scalars", 2, torch.int64)
    converged, at_floor = (_part("_scalars", index, torch.bool) for index in (3, 4))

    def __init__(self, values: Tensor, batch: int, n: int, m: int, all_converged: bool | None = None) -> None:
        self.pair = StoredPair(values, batch, n, m)
        if all_converged is not None:  # else it waits for the device, when it is asked for
            self.all_converged = all_converged
        self._values, self._batch = values, batch

    @lazy
    def _scalars(self) -> Tensor:
        return self._values[len(self._values) - SCALARS * self._batch :].view(SCALARS, self._batch)
