"""What every data set of this package is: pairs of a condition and an exemplar, drawn by (seed, epoch, index)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from examples.unite.structures import Sample

SPLITS = ("train", "test")


class OneSided(NamedTuple):
    """Names of the classes that one side of a pair has and the other lacks: what has no counterpart to be moved to."""

    target_only: tuple[str, ...]
    exemplar_only: tuple[str, ...]


class Pairs(Dataset[Sample], ABC):
    """A data set of `Sample`s.

    Everything random about an item is a function of (seed, epoch, index), whichever worker makes it; of split "test"
    nothing is random.

    Attributes:
        size: Side of images and conditions, in pixels.
        mirror: Whether training items are mirrored from left to right at random.
        condition_channels: S of the conditions (S, size, size).
        class_names: Names of the condition's channels where each is a class, else None.
    """

    def __init__(self, *, size: int, split: str, seed: int, pseudo_share: float, mirror: bool = True) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if size < 32:
            raise ValueError(f"size must be 32 or more, got {size!r}")
        if not 0 <= pseudo_share <= 1:
            raise ValueError(f"pseudo_share must be in [0, 1], got {pseudo_share!r}")
        self.size, self.split, self.seed, self.pseudo_share, self.mirror = size, split, seed, pseudo_share, mirror
        self.condition_channels: int
        self.class_names: tuple[str, ...] | None
        # Shared, so that workers that live on see the next epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __copy__(self) -> Self:
        """The same pairs in an epoch of their own."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _epoch=self._epoch.clone().share_memory_())
        return made

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """From now on items are those of this epoch; call it between epochs."""
        self._epoch.fill_(epoch)

    @property
    def training(self) -> bool:
        return self.split == "train"

    def draw(self, index: int) -> np.random.Generator:
        """The random numbers of an item."""
        return np.random.default_rng([self.seed, self.epoch, index])

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @abstractmethod
    def one_sided(self, index: int) -> OneSided:
        """The classes that only the target or only the exemplar of this item has, at this epoch."""

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, got {index}")
        return index % len(self)


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0)


def one_sided(target: np.ndarray, exemplar: np.ndarray, names: tuple[str, ...]) -> OneSided:
    """Compares the class maps of a pair."""
    here, there = set(np.unique(target).tolist()), set(np.unique(exemplar).tolist())
    return OneSided(tuple(names[i] for i in sorted(here - there)), tuple(names[i] for i in sorted(there - here)))
