"""One's own data: ``condition/``, ``image/`` and ``pairs.csv`` in a folder (see `check.check_folder`)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from .check import FolderError, check_folder, pairs_file
from .listed import Listed, Loaded, first_rows
from .pairs import SPLITS, to_tensor
from .reading import class_planes, ids_or_pixels, pixels
from .report import Report


def read_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """An image file as (3, size, size) in [-1, 1]."""
    return to_tensor(pixels(Path(path), size))


def read_condition(path: str | os.PathLike[str], size: int, channels: int) -> Tensor:
    """A condition file as (channels, size, size) in [0, 1]: one-hot class ids, or an RGB image for 3 channels.

    Raises:
        ValueError: for an id from ``channels`` on, an RGB image where there are not 3 channels, and a broken file.
    """
    loaded = ids_or_pixels(Path(path), size)
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
        self.listing = check_folder(root, split)
        self.rows = first_rows(self.listing.rows, count)
        self.class_names = self.listing.class_names
        self.condition_channels = 3 if self.class_names is None else len(self.class_names)

    def load(self, name: str, size: int) -> Loaded:
        return pixels(self.listing.images[name], size), ids_or_pixels(self.listing.conditions[name], size)

    def tensor(self, condition: np.ndarray) -> Tensor:
        return _condition_tensor(condition, self.condition_channels)


def report(root: str | os.PathLike[str], decode: bool = False) -> Report:
    """What there is in a folder of one's own; pictures are read with and without ``decode``."""
    found = Report("folder", Path(root), ("examples/unite/README.md says what a folder of one's own data holds",))
    for split in SPLITS:
        if split == "test" and pairs_file(found.root, split) == pairs_file(found.root, "train"):
            continue  # the same list
        try:
            listing = check_folder(root, split)
        except FolderError as error:
            for message in error.problems:
                found.problem("files and lines", message)
        else:
            found.count(f"{split} images with exemplars", len(listing.rows))
            found.count(f"{split} pictures, exemplars' too", len(listing.images))
    return found


def _condition_tensor(condition: np.ndarray, channels: int) -> Tensor:
    if condition.ndim == 3:
        return (to_tensor(condition) + 1) / 2
    return class_planes(condition, channels)
