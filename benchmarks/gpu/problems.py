"""Problems drawn on the device: the directions of `benchmarks.problems`, many at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.cpu.case import Problem

CLUSTERS, NOISE = 32, 0.35


@dataclass(frozen=True)
class Featured:
    """Features x (n, d), z (m, d) and masses a (n,), b (m,); ``reg_m`` infinite is balanced."""

    x: Tensor
    z: Tensor
    a: Tensor
    b: Tensor
    reg: float
    reg_m: float


def clustered_features(batch: int, n: int, d: int, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
    """Unit vectors x, z (batch, n, d) around common centres, and masses a, b (batch, n) of total 1, float32.

    The same numbers on the same kind of device.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    centres = normalize(normal(batch, CLUSTERS, d), dim=-1)

    def sample() -> Tensor:
        member = torch.randint(CLUSTERS, (batch, n), generator=generator, device=device)
        chosen = centres.gather(1, member[:, :, None].expand(-1, -1, d))
        return normalize(chosen + NOISE / math.sqrt(d) * normal(batch, n, d), dim=-1)

    def masses() -> Tensor:
        weights = torch.rand((batch, n), generator=generator, device=device) + 0.5
        return weights / weights.sum(1, keepdim=True)

    return sample(), sample(), masses(), masses()


def normal_features(n: int, d: int, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
    """What flash-sinkhorn's own benchmark draws: normal x, z (n, d), uneven masses (n,) of total 1."""
    generator = torch.Generator(device).manual_seed(seed)
    x, z = (torch.randn((n, d), generator=generator, device=device) for _ in range(2))
    a, b = (torch.rand(n, generator=generator, device=device) + 0.1 for _ in range(2))
    return x, z, a / a.sum(), b / b.sum()


def dense(batch: int, n: int, reg: float, reg_m: float, device: torch.device, seed: int = 0) -> Problem:
    """Cosine costs of `clustered_features` in 64 dimensions, float32: one problem, or a batch if there are several."""
    x, z, a, b = clustered_features(batch, n, 64, device, seed)
    cost = torch.baddbmm(torch.ones((), dtype=torch.float64, device=device), x.double(), z.double().mT,
                         alpha=-1).float() if batch * n * n <= 1 << 26 else _blockwise(x, z)
    return Problem(*(part[0] if batch == 1 else part for part in (cost, a, b)), reg=reg, reg_m=reg_m)


def _blockwise(x: Tensor, z: Tensor) -> Tensor:
    """1 - x z', item by item."""
    return torch.stack([(1 - one.double() @ other.double().T).float() for one, other in zip(x, z, strict=True)])
