r"""What `FeatureTransport` returns: one plan, and whatever it carries from one set to the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_floating
from ..solution import Solution


@dataclass(frozen=True, eq=False)
class Matching:
    r"""A plan between two feature sets x and z, with the masses that it was solved for.

    Values are laid out as the features were: points (..., n, k), or images (..., k, H, W) where the features were
    images.  Everything is differentiable as the `Solution` is, and nothing of size n x m is kept.

    Attributes:
        solution: The solved problem: potentials, plan, certificate.
        a: Masses of x, (..., n), or (..., H, W).
        b: Masses of z, (..., m), or (..., H, W).
        x_size, z_size: (H, W) of the two images; None for points.

    Example:
        >>> import torch
        >>> from uotlib.nn import FeatureTransport
        >>> x, z = torch.eye(3), torch.eye(3)[[2, 0, 1]]
        >>> matching = FeatureTransport(reg=1e-3, reg_m=1.0)(x, z)
        >>> matching.warp(torch.tensor([[20.0], [0.0], [10.0]])).round(decimals=3)
        tensor([[ 0.],
                [10.],
                [20.]])
    """

    solution: Solution
    a: Tensor
    b: Tensor
    x_size: tuple[int, int] | None = None
    z_size: tuple[int, int] | None = None

    def warp(self, values: Tensor, *, normalised: bool = True) -> Tensor:
        r"""Values of z brought to the points of x.

        .. math:: y_i = \sum_j T_{ij} v_j \Big/ \sum_j T_{ij} \quad\text{or, plain,}\quad y_i = \sum_j T_{ij} v_j

        Args:
            values: v, (..., m, k), or images (..., k, H, W) of z's size.
            normalised: Divide by the row's mass (`Solution.barycentric`): an average, which a row that keeps little
                mass gets as sharply as any other.  False is T v (`Solution.apply`), in units of mass times values.

        Returns:
            y, (..., n, k) or (..., k, H, W) of x's size, in the solver's type.

        Raises:
            TypeError, ValueError: for values that are no floating-point tensor of such a shape.
        """
        product = self.solution.barycentric if normalised else self.solution.apply
        return as_layout(product(as_points("values", values, self.z_size)), self.x_size)

    def warp_back(self, values: Tensor, *, normalised: bool = True) -> Tensor:
        r"""Values of x brought to the points of z, by columns of the same plan.

        ``warp_back(warp(v))`` is the cycle of Eq. 8 of UNITE.  See `warp`, with the sides exchanged.
        """
        product = self.solution.barycentric_t if normalised else self.solution.apply_t
        return as_layout(product(as_points("values", values, self.x_size)), self.z_size)

    def warp_all(self, levels: Sequence[Tensor], *, normalised: bool = True) -> list[Tensor]:
        """`warp` of several values, joined by their channels: one pass over the plan, forward and backward.

        Args:
            levels: Values (..., m, k) or images, each with its own k; batch dimensions broadcast.
            normalised: As in `warp`.

        Returns:
            What `warp` gives for each.

        Raises:
            TypeError, ValueError: for values that are no floating-point tensors of such shapes.
        """
        if not isinstance(levels, list | tuple) or not levels:
            raise TypeError(f"levels must be a list of at least one tensor, got {type(levels).__name__}")
        points = [as_points(f"levels[{k}]", values, self.z_size) for k, values in enumerate(levels)]
        m = self.b.shape[-1] if self.z_size is None else math.prod(self.z_size)
        listed = ", ".join(str(tuple(values.shape)) for values in levels)
        if any(values.ndim < 2 or values.shape[-2] != m for values in points):
            raise ValueError(f"levels must have shapes (..., {m}, k), got {listed}")
        try:
            batch = torch.broadcast_shapes(*(values.shape[:-2] for values in points))
        except RuntimeError as error:
            raise ValueError(f"batch dimensions of levels do not broadcast: {listed}") from error
        joined = torch.cat([values.expand(*batch, *values.shape[-2:]) for values in points], -1)
        product = (self.solution.barycentric if normalised else self.solution.apply)(joined)
        return [as_layout(part, self.x_size)
                for part in product.split([values.shape[-1] for values in points], -1)]

    @property
    def kept(self) -> Tensor:
        r"""Share of each point's mass that the plan takes, :math:`(T\mathbf 1)_i / a_i`, shaped as `a`.

        Small for an outlier; 1 where the marginal is exact; above 1 where mass is asked for.  Clamped to 1 it is a
        confidence.  0 for a point without mass.
        """
        return _share(as_map(self.solution.row_mass, self.x_size), self.a)

    @property
    def kept_back(self) -> Tensor:
        r"""Share of the mass of each point of z, :math:`(T^\top\mathbf 1)_j / b_j`, shaped as `b`; see `kept`."""
        return _share(as_map(self.solution.col_mass, self.z_size), self.b)

    def matches(self) -> Tensor:
        """Best match of each point of x among those of z, int64, shaped as `a`; an index of a pixel is row-major."""
        return as_map(self.solution.argmax(), self.x_size)


def as_points(name: str, values: object, size: tuple[int, int] | None) -> Tensor:
    """Values as (..., points, k); ``size`` is that of the images that they must have, None for points."""
    values = check_floating(name, values)
    if size is None:
        return values
    if values.ndim < 3 or tuple(values.shape[-2:]) != size:
        raise ValueError(f"{name} must be images (..., k, {size[0]}, {size[1]}), got {tuple(values.shape)}")
    return values.flatten(-2).mT


def as_layout(points: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(..., points, k) as it is, or as images (..., k, H, W)."""
    return points if size is None else points.mT.unflatten(-1, size)


def as_map(vector: Tensor, size: tuple[int, int] | None) -> Tensor:
    """(..., points) as it is, or as (..., H, W)."""
    return vector if size is None else vector.unflatten(-1, size)


def _share(marginal: Tensor, mass: Tensor) -> Tensor:
    some = mass > 0
    return torch.where(some, marginal / torch.where(some, mass, 1.0), 0.0)
