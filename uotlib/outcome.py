"""What a solve comes back with: a pair of potentials for every problem of the batch, and how it was reached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tracing import lazy


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
