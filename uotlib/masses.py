r"""Masses that two sets of descriptors give each other: the adaptive masses of UNITE."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .costs import broadcast_batches, unit_vectors


def cross_masses(x: Tensor, z: Tensor, *, normalize: bool = True, floor: float = 1e-3) -> tuple[Tensor, Tensor]:
    r"""Masses by relevance: how much each descriptor of one set agrees with the mean of the other set.

    .. math::
        \hat a_i = \max\Big(0,\; x_i \cdot \tfrac1m \sum_j z_j\Big) + \frac{\varphi}{n}, \qquad
        \hat b_j = \max\Big(0,\; z_j \cdot \tfrac1n \sum_i x_i\Big) + \frac{\varphi}{m}, \qquad
        (a, b) = \frac{(\hat a, \hat b)}{\frac12 (\sum_i \hat a_i + \sum_j \hat b_j)}

    for descriptors of unit length.  The paper's equation is the inner products alone; they may be negative, and with
    n = m their totals are always equal.  Clamping makes them masses, the floor keeps every point in the problem (and
    makes the masses uniform where nothing agrees), and dividing both sides by one number lets the totals differ while
    they sum to 2.

    Args:
        x: Descriptors of the rows, (..., n, d).
        z: Descriptors of the columns, (..., m, d); batch dimensions broadcast with x's.
        normalize: Divide each descriptor by its length (a zero vector stays zero); False takes them as they are.
        floor: phi > 0, the total mass that the floor adds to each side before the division, in units of the inner
            products.

    Returns:
        a (..., n) and b (..., m), positive, differentiable in x and z; float64 if x or z is, else float32 (half
        precision is computed in float32, whatever autocast says).

    Raises:
        TypeError: for an argument of a wrong type or dtype.
        ValueError: for shapes or devices that do not fit, empty sets, and a floor that is not positive and finite.
            Values are not looked at: a NaN in a descriptor shows in the masses.

    Example:
        >>> import torch
        >>> from uotlib import cross_masses
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
        >>> a, b = cross_masses(x, z)
        >>> a
        tensor([0.5000, 0.0007])
        >>> b
        tensor([7.4938e-01, 4.9925e-04, 7.4938e-01])

    Source: Zhan et al. 2021, *Unbalanced Feature Transport for Exemplar-based Image Translation* (CVPR), Eq. 3; clamp,
    floor and common divisor are this library's.
    """
    for name, features in (("x", x), ("z", z)):
        if not isinstance(features, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}")
        if not features.dtype.is_floating_point:
            raise TypeError(f"{name} must have a floating-point dtype, got {features.dtype}")
        if features.ndim < 2 or 0 in features.shape[-2:]:
            raise ValueError(f"{name} must have shape (..., points, d) with at least one point and feature, "
                             f"got {tuple(features.shape)}")
    if x.shape[-1] != z.shape[-1]:
        raise ValueError(f"x and z must have the same feature size, got {x.shape[-1]} and {z.shape[-1]}")
    if x.device != z.device:
        raise ValueError(f"z is on {z.device} but x is on {x.device}")
    if not isinstance(normalize, bool):
        raise TypeError(f"normalize must be True or False, got {normalize!r}")
    if isinstance(floor, bool) or not isinstance(floor, int | float):
        raise TypeError(f"floor must be a number, got {type(floor).__name__}")
    if not 0 < floor < math.inf:
        raise ValueError(f"floor must be positive and finite, got {floor}")
    try:
        batch = broadcast_batches(x.shape[:-2], z.shape[:-2])
    except RuntimeError as error:
        raise ValueError(f"batch dimensions of x {tuple(x.shape[:-2])} and z {tuple(z.shape[:-2])} do not broadcast"
                         ) from error

    dtype = torch.float64 if torch.float64 in (x.dtype, z.dtype) else torch.float32
    x, z = x.to(dtype), z.to(dtype)
    if normalize:
        x, z = unit_vectors(x), unit_vectors(z)
    a = agreement(x, z).clamp_min(0.0) + floor / x.shape[-2]
    b = agreement(z, x).clamp_min(0.0) + floor / z.shape[-2]
    total = 0.5 * (a.sum(-1, keepdim=True) + b.sum(-1, keepdim=True))
    return (a / total).expand(*batch, -1), (b / total).expand(*batch, -1)


def agreement(points: Tensor, others: Tensor) -> Tensor:
    """Inner products with the mean of the other set, (..., points); no matrix product, whose precision is a setting."""
    return (points * others.mean(-2, keepdim=True)).sum(-1)
