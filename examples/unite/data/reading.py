"""Files of images and of class ids as arrays of the size that is asked for, and as what networks take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .check import LABEL_MODES, Unreadable, load_picture
from .modes import rgb


def pixels(file: Path, size: int) -> np.ndarray:
    """An image as RGB, (size, size, 3) uint8; another shape is stretched."""
    return as_pixels(load_picture(file), size)


def as_pixels(picture: Image.Image, size: int) -> np.ndarray:
    """`pixels` of a picture that is read already."""
    try:
        coloured = rgb(picture)
    except ValueError as error:
        raise Unreadable(f"{getattr(picture, 'filename', 'a picture')} cannot be read: {error}", str(error)) from error
    return np.asarray(coloured.resize((size, size), Image.Resampling.BICUBIC))


def ids_or_pixels(file: Path, size: int) -> np.ndarray:
    """Class ids (size, size) int32, each of the nearest pixel; of an RGB image its `pixels`."""
    return as_ids_or_pixels(load_picture(file), size)


def as_ids_or_pixels(picture: Image.Image, size: int) -> np.ndarray:
    """`ids_or_pixels` of a picture that is read already."""
    if picture.mode not in LABEL_MODES:
        return as_pixels(picture, size)
    ids = np.asarray(picture).astype(np.int32)  # ids of 16 bits stay what they are
    return np.asarray(Image.fromarray(ids).resize((size, size), Image.Resampling.NEAREST))


def class_planes(ids: np.ndarray, classes: int) -> Tensor:
    """Class ids (H, W) one-hot, (classes, H, W) float32."""
    planes = torch.zeros(classes, *ids.shape)
    return planes.scatter_(0, torch.from_numpy(ids.astype(np.int64))[None], 1)
