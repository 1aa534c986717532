"""Losses on features of a perceptual network: Eq. 10, and the pseudo pairs' of CoCosNet."""

from __future__ import annotations

from torch import Tensor

from ..perceptual import LAYERS

#: Weight of each layer for pseudo pairs.
PSEUDO = dict(zip(LAYERS, (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0), strict=True))


def perceptual(image: Tensor, truth: Tensor, *, l1: bool) -> Tensor:
    """Mean square, or absolute, difference of features (B, C, H, W) to the truth's, a constant (Eq. 10)."""
    difference = image.float() - truth.detach().float()
    return difference.abs().mean() if l1 else difference.square().mean()


def pseudo(image: dict[str, Tensor], truth: dict[str, Tensor], flags: Tensor) -> Tensor:
    r"""Difference of features where the exemplar is the truth, moved: the output must show the truth itself.

    .. math:: \sum_l w_l\,\mathrm{mean}\big(s_b\,|\phi_l(Y_b) - \phi_l(X'_b)|\big), \quad s_b = f_b / \sum_c f_c

    Args:
        image, truth: Features by layer; the truth's are constants.
        flags: f, 1 for a pseudo pair, (B,).
    """
    return sum(weight * weighted_l1(image[layer], truth[layer], flags) for layer, weight in PSEUDO.items())


def weighted_l1(one: Tensor, other: Tensor, flags: Tensor) -> Tensor:
    """Mean absolute difference to a constant, samples weighed by their share of the flags; 0 where none is flagged."""
    shares = flags / (flags.sum() + 1e-5)
    return ((one.float() - other.detach().float()).abs() * shares[:, None, None, None]).mean()
