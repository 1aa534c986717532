"""Losses on what the plan carries: cycle (Eq. 8), consistency of features (Eq. 9), warped image and mask."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..structures import Transported
from .features import weighted_l1


def cycle(transported: Transported) -> Tensor:
    """Mean absolute error of what was moved there and back (Eq. 8): the image, and levels where they went back too."""
    error = (transported.cycle.float() - transported.exemplar_small.float()).abs().mean()
    for back, level in transported.feature_cycle.values():
        error = error + (back.float() - level.detach().float()).abs().mean()
    return error


def consistency(condition: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of unit features f6 of the condition and of its true image (Eq. 9); both learn."""
    return (condition.float() - truth.float()).abs().mean()


def warp_self(warped: Tensor, truth: Tensor, flags: Tensor, flagged: Tensor | None = None) -> Tensor:
    """Mean absolute error of the warped exemplar where it is the truth, moved: `weighted_l1`."""
    return weighted_l1(warped, truth, flags, flagged)


def mask_nll(warped: Tensor, condition: Tensor, exemplar_condition: Tensor, positions: Tensor | None = None) -> Tensor:
    """-log of the warped mask at the true class, a mean over positions whose class the exemplar has and which is not 0.

    Args:
        warped: The exemplar's mask where it was moved, (B, S, h, w).
        condition: Classes of the truth, (B, S, H, W), one channel a class.
        exemplar_condition: Those of the exemplar, (B, S, H, W).
        positions: How many there are in a batch, a mean over the batches that are learned from at once; None: in this.
    """
    label, counted = comparable(condition, exemplar_condition, (warped.shape[2], warped.shape[3]))
    likelihood = warped.float().gather(1, label[:, None])[:, 0]
    positions = counted.sum() if positions is None else positions
    return -(torch.log(likelihood + 1e-10) * counted).sum() / (positions + 1e-5)


def comparable(condition: Tensor, exemplar_condition: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Classes on a grid of ``size``, (B, h, w), and where `mask_nll` counts them."""
    label = functional.interpolate(condition, size=size, mode="nearest").argmax(1)
    present = functional.interpolate(exemplar_condition, size=size, mode="nearest").flatten(2).amax(2) > 0
    return label, present.gather(1, label.flatten(1)).unflatten(1, size) & (label != 0)
