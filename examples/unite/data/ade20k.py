"""ADE20K: scenes with a class at every position, one-hot in 151 channels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .check import LABEL_MODES, load_picture
from .listed import Listed, Loaded, first_rows
from .lists import Row, exemplar_rows, read_text
from .pairs import SPLITS
from .reading import as_ids_or_pixels, as_pixels, class_planes
from .report import Report

#: Class 0 is unknown, 1 to 150 are the benchmark's.
CLASSES = 151
#: What the authors' loader makes of 255, the mark of positions to ignore.
IGNORED, IGNORED_AS = 255, 150
FOLDERS = {"train": "training", "test": "validation"}
PUBLISHED = {"train": 20_210, "test": 2_000}
WHERE = (
    "http://sceneparsing.csail.mit.edu, the archive ADEChallengeData2016 (not the full ADE20K, whose files differ)",
    "its images/ and annotations/ are used as they are; a PNG of class ids beside each JPG of images/ does too",
)


class _Files(NamedTuple):
    """A picture and its class ids."""

    image: Path
    labels: Path


class ADE20K(Listed):
    """Pairs of ADE20K's scene parsing benchmark, drawn as `Listed` says, from crops of 256 in 286.

    ``ROOT/images/{training,validation}/*.jpg``, the class ids in ``ROOT/annotations/{training,validation}/*.png`` or
    beside the images, and the exemplars in ``ROOT/lists/{train,test}.csv`` (`lists.exemplar_rows`): those of either
    split are images of the training split.  Channel i is class id i, 0 being unknown; 255 becomes 150, as in the
    authors' code.  Classes have names where the archive's ``objectInfo150.txt`` is there.

    Args:
        root: The folder.
        size: Side of images and conditions in pixels; images are stretched to a square.
        pseudo_share: With 1 training needs no list: each image of the split is an item.
        count: Only the first so many pairs.

    Raises:
        report.DataError: what is missing or wrong, all of it.
    """

    condition_channels = CLASSES

    def __init__(self, *, root: str | os.PathLike[str], size: int = 256, split: str = "train", seed: int = 0,
                 pseudo_share: float = 0.3, count: int | None = None, mirror: bool = True) -> None:
        super().__init__(size=size, split=split, seed=seed, pseudo_share=pseudo_share, mirror=mirror)
        found = Report("ade20k", Path(root), WHERE)
        found.place("images")
        splits = {each: _files(found, each) for each in SPLITS[:SPLITS.index(split) + 1]}
        rows = self.wanted_rows(splits["train"], lambda: _rows(found, split, splits))
        self.class_names = _class_names(found)
        found.require()
        self.rows = first_rows(rows, count)
        self.files = {name: files for each in splits.values() for name, files in each.items()}

    def load(self, name: str, size: int) -> Loaded:
        files = self.files[name]
        image, labels = load_picture(files.image), load_picture(files.labels)
        ids = as_ids_or_pixels(labels, size)
        wrong = _wrong_ids(ids)
        if wrong:
            raise ValueError(f"{files.labels}: {wrong}")
        if labels.size != image.size:
            raise ValueError(_other_size(str(files.labels), labels.size, image.size))
        return as_pixels(image, size), np.where(ids == IGNORED, IGNORED_AS, ids)

    def tensor(self, condition: np.ndarray) -> Tensor:
        return class_planes(condition, CLASSES)


def report(root: str | os.PathLike[str], decode: bool = False) -> Report:
    """What there is of ADE20K in a folder, sizes by the files' heads; ``decode`` reads every picture and class id."""
    found = Report("ade20k", Path(root), WHERE)
    found.place("images")
    splits = {split: _files(found, split) for split in SPLITS}
    for split in SPLITS:
        _rows(found, split, splits)
    _class_names(found)
    files = [each for names in splits.values() for each in names.values() if each.labels.is_file()]
    sizes = dict(found.sizes([file for each in files for file in each]))
    for image, labels in files:
        if image in sizes and labels in sizes and sizes[image] != sizes[labels]:
            found.problem("class ids of another size than their image",
                          _other_size(found.short(labels), sizes[labels], sizes[image]))
    if decode:
        found.decode([each.image for each in files])
        for file, picture in found.pictures([each.labels for each in files]):
            wrong = _wrong_ids(np.asarray(picture)) if picture.mode in LABEL_MODES else _RGB
            if wrong:
                found.problem("class ids that are none", f"{found.short(file)}: {wrong}")
    return found


def _files(found: Report, split: str) -> dict[str, _Files]:
    """Pictures and class ids of a split by name, which is the image's without its suffix."""
    folder = found.root / "images" / FOLDERS[split]
    if not folder.is_dir():
        found.miss(f"images/{FOLDERS[split]}/, the images of split {split}")
        return {}
    apart = found.root / "annotations" / FOLDERS[split]
    beside = folder if not apart.is_dir() else apart
    images = {file.stem: file for file in _visible(folder) if file.suffix.lower() in (".jpg", ".jpeg")}
    labels = {file.stem: file for file in _visible(beside) if file.suffix.lower() == ".png"}
    if not images:
        found.miss(f"the JPG images of images/{FOLDERS[split]}/, which holds none")
        return {}
    for name in sorted(images.keys() - labels):
        found.problem("images without class ids",
                      f"{found.short(images[name])} has no {found.short(beside / f'{name}.png')}")
    for name in sorted(labels.keys() - images):
        found.problem("class ids without an image",
                      f"{found.short(labels[name])} has no {found.short(folder / f'{name}.jpg')}")
    found.count(f"{split} images", len(images), PUBLISHED[split])
    found.count(f"{split} images with class ids", len(images.keys() & labels), PUBLISHED[split])
    return {name: _Files(image, labels.get(name, beside / f"{name}.png")) for name, image in sorted(images.items())}


def _visible(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def _rows(found: Report, split: str, splits: dict[str, dict[str, _Files]]) -> tuple[Row, ...]:
    images, gallery = (found.root / "images" / FOLDERS[each] for each in (split, "train"))
    return exemplar_rows(found, split, splits[split], splits["train"],
                         ("--query", images, "--gallery", gallery, "--suffix", ".jpg"))


def _other_size(labels: str, size: tuple[int, int], image: tuple[int, int]) -> str:
    return f"{labels} is {size[0]} x {size[1]}, its image {image[0]} x {image[1]}"


_RGB = "an image in colours, no class ids"


def _wrong_ids(ids: np.ndarray) -> str:
    """What is wrong with a map of class ids; nothing if all is well."""
    if ids.ndim != 2:
        return _RGB
    unknown = [each for each in np.unique(ids).tolist() if not 0 <= each < CLASSES and each != IGNORED]
    return f"class id {unknown[0]}, where 0 to {CLASSES - 1} and {IGNORED} are known" if unknown else ""


def _class_names(found: Report) -> tuple[str, ...] | None:
    """Of the archive's table, whose lines begin with a class id and end with its names."""
    file = found.root / "objectInfo150.txt"
    if not file.is_file():
        return None
    problems: list[str] = []
    names = {0: "unknown"}
    for line in read_text(file, problems).splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        if cells[0].isdecimal():
            names[int(cells[0])] = cells[-1].partition(",")[0]
    if not problems and sorted(names) != list(range(CLASSES)):
        problems.append(f"{file.name} must name classes 1 to {CLASSES - 1}, a line each, columns apart by tabs")
    for message in problems:
        found.problem("names of classes", message)
    return tuple(names[each] for each in range(CLASSES)) if not problems else None
