"""Problems that the benchmarks draw, by seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def clustered(n: int, m: int | None = None, *, seed: int = 0, d: int = 64, clusters: int = 32, noise: float = 0.35,
              dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine costs between two samples of one mixture of directions, in random order, with uneven masses.

    Returns:
        cost (n, m) in [0, 2], a (n,) and b (m,) of total 1.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(clusters, d, generator=generator, dtype=torch.float64), dim=1)

    def sample(count: int) -> Tensor:
        centre = centres[torch.randint(clusters, (count,), generator=generator)]
        spread = noise * torch.randn(count, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
        return torch.nn.functional.normalize(centre + spread, dim=1)

    def mass(count: int) -> Tensor:
        weights = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
        return weights / weights.sum()

    x, z = sample(n), sample(n if m is None else m)
    a, b = mass(len(x)), mass(len(z))
    return (1 - x @ z.T).to(dtype), a.to(dtype), b.to(dtype)
