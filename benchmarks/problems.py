"""Problems that the benchmarks draw, by seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: What is alike lies together in none of them, in blocks, and along the rows of an image.
ORDERS = ("shuffled", "clustered", "raster")


def draw(order: str, n: int, m: int | None = None, *, seed: int = 0,
         dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """The problem of an order of `ORDERS`: cost (n, m) in [0, 2], a (n,) and b (m,) of total 1."""
    if order == "raster":
        return raster(n, m, seed=seed, dtype=dtype)
    return clustered(n, m, seed=seed, order=order, dtype=dtype)


def clustered(n: int, m: int | None = None, *, seed: int = 0, d: int = 64, clusters: int = 32, noise: float = 0.35,
              order: str = "shuffled", dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine costs between two samples of one mixture of directions, with uneven masses.

    Args:
        order: "shuffled" as drawn; "clustered" the same points, rows and columns sorted by the cluster they are from.

    Returns:
        cost (n, m) in [0, 2], a (n,) and b (m,) of total 1.
    """
    x, z, a, b = clustered_features(n, m, seed=seed, d=d, clusters=clusters, noise=noise, order=order)
    return (1 - x @ z.T).to(dtype), a.to(dtype), b.to(dtype)


def clustered_features(n: int, m: int | None = None, *, seed: int = 0, d: int = 64, clusters: int = 32,
                       noise: float = 0.35, order: str = "shuffled") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The points that `clustered` is the cost of: unit vectors x (n, d) and z (m, d), masses a and b, float64."""
    if order not in ("shuffled", "clustered"):
        raise ValueError(f"order must be 'shuffled' or 'clustered', got {order!r}")
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(clusters, d, generator=generator, dtype=torch.float64), dim=1)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        member = torch.randint(clusters, (count,), generator=generator)
        spread = noise * torch.randn(count, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
        place = member.argsort(stable=True) if order == "clustered" else torch.arange(count)
        return torch.nn.functional.normalize(centres[member] + spread, dim=1), place

    (x, rows), (z, cols) = sample(n), sample(n if m is None else m)
    a, b = _masses(len(x), generator), _masses(len(z), generator)
    return x[rows], z[cols], a[rows], b[cols]


def raster(n: int, m: int | None = None, *, seed: int = 0, d: int = 48, code: int = 16, length: float = 0.08,
           shift: float = 0.04, noise: float = 0.1,
           dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine costs between two views of a smooth random field, read row by row, so that neighbours are alike.

    A position of the unit square has d random Fourier features of correlation length ``length`` and a position code of
    ``code`` sines and cosines.  The second view sees the field displaced by up to about ``shift``, smoothly, and each
    view adds noise of its own.  Sizes that are no product of near sides leave the last row of the grid short.

    Returns:
        cost (n, m) in [0, 2], a (n,) and b (m,) of total 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    frequency, phase = normal(2, d) / length, 2 * math.pi * torch.rand(d, generator=generator, dtype=torch.float64)
    bend, bend_phase = 3 * normal(2, 2), normal(2)

    def features(count: int, moved: float) -> Tensor:
        places = _grid(count)
        seen = places + moved * torch.sin(places @ bend + bend_phase)
        field = math.sqrt(2 / d) * torch.cos(seen @ frequency + phase)
        octave = math.pi * 2.0 ** torch.arange(code // 4, dtype=torch.float64)
        angles = (places[:, :, None] * octave).flatten(1)
        position = torch.cat([angles.sin(), angles.cos()], 1) / math.sqrt(code)
        mixed = torch.cat([field, position], 1)
        return torch.nn.functional.normalize(mixed + noise * normal(count, mixed.shape[1]) / math.sqrt(d), dim=1)

    x, z = features(n, 0.0), features(n if m is None else m, shift)
    a, b = _masses(len(x), generator), _masses(len(z), generator)
    return (1 - x @ z.T).to(dtype), a.to(dtype), b.to(dtype)


def _grid(count: int) -> Tensor:
    """The first ``count`` positions of a grid as square as can be, row by row, (count, 2) in the unit square."""
    width = math.isqrt(count - 1) + 1
    index = torch.arange(count)
    return (torch.stack([index // width, index % width], 1) + 0.5).double() / width


def _masses(count: int, generator: torch.Generator) -> Tensor:
    weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
    return weights / weights.sum()
