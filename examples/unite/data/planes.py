"""Pairs whose conditions are planes of the picture, some of which mean a left or a right part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .listed import Listed, Loaded
from .moves import flip


class Planes(Listed):
    """`Listed` with conditions (H, W, planes) float32, of which the network sees the first ``condition_channels``.

    Attributes:
        mirrored_planes: Which plane takes the place of each when a picture is mirrored.
    """

    mirrored_planes: Sequence[int]

    def tensor(self, condition: np.ndarray) -> Tensor:
        planes = condition[..., :self.condition_channels].transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(planes))

    def mirrored(self, image: np.ndarray, condition: np.ndarray) -> Loaded:
        image, condition = flip(image, condition)
        return image, condition[..., self.mirrored_planes]
