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


def pseudo(image: dict[str, Tensor], truth: dict[str, Tensor], flags: Tensor, flagged: Tensor | None = None) -> Tensor:
    r"""Difference of features where the exemplar is the truth, moved: the output must show the truth itself.

    .. math:: \sum_l w_l\,\mathrm{mean}\big(s_b\,|\phi_l(Y_b) - \phi_l(X'_b)|\big), \quad s_b = f_b / \sum_c f_c

    Args:
        image, truth: Features by layer; the truth's are constants.
        flags: f, 1 for a pseudo pair, (B,).
        flagged: The sum over c, of all samples that are learned from at once; None: these alone.
    """
    return sum(weight * weighted_l1(image[layer], truth[layer], flags, flagged) for layer, weight in PSEUDO.items())


def weighted_l1(one: Tensor, other: Tensor, flags: Tensor, flagged: Tensor | None = None) -> Tensor:
    """Mean absolute difference to a constant, samples weighed by their share of the flags; 0 where none is flagged.

    With ``flagged``, the sum over several batches of one size, the mean of this over them is that of the joined batch.
    """
    shares = flags / ((flags.sum() if flagged is None else flagged) + 1e-5)
    return ((one.float() - other.detach().float()).abs() * shares[:, None, None, None]).mean()
