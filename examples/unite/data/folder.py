"""One's own data: ``condition/``, ``image/`` and ``pairs.csv`` in a folder (see `check.check_folder`)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from .check import LABEL_MODES, check_folder, load_picture
from .listed import Listed, Loaded
from .pairs import OneSided, one_sided, to_tensor


def read_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """An image file as (3, size, size) in [-1, 1]."""
    return to_tensor(_pixels(Path(path), size))


def read_condition(path: str | os.PathLike[str], size: int, channels: int) -> Tensor:
    """A condition file as (channels, size, size) in [0, 1]: one-hot class ids, or an RGB image for 3 channels.

    Raises:
        ValueError: for an id from ``channels`` on, an RGB image where there are not 3 channels, and a broken file.
    """
    loaded = _condition(Path(path), size)
    if loaded.ndim == 3 and channels != 3:
        raise ValueError(f"{path} is an RGB image; a condition of {channels} channels is a PNG of class ids")
    if loaded.ndim == 2 and (loaded.min() < 0 or loaded.max() >= channels):
        unknown = loaded.min() if loaded.min() < 0 else loaded.max()
        raise ValueError(f"{path} has the class id {unknown}, but there are {channels} classes")
    return _condition_tensor(loaded, channels)


class Folder(Listed):
    """Pairs of a folder, drawn as `Listed` says.

    Args:
        root: The folder.
        size: Side of images and conditions in pixels; images of other shapes are stretched.
        count: Only the first so many pairs.
        mirror: Off where left and right mean something: text, traffic, one-sided organs.

    Raises:
        check.FolderError: what is wrong with the folder, all of it.
    """

    def __init__(self, *, root: str | os.PathLike[str], size: int = 256, split: str = "train", seed: int = 0,
                 pseudo_share: float = 0.3, count: int | None = None, mirror: bool = True) -> None:
        super().__init__(size=size, split=split, seed=seed, pseudo_share=pseudo_share, mirror=mirror)
        if count is not None and count < 1:
            raise ValueError(f"count must be 1 or more, got {count!r}")
        self.listing = check_folder(root, split)
        self.rows = self.listing.rows[:count]
        self.class_names = self.listing.class_names
        self.condition_channels = 3 if self.class_names is None else len(self.class_names)

    def load(self, name: str, size: int) -> Loaded:
        return _pixels(self.listing.images[name], size), _condition(self.listing.conditions[name], size)

    def tensor(self, condition: np.ndarray) -> Tensor:
        return _condition_tensor(condition, self.condition_channels)

    def one_sided(self, index: int) -> OneSided:
        if self.class_names is None:
            raise ValueError("one_sided needs class ids as conditions, and those of this folder are RGB images")
        (_, condition), (_, exemplar_condition), _ = self.pair(self._checked(index))
        return one_sided(condition, exemplar_condition, self.class_names)


def _pixels(file: Path, size: int) -> np.ndarray:
    return np.asarray(load_picture(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _condition(file: Path, size: int) -> np.ndarray:
    """Class ids (size, size) int32, or RGB (size, size, 3) uint8."""
    picture = load_picture(file)
    if picture.mode not in LABEL_MODES:
        return _pixels(file, size)
    ids = np.asarray(picture).astype(np.int32)  # ids of 16 bits stay what they are
    return np.asarray(Image.fromarray(ids).resize((size, size), Image.Resampling.NEAREST))


def _condition_tensor(condition: np.ndarray, channels: int) -> Tensor:
    if condition.ndim == 3:
        return (to_tensor(condition) + 1) / 2
    return one_hot(torch.from_numpy(condition.copy()).long(), channels).permute(2, 0, 1).float()
