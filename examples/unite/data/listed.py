"""Pairs of files in a list: which exemplar an item gets, and how image and condition are cropped and mirrored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import compress

import numpy as np
from torch import Tensor

from examples.unite.structures import Sample

from .lists import Row
from .moves import flip
from .pairs import OneSided, Pairs, to_tensor

#: Side of the enlarged image that a crop is taken from, over the side of the crop.
ENLARGED = 286 / 256
#: Share of training items whose exemplar is the last one listed, the hardest.
HARD_SHARE = 0.2

#: An image (H, W, 3) uint8 and its condition (H, W) or (H, W, C), in whatever form `Listed.tensor` takes.
Loaded = tuple[np.ndarray, np.ndarray]


def first_rows(rows: tuple[Row, ...], count: int | None) -> tuple[Row, ...]:
    """The first ``count`` rows, or all of them for None.

    Raises:
        ValueError: ``count`` is below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"count must be 1 or more, got {count!r}")
    return rows[:count]


class Listed(Pairs):
    """Pairs of a list.

    Training: image and condition are resized to `enlarged` times ``size``, cropped at random and mirrored at random,
    the exemplar with a crop and a mirror of its own.  With probability 1 - ``pseudo_share`` the exemplar is a listed
    one: the last (hardest) in 0.2 of all items, else the first.  Otherwise it is the truth itself with another crop: a
    pseudo pair.  Split "test": the whole image and the first exemplar.

    Attributes:
        rows: Names with their exemplars.
        enlarged: Side of what a crop is taken from, over the side of the crop; 1: no crop.
    """

    rows: tuple[Row, ...]
    enlarged: float = ENLARGED

    @abstractmethod
    def load(self, name: str, size: int) -> Loaded:
        """Image and condition of a name, both ``size`` by ``size``."""

    @abstractmethod
    def tensor(self, condition: np.ndarray) -> Tensor:
        """A cropped condition as the network takes it, (condition_channels, size, size)."""

    def mirrored(self, image: np.ndarray, condition: np.ndarray) -> Loaded:
        """Both from left to right; channels that mean a left or a right part change places too."""
        return flip(image, condition)

    def wanted_rows(self, names: Iterable[str], listed: Callable[[], tuple[Row, ...]]) -> tuple[Row, ...]:
        """What ``listed`` reads; of training with pseudo pairs alone every name, without exemplars and any list."""
        alone = self.training and self.pseudo_share == 1
        return tuple((name, ()) for name in names) if alone else listed()

    def chosen(self, index: int, rng: np.random.Generator) -> tuple[str, bool]:
        """Name of a training item's exemplar, and whether the pair is a pseudo pair."""
        name, exemplars = self.rows[index]
        p = rng.random()
        pseudo = bool(p >= 1 - self.pseudo_share)
        return (name if pseudo else exemplars[-1 if p < HARD_SHARE else 0]), pseudo

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        index = self._checked(index)
        (image, condition), (exemplar, exemplar_condition), pseudo = self.pair(index)
        return Sample(condition=self.tensor(condition), image=to_tensor(image), exemplar=to_tensor(exemplar),
                      exemplar_condition=self.tensor(exemplar_condition), self_reference=pseudo,
                      name=self.rows[index][0])

    def one_sided(self, index: int) -> OneSided:
        """The classes that only the target or only the exemplar of this item shows, at this epoch.

        Raises:
            ValueError: The condition's channels are no classes.
        """
        if self.class_names is None:
            raise ValueError(f"one_sided needs class ids as conditions, and those of this {type(self).__name__} have "
                             "no names of classes")
        (_, condition), (_, exemplar_condition), _ = self.pair(self._checked(index))
        here, there = (self.tensor(each).flatten(1).amax(1) > 0 for each in (condition, exemplar_condition))
        target, exemplar = ((here & ~there).tolist(), (there & ~here).tolist())
        return OneSided(tuple(compress(self.class_names, target)), tuple(compress(self.class_names, exemplar)))

    def pair(self, index: int) -> tuple[Loaded, Loaded, bool]:
        """Target and exemplar of an item at this epoch, and whether the pair is a pseudo pair."""
        name, exemplars = self.rows[index]
        if not self.training:
            return self.load(name, self.size), self.load(exemplars[0], self.size), False
        rng = self.draw(index)
        given, pseudo = self.chosen(index, rng)
        large = round(self.size * self.enlarged)
        target = self.load(name, large)
        other = target if given == name else self.load(given, large)
        return self._moved(rng, *target), self._moved(rng, *other), pseudo

    def _moved(self, rng: np.random.Generator, image: np.ndarray, condition: np.ndarray) -> Loaded:
        """A random crop, mirrored or not."""
        y, x = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        window = slice(y, y + self.size), slice(x, x + self.size)
        mirrored = rng.random() < 0.5 and self.mirror
        return self.mirrored(image[window], condition[window]) if mirrored else (image[window], condition[window])
