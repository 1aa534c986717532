"""Matching as one would write it without uotlib: whole matrices, autograd through every pass.  For comparison only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .matching import Matcher

#: blur of the released code, whatever its options say, and the largest cost.
RELEASED_BLUR, DIAMETER = 0.025, 2.0


@dataclass(frozen=True)
class DensePlan:
    """A plan as two matrices: rows and columns that sum to 1.

    Args:
        rows, columns: (B, n, m), normalised over columns and over rows.
        a, b: Masses, (B, h, w).
        kept, kept_back: Their shares in the plan.
    """

    rows: Tensor
    columns: Tensor
    a: Tensor
    b: Tensor
    kept: Tensor
    kept_back: Tensor
    violation: None = None  # nothing is measured of it here

    @classmethod
    def of(cls, log_kernel: Tensor, u: Tensor, v: Tensor, a: Tensor, b: Tensor,
           sizes: tuple[tuple[int, int], tuple[int, int]]) -> DensePlan:
        """From -C / eta, potentials over eta and masses (B, n) and (B, m): T = a b' exp(u + v - C / eta)."""
        by_columns, by_rows = log_kernel + (b.log() + v)[:, None, :], log_kernel + (a.log() + u)[:, :, None]
        kept, kept_back = (u + by_columns.logsumexp(2)).exp(), (v + by_rows.logsumexp(1)).exp()
        return cls(by_columns.softmax(2), by_rows.softmax(1),
                   *(side.unflatten(1, size) for side, size in zip((a, b, kept, kept_back), 2 * sizes, strict=True)))

    def warp(self, values: Tensor) -> Tensor:
        return (values.flatten(2) @ self.rows.mT).unflatten(2, self.a.shape[1:])

    def warp_all(self, levels: list[Tensor]) -> list[Tensor]:
        return list(self.warp(torch.cat(levels, 1)).split([level.shape[1] for level in levels], 1))

    def warp_back(self, values: Tensor) -> Tensor:
        return (values.flatten(2) @ self.columns).unflatten(2, self.b.shape[1:])


class _DenseMatcher(Matcher):
    def _prepared(self, x: Tensor, z: Tensor, shared: tuple[Tensor, Tensor] | None, eta: float) -> tuple:
        """-C / eta, masses and sizes."""
        sizes = tuple(x.shape[-2:]), tuple(z.shape[-2:])
        return (x.flatten(2).mT @ z.flatten(2) - 1) / eta, *self.mass(x, z, shared), sizes


class LogSumExpMatcher(_DenseMatcher):
    """Textbook iteration at the target eta, ``MatchConfig.passes`` times two log-sum-exps under autograd."""

    def plan(self, x: Tensor, z: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> DensePlan:
        log_kernel, a, b, sizes = self._prepared(x, z, shared, self.eta)
        damping = 1.0 if self.match.matcher == "ot" else self.tau / (self.tau + self.eta)
        u, v = torch.zeros_like(a), torch.zeros_like(b)
        for _ in range(self.match.passes):
            u = -damping * (log_kernel + (b.log() + v)[:, None, :]).logsumexp(2)
            v = -damping * (log_kernel + (a.log() + u)[:, :, None]).logsumexp(1)
        return DensePlan.of(log_kernel, u, v, a, b, sizes)


class GeomLossMatcher(_DenseMatcher):
    """GeomLoss with the settings of the released code: balanced, blur 0.025, gradients of its last step alone.

    Where that code is at odds with itself, this is not: one cost, 1 - cos, for potentials and plan; the schedule of
    GeomLoss itself, which ends at the blur; a diameter of 2 rather than the batch's.
    """

    def plan(self, x: Tensor, z: Tensor, shared: tuple[Tensor, Tensor] | None = None) -> DensePlan:
        from geomloss import SamplesLoss

        log_kernel, a, b, sizes = self._prepared(x, z, shared, RELEASED_BLUR)
        a, b = a / a.sum(1, keepdim=True), b / b.sum(1, keepdim=True)
        solve = SamplesLoss("sinkhorn", p=1, blur=RELEASED_BLUR, diameter=DIAMETER, debias=False, potentials=True,
                            backend="tensorized", cost=lambda left, right: 1 - left @ right.mT)
        u, v = (potential.reshape(side.shape) / RELEASED_BLUR for potential, side in zip(
            solve(a, x.flatten(2).mT.contiguous(), b, z.flatten(2).mT.contiguous()), (a, b), strict=True))
        return DensePlan.of(log_kernel, u, v, a, b, sizes)
