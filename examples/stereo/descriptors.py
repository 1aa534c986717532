"""Local descriptors of an image: standardised patches of colour and gradient, with a weak position."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Pixels along a cell of the grid, in the resized image that the patches are cut from.
PIXELS_PER_CELL = 2


def descriptors(image: np.ndarray, grid: int = 64, patch: int = 7, position: float = 0.5) -> Tensor:
    r"""One unit vector for each cell.

    The image is resized to 2 grid x 2 grid pixels.  Its colours and two central differences of its grey value are
    standardised (mean 0, deviation 1 over the image, each channel by itself), the patch around the cell is normalised
    to length 1, and position times :math:`(\cos\theta_x, \sin\theta_x, \cos\theta_y, \sin\theta_y)/\sqrt 2`,
    :math:`\theta = \pi/2` times the place in [0, 1], is joined to it.  The inner product of two such codes depends on
    the distance alone, where that of plain coordinates favours corners; and every two of them agree a little, which
    keeps the masses of Eq. 3 from degenerating (those of centred descriptors nearly vanish).

    Args:
        image: Colours in [0, 1], (height, width, 3), of any aspect: it is stretched to a square.
        grid: Cells along each side.
        patch: Odd side of the patch, in pixels of the resized image.
        position: Length of the position code; that of the patch is 1.

    Returns:
        (grid * grid, 5 * patch^2 + 4), float32, row after row.
    """
    if patch % 2 != 1:
        raise ValueError(f"patch must be odd, got {patch}")
    channels = _channels(resized(image, grid * PIXELS_PER_CELL))
    channels = channels - channels.mean((1, 2), keepdim=True)
    channels = channels / channels.std((1, 2), keepdim=True).clamp_min(1e-6)
    padded = F.pad(channels[None], (patch // 2,) * 4, mode="replicate")
    patches = F.unfold(padded, patch).reshape(-1, grid * PIXELS_PER_CELL, grid * PIXELS_PER_CELL)
    centre = slice(PIXELS_PER_CELL // 2, None, PIXELS_PER_CELL)
    appearance = F.normalize(patches[:, centre, centre].flatten(1).T, dim=1)
    return F.normalize(torch.cat([appearance, position * _place(grid)], 1), dim=1)


def resized(image: np.ndarray, side: int) -> Tensor:
    """The image stretched to side x side pixels, smoothed against aliasing, (side, side, 3) float32."""
    from skimage.transform import resize

    return torch.from_numpy(resize(image, (side, side), order=1, anti_aliasing=True).astype(np.float32))


def _channels(pixels: Tensor) -> Tensor:
    """Red, green, blue and the two central differences of the grey value, (5, side, side)."""
    grey = F.pad(pixels.mean(-1)[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    across = (grey[1:-1, 2:] - grey[1:-1, :-2]) / 2
    down = (grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2
    return torch.cat([pixels.permute(2, 0, 1), across[None], down[None]])


def _place(grid: int) -> Tensor:
    """Unit position codes of the cells, (grid * grid, 4)."""
    angle = (torch.arange(grid) + 0.5) / grid * (math.pi / 2)
    down, across = torch.meshgrid(angle, angle, indexing="ij")
    code = torch.stack([across.cos(), across.sin(), down.cos(), down.sin()], -1)
    return code.reshape(grid * grid, 4) / math.sqrt(2)
