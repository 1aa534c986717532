r"""Anderson acceleration of a batch of fixed-point iterations, each item with its own history.

Source: Walker and Ni 2011, *Anderson acceleration for fixed-point iterations*, in the difference form (their Eq. 2.2),
solved through the normal equations, which float64 and a handful of columns allow.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Added to the unit diagonal of the scaled normal equations.
RIDGE = 1e-10


class Anderson:
    """History of ``depth`` differences for A items of size m; nothing here waits for the device.

    Args:
        depth: Differences kept; 0 makes `extrapolate` return the plain step.
        items, size: A and m.
        device: Where the history lives.
    """

    def __init__(self, depth: int, items: int, size: int, device: torch.device) -> None:
        self.depth, self.slot = depth, 0
        self.points = torch.zeros(items, depth, size, dtype=torch.float64, device=device)
        self.residuals = torch.zeros_like(self.points)
        self.valid = torch.zeros(items, depth, dtype=torch.bool, device=device)
        self.last: tuple[Tensor, Tensor] | None = None
        self.fresh = torch.ones(items, dtype=torch.bool, device=device)

    def extrapolate(self, point: Tensor, image: Tensor, weight: Tensor) -> Tensor:
        r"""The point to go on from, given that the iteration maps ``point`` to ``image``.

        Minimises :math:`|\sqrt{w}\,(r - \Delta R\,\gamma)|` over gamma and returns
        :math:`\mathtt{image} - (\Delta X + \Delta R)\gamma`, for residuals r = image - point.

        Args:
            point, image, weight: (A, m).
        """
        if not self.depth:
            return image
        residual = image - point
        if self.last is not None:
            self.points[:, self.slot] = point - self.last[0]
            self.residuals[:, self.slot] = residual - self.last[1]
            self.valid[:, self.slot] = ~self.fresh
            self.slot = (self.slot + 1) % self.depth
        self.last = (point, residual)
        self.fresh = torch.zeros_like(self.fresh)
        return image - torch.einsum("akm,ak->am", self.points + self.residuals, self._coefficients(residual, weight))

    def _coefficients(self, residual: Tensor, weight: Tensor) -> Tensor:
        scaled = self.residuals * weight.sqrt()[:, None] * self.valid[:, :, None]
        length = scaled.square().sum(-1).sqrt()
        usable = length > 0
        scaled = scaled / torch.where(usable, length, 1.0)[:, :, None]
        identity = torch.eye(self.depth, dtype=torch.float64, device=residual.device)
        gram = scaled @ scaled.mT + (RIDGE + (~usable).double())[:, :, None] * identity
        right = torch.einsum("akm,am->ak", scaled, residual * weight.sqrt())
        solution, _ = torch.linalg.solve_ex(gram, right)
        return torch.where(usable, solution / torch.where(usable, length, 1.0), 0.0)

    def restart(self, where: Tensor) -> None:
        """Forget the history of the items where the mask (A,) holds."""
        self.valid = self.valid & ~where[:, None]
        self.fresh = self.fresh | where

    def select(self, kept: Tensor) -> None:
        """Go on with these items only."""
        self.points, self.residuals = self.points[kept], self.residuals[kept]
        self.valid, self.fresh = self.valid[kept], self.fresh[kept]
        if self.last is not None:
            self.last = (self.last[0][kept], self.last[1][kept])
