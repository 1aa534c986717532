"""The average of a model's weights over the steps of its training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    r"""Exponential moving average of parameters; buffers are the newest.

    .. math:: \bar w_t = d_t \bar w_{t-1} + (1 - d_t) w_t, \qquad d_t = \min(d, (1 + t) / (10 + t))

    with t = 1, 2, ... the updates: the first ones weigh more, or a short training would end with an average that is
    mostly the weights it began with.

    Args:
        model: What is averaged; the average starts as a copy of it, in evaluation mode and without gradients.
        decay: d in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema must be in [0, 1), got {decay!r}")
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model``."""
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - kept)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        tensors: dict[str, Tensor] = state["model"]
        self.model.load_state_dict(tensors)
        self.updates = state["updates"]
