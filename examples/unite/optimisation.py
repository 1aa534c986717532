"""Adam for the two networks, and how their rates fall."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from .config import TrainConfig


def optimisers(model: nn.Module, discriminator: nn.Module,
               config: TrainConfig) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    """Adam of the generator with everything before it, and Adam of the discriminator (the paper's rates)."""
    def adam(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Adam:
        # A mixed pair (0, 0.999) is refused by newer versions of torch.
        return torch.optim.Adam(parameters, lr=rate, betas=(float(config.beta1), float(config.beta2)),
                                eps=config.adam_eps)
    return (adam(model.parameters(), config.generator_rate),
            adam(discriminator.parameters(), config.discriminator_rate))


def rate_factor(step: int, config: TrainConfig) -> float:
    """What both rates are multiplied with at a step (from 0): 1, then linear to 0 over the last ``decay_share``."""
    falling = config.decay_share * config.steps
    if falling <= 0:
        return 1.0
    return min(1.0, max(0.0, (config.steps - step) / falling))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
