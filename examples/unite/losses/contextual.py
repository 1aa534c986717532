r"""The contextual loss, Eq. 11: have features of the image near relatives among the exemplar's, wherever they are?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

#: h of the paper of Mechrez et al.
BANDWIDTH = 0.1
#: Positions that are compared at once, rows times columns of a batch: more are streamed over rows.
BLOCK = 1 << 22
#: Weight of each layer, and by how much it is pooled first.
LAYERS = {"relu5_2": (8.0, 1), "relu4_2": (4.0, 1), "relu3_2": (2.0, 2), "relu2_2": (1.0, 4)}


def contextual_layers(image: dict[str, Tensor], exemplar: dict[str, Tensor], *, relu2: bool, spatial_mean: bool,
                      paper: bool) -> Tensor:
    """Weighted sum of `contextual` over relu5_2, relu4_2, relu3_2 (pooled) and, if asked for, relu2_2 (pooled)."""
    total = 0.0
    for layer, (weight, pool) in LAYERS.items():
        if layer == "relu2_2" and not relu2:
            continue
        ours, theirs = (functional.avg_pool2d(features[layer].float(), pool) for features in (image, exemplar))
        total = total + weight * contextual(ours, theirs, spatial_mean=spatial_mean, paper=paper).mean()
    return total


def contextual(image: Tensor, exemplar: Tensor, *, spatial_mean: bool = False, paper: bool = False) -> Tensor:
    r"""Contextual loss of each sample, (B,).

    .. math::
        \tilde d_{ij} = \frac{d_{ij}}{\min_k d_{ik} + 10^{-3}},\quad
        A_{ij} = \operatorname{softmax}_j\frac{1 - \tilde d_{ij}}{h},\quad
        \ell = -\log \operatorname{mean}_i \max_j A_{ij}

    with d = 1 - cos of centred features, i over positions of the image and j over those of the exemplar.

    Args:
        image, exemplar: Features (B, C, H, W); the exemplar's are constants.
        spatial_mean: Centre by the exemplar's mean over positions, as the loss was published, rather than by its mean
            over channels at the same position, as the code of CoCosNet and UNITE does.
        paper: Eq. 11 as printed: i over the exemplar, j over the image, a sum over i.
    """
    exemplar = exemplar.detach()
    mean = exemplar.mean((2, 3), keepdim=True) if spatial_mean else exemplar.mean(1, keepdim=True)
    ours, theirs = (functional.normalize(features - mean, dim=1).flatten(2).mT for features in (image, exemplar))
    rows, columns = (theirs, ours) if paper else (ours, theirs)
    size = max(BLOCK // (columns.shape[0] * columns.shape[1]), 1)
    blocks = rows.split(size, 1)
    if len(blocks) == 1:
        best = _best(rows, columns)
    else:  # each block is compared again in the backward, so that no whole matrix is kept
        best = torch.cat([checkpoint(_best, block, columns, use_reentrant=False, preserve_rng_state=False)
                          for block in blocks], 1)
    return -torch.log(best.sum(1) if paper else best.mean(1))


def _best(rows: Tensor, columns: Tensor) -> Tensor:
    """max_j A_ij of each row, (B, rows)."""
    distance = 1 - rows @ columns.mT
    relative = distance / (distance.amin(2, keepdim=True) + 1e-3)
    return torch.softmax((1 - relative) / BANDWIDTH, 2).amax(2)
