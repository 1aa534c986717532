"""Moving an image and its map of labels together."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample


def flip(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrors both from left to right."""
    return np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(labels[:, ::-1])


def random_move(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray,
                mirror: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """The same in another place: mirrored or not (never without ``mirror``), scaled by 0.85 to 1.15, turned by up to 10
    degrees and shifted by up to 8 per cent; what comes in over a border repeats it.
    """
    if rng.random() < 0.5 and mirror:
        image, labels = flip(image, labels)
    scale, angle = math.exp(rng.uniform(-0.16, 0.14)), math.radians(rng.uniform(-10, 10))
    x, y = rng.uniform(-0.16, 0.16, 2)
    return affine(image, labels, scale, angle, (x, y))


def affine(image: np.ndarray, labels: np.ndarray, scale: float, angle: float,
           shift: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Scaled, turned by ``angle`` (radians) and shifted (in halves of the side); images are interpolated, labels not.

    ``labels`` is (H, W), or (H, W, C) where a condition is itself an image.
    """
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    theta = torch.tensor([[[cos, -sin, shift[0]], [sin, cos, shift[1]]]], dtype=torch.float32)
    grid = affine_grid(theta, [1, 1, *image.shape[:2]], align_corners=False)

    def moved(array: np.ndarray, mode: str) -> np.ndarray:
        planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(array).transpose(2, 0, 1))).float()[None]
        out = grid_sample(planes, grid, mode=mode, padding_mode="border", align_corners=False)[0]
        return out.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy().reshape(array.shape)

    return moved(image, "bilinear"), moved(labels, "nearest")
