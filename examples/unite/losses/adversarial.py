"""Hinge losses of the two-scale discriminator, and matching of its features."""

from __future__ import annotations

import torch
from torch import Tensor

#: Over scales, maps of one discriminator; the last is its prediction.
Maps = list[list[Tensor]]


def hinge_generator(fake: Maps) -> Tensor:
    """-D(fake), a mean over positions and scales."""
    return -_mean_of_scales(fake, lambda prediction: prediction)


def hinge_real(real: Maps) -> Tensor:
    """max(0, 1 - D(real)), a mean over positions and scales."""
    return _mean_of_scales(real, lambda prediction: torch.relu(1 - prediction))


def hinge_fake(fake: Maps) -> Tensor:
    """max(0, 1 + D(fake)), a mean over positions and scales."""
    return _mean_of_scales(fake, lambda prediction: torch.relu(1 + prediction))


def feature_matching(fake: Maps, real: Maps) -> Tensor:
    """Mean absolute difference of each inner map to the real image's (a constant): summed over maps, mean of scales."""
    scales = [sum((one.float() - other.detach().float()).abs().mean()
                  for one, other in zip(ours[:-1], theirs[:-1], strict=True))
              for ours, theirs in zip(fake, real, strict=True)]
    return torch.stack(scales).mean()


def _mean_of_scales(maps: Maps, of) -> Tensor:
    return torch.stack([of(scale[-1].float()).mean() for scale in maps]).mean()
