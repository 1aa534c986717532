"""Two clouds that show the same classes in different coordinates, with a share of outliers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Classes, size of what a class looks like, and of the points that are seen.
CLASSES, LATENT, SEEN = 14, 16, 32
#: Standard deviation of a point around its class, in units of the spread of classes.
NOISE = 0.25


@dataclass(frozen=True)
class Clouds:
    """Points of the two sides and their classes; -1 for an outlier.

    Args:
        x, z: Points, (points, SEEN).
        x_class, z_class: Classes, (points,), int64.
    """

    x: Tensor
    z: Tensor
    x_class: Tensor
    z_class: Tensor

    @property
    def right(self) -> Tensor:
        """Pairs of one class, (points, points)."""
        return (self.x_class[:, None] == self.z_class[None, :]) & (self.x_class[:, None] >= 0)


class World:
    """Classes and the two random linear maps through which the sides see them.

    Before anything is learned the two sides have nothing in common: a point is no closer to its own class of the other
    side than to any other.

    Args:
        seed: Of the world and of every cloud drawn from it.
        outliers: Share of points on each side that belong to no class.
    """

    def __init__(self, seed: int, outliers: float) -> None:
        self.outliers = outliers
        self._rng = torch.Generator().manual_seed(seed)
        self.centres = self._normal(CLASSES, LATENT)
        self.views = [self._normal(LATENT, SEEN) / LATENT**0.5 for _ in range(2)]

    def draw(self, points: int) -> Clouds:
        """Fresh clouds of ``points`` a side."""
        sides = [self._side(view, points) for view in self.views]
        return Clouds(sides[0][0], sides[1][0], sides[0][1], sides[1][1])

    def _side(self, view: Tensor, points: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(CLASSES, (points,), generator=self._rng)
        latent = self.centres[labels] + NOISE * self._normal(points, LATENT)
        out = torch.rand(points, generator=self._rng) < self.outliers
        latent[out] = self._normal(int(out.sum()), LATENT)
        labels[out] = -1
        return latent @ view, labels

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._rng, dtype=torch.float64)


def one_hot(labels: Tensor) -> Tensor:
    """(points, CLASSES), zero for an outlier."""
    return torch.where(labels[:, None] >= 0, torch.nn.functional.one_hot(labels.clamp_min(0), CLASSES), 0).double()
