"""The four operations in plain torch, in float64 whatever the type of the cost: what the other backends are held to."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Backend, log_scaling


class ReferenceBackend(Backend):
    name = "reference"
    bytes_per_entry = 24

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type == "mps":
            return "the reference backend computes in float64, which MPS devices do not have"
        return None

    def row_lse(self, cost: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        return torch.logsumexp(_exponent(cost, reg, items).add_(log_v[:, None, :]), dim=2)

    def col_lse(self, cost: Tensor, log_u: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        return torch.logsumexp(_exponent(cost, reg, items).add_(log_u[:, :, None]), dim=1)

    def sweep(self, cost: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
              col_mass: Tensor, items: Tensor | None = None) -> Tensor:
        exponent = _exponent(cost, reg, items).add_(log_v[:, None, :])
        lse = torch.logsumexp(exponent, dim=2)
        log_u = log_scaling(offset, damping, lse) - shift[:, None]
        col_mass += exponent.add_(log_u[:, :, None]).exp_().sum(dim=1)
        return lse

    def panel(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor,
              items: Tensor | None = None) -> Tensor:
        exponent = _exponent(cost, reg, items).add_(log_u[:, :, None]).add_(log_v[:, None, :])
        return exponent.exp_().to(cost.dtype)


def _exponent(cost: Tensor, reg: Tensor, items: Tensor | None) -> Tensor:
    """-C / eps in float64, always a fresh tensor."""
    if items is not None:
        cost = cost.index_select(0, items)
    return torch.div(cost.double(), -reg[:, None, None])
