"""Files of images and of class ids as arrays of the size that is asked for, and as what networks take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from .check import LABEL_MODES, load_picture


def pixels(file: Path, size: int) -> np.ndarray:
    """An image as RGB, (size, size, 3) uint8; another shape is stretched."""
    return np.asarray(load_picture(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def ids_or_pixels(file: Path, size: int) -> np.ndarray:
    """Class ids (size, size) int32, each of the nearest pixel; of an RGB image its `pixels`."""
    picture = load_picture(file)
    if picture.mode not in LABEL_MODES:
        return pixels(file, size)
    ids = np.asarray(picture).astype(np.int32)  # ids of 16 bits stay what they are
    return np.asarray(Image.fromarray(ids).resize((size, size), Image.Resampling.NEAREST))


def class_planes(ids: np.ndarray, classes: int) -> Tensor:
    """Class ids (H, W) one-hot, (classes, H, W) float32."""
    return one_hot(torch.from_numpy(ids.copy()).long(), classes).permute(2, 0, 1).float()
