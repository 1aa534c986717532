r"""Costs of features that are read without being made: what a backend has to offer for that, and the host's part.

With :math:`C_{ij} = \alpha_i + \beta_j + \langle x_i, z_j\rangle`, the vectors :math:`\alpha` and :math:`\beta` go
into the log-scalings, in float64, and the exponents are those of inner products.  Sums along the columns are those
along the rows of the transposed cost.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .base import near_one


@dataclass(frozen=True)
class Weighed:
    r"""Sums along the rows of :math:`W_{ij} = e^{x_i + y_j - C_{ij}/\varepsilon} \sum_k L_{ik} R_{jk}`.

    Args:
        row_sum: :math:`\sum_j W_{ij}`, (A, n), float64.
        cost_sum: :math:`\sum_j W_{ij} C_{ij}`, (A, n), float64, where it was asked for.
        product: :math:`W F`, (A, n, e), in the solver's type, where there was an F.
    """

    row_sum: Tensor
    cost_sum: Tensor | None
    product: Tensor | None


@dataclass(frozen=True)
class Features(ABC):
    r"""A batch of such costs.

    Args:
        x: (B', n, d), contiguous.
        z: (B', m, d), contiguous; a factor of the inner products is in it.
        alpha, beta: (B', n) and (B', m), float64, contiguous.
        dtype: The solver's type, in which everything but the inner products is computed.
        precision: Of the inner products, `uotlib.precision`.
    """

    x: Tensor
    z: Tensor
    alpha: Tensor
    beta: Tensor
    dtype: torch.dtype
    precision: str

    @classmethod
    def of(cls, prepared: tuple[Tensor, ...], depth: int, dtype: torch.dtype, precision: str, *own: Any) -> Self:
        r"""From :math:`(x_i, \alpha_i, 1)` and :math:`(z_j, 1, \beta_j)`, padded by zeros to ``depth`` features.

        Args:
            own: Fields of a backend.
        """
        left, right = prepared
        d = left.shape[2] - 2
        kind = torch.float64 if precision == "float64" else torch.float32
        x, z = (torch.nn.functional.pad(part[..., :d].to(kind), (0, depth - d)).contiguous() for part in (left, right))
        alpha, beta = (part.double().contiguous() for part in (left[..., d], right[..., d + 1]))
        return cls(x, z, alpha, beta, dtype, precision, *own)

    def transposed(self) -> Self:
        """The costs with rows and columns in each other's place."""
        return replace(self, x=self.z, z=self.x, alpha=self.beta, beta=self.alpha)

    def lse(self, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        r""":math:`\log\sum_j e^{\log v_j - C_{ij}/\varepsilon}`, (A, n), with a running maximum: never underflows."""
        alpha, beta = self._offsets(reg, items)
        return self._lse(log_v - beta, reg, items) - alpha

    def weigh(self, log_x: Tensor, log_y: Tensor, reg: Tensor, left: Tensor | None = None,
              right: Tensor | None = None, items: Tensor | None = None, *, factor: Tensor | None = None,
              cost: bool = False) -> Weighed:
        r"""Sums along the rows, and products, of W.

        Args:
            left, right: L, (A, n, k), and R, (A, m, k); None for W without them.  No entry above 1.
            factor: F, (A, m, e).
            cost: Whether ``cost_sum`` is wanted.
        """
        alpha, beta = self._offsets(reg, items)
        log_x, log_y = log_x - alpha, log_y - beta
        if left is None or left.shape[2] != 1:
            return self._weigh(log_x, log_y, reg, left, right, items, factor, cost)
        found = self._weigh(log_x, log_y, reg, None, right, items, factor, cost)
        outer = left.double()  # a factor of each row, and so of its sums
        return Weighed(found.row_sum * outer[:, :, 0],
                       None if found.cost_sum is None else found.cost_sum * outer[:, :, 0],
                       None if found.product is None else found.product * outer.to(found.product.dtype))

    def times(self, log_x: Tensor, log_y: Tensor, reg: Tensor, vector: Tensor, items: Tensor | None) -> Tensor:
        r""":math:`e^{x_i + y_j - C_{ij}/\varepsilon}` times a vector (A, m) of numbers of any size, (A, n), float64."""
        largest = vector.abs().amax(1, keepdim=True)
        largest = torch.where(largest > 0, largest, 1.0)
        return self.weigh(log_x, log_y, reg, None, (vector / largest)[:, :, None], items).row_sum * largest

    def schur(self, log_x: Tensor, log_y: Tensor, row_diagonal: Tensor, vector: Tensor, reg: Tensor,
              items: Tensor | None) -> Tensor:
        """What `Backend.schur` adds to its total, in a pass over the rows and one over the columns."""
        through = self.times(log_x, log_y, reg, vector, items) / row_diagonal
        return self.transposed().times(log_y, log_x, reg, through, items)

    def eliminate(self, log_x: Tensor, log_y: Tensor, root_r: Tensor, root_c: Tensor, row_side: Tensor,
                  row_ratio: Tensor, reg: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """The result of `Backend.eliminate`, and what it adds to its sums."""
        diagonal = near_one(self.times(log_x, log_y, reg, root_c, items), root_r) * row_ratio[:, None]
        columns = self.transposed()
        sums = [columns.times(log_y, log_x, reg, root_r, items),
                columns.times(log_y, log_x, reg, row_side / diagonal, items),
                columns.times(2 * log_y, 2 * log_x, reg / 2, 1 / diagonal, items)]  # squares of the entries
        return diagonal, torch.stack(sums, 1)

    def _offsets(self, reg: Tensor, items: Tensor | None) -> tuple[Tensor, Tensor]:
        """alpha / eps and beta / eps of these problems."""
        alpha, beta = (part if items is None else part.index_select(0, items) for part in (self.alpha, self.beta))
        return alpha / reg[:, None], beta / reg[:, None]

    @abstractmethod
    def _lse(self, log_v: Tensor, reg: Tensor, items: Tensor | None) -> Tensor:
        """`lse` of the inner products."""

    @abstractmethod
    def _weigh(self, log_x: Tensor, log_y: Tensor, reg: Tensor, left: Tensor | None, right: Tensor | None,
               items: Tensor | None, factor: Tensor | None, cost: bool) -> Weighed:
        """`weigh` with the inner products in place of C in the exponent.  Without L, R is (A, m, 1) or None."""
