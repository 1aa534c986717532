"""CelebA-HQ: faces with the borders of their parts, from the masks of CelebAMask-HQ."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .check import load_picture
from .face_parts import CHANNELS, PARTS, edge_planes, face_points, mirrored_planes, point_planes
from .listed import Loaded, first_rows
from .lists import Row
from .pairs import SPLITS
from .planes import Planes
from .reading import pixels
from .report import Report
from .roots import in_capitals
from .splits import FILES, counted_names, listed_rows

IMAGES, MASKS = "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"
#: Ids in a folder of masks.
FOLDER = 2000
PUBLISHED = {"train": 24_183, "test": 2_993}
WHERE = (
    f"https://github.com/switchablenorms/CelebAMask-HQ: CelebAMask-HQ.zip has {IMAGES}/ and {MASKS}/",
    "train.txt and val.txt: ids, one a line; the authors' are the first columns of celebahq_ref.txt and "
    "celebahq_ref_test.txt in the folder data of https://github.com/fnzhan/UNITE, without .jpg",
    "lists/train.csv and lists/test.csv: these two files, or what python -m examples.unite.retrieve finds",
)


class CelebAHQ(Planes):
    """Pairs of CelebA-HQ, drawn as `Listed` says, from crops of 256 in 286.

    ``ROOT/CelebA-HQ-img/{id}.jpg``, ``ROOT/CelebAMask-HQ-mask-anno/{id // 2000}/{id:05d}_{part}.png``, the ids of the
    splits in ``ROOT/train.txt`` and ``ROOT/val.txt``, and the exemplars in ``ROOT/lists/{train,test}.csv``
    (`lists.exemplar_rows`), of either split from the training split.

    Conditions have 15 channels: "edges" those of `face_parts.edge_planes`, "landmarks" those of
    `face_parts.point_planes`: points that follow from the masks, since the data set has none.  In a mirrored pair the
    masks of left and right brows, eyes and ears have changed places.

    Args:
        root: The folder.
        size: Side of images and conditions in pixels.
        condition: "edges" or "landmarks".
        pseudo_share: With 1 training needs no list: each id of the split is an item.
        count: Only the first so many pairs.

    Raises:
        report.DataError: what is missing or wrong, all of it.
    """

    def __init__(self, *, root: str | os.PathLike[str], size: int = 256, split: str = "train", seed: int = 0,
                 condition: str = "edges", pseudo_share: float = 0.3, count: int | None = None,
                 mirror: bool = True) -> None:
        super().__init__(size=size, split=split, seed=seed, pseudo_share=pseudo_share, mirror=mirror)
        if condition not in CHANNELS:
            raise ValueError(f"condition must be one of {', '.join(CHANNELS)}, got {condition!r}")
        self.root, self.condition = Path(root), condition
        self.condition_channels, self.class_names = CHANNELS[condition], None
        found = Report("celebahq", self.root, WHERE)
        found.place(IMAGES, MASKS)
        splits = {each: _ids(found, each) for each in SPLITS[:SPLITS.index(split) + 1]}
        rows = self.wanted_rows(splits["train"], lambda: _rows(found, split, splits))
        found.require()
        self.rows, self.mirrored_planes = first_rows(rows, count), mirrored_planes(condition)

    def load(self, name: str, size: int) -> Loaded:
        image = pixels(image_file(self.root, name), size)
        parts = {part: _region(file, size) for part in PARTS if (file := mask_file(self.root, name, part)).is_file()}
        scale = self.size / 256
        if self.condition == "edges":
            return image, edge_planes(image, parts, scale)
        return image, point_planes(face_points(parts, size), size, scale)


def report(root: str | os.PathLike[str], decode: bool = False) -> Report:
    """What there is of CelebA-HQ in a folder; ``decode`` reads every picture and mask too."""
    found = Report("celebahq", Path(root), WHERE)
    found.place(IMAGES, MASKS)
    splits = {split: _ids(found, split) for split in SPLITS}
    for split in SPLITS:
        _rows(found, split, splits)
    if decode:
        names = [name for ids in splits.values() for name in ids]
        found.decode([file for name in names for file in
                      (image_file(found.root, name), *(mask_file(found.root, name, part) for part in PARTS))
                      if file.is_file()])
    return found


def image_file(root: Path, name: str) -> Path:
    return root / IMAGES / f"{name}.jpg"


def mask_file(root: Path, name: str, part: str) -> Path:
    return root / MASKS / str(int(name) // FOLDER) / f"{int(name):05d}_{part}.png"


def _region(file: Path, size: int) -> np.ndarray:
    """Where a mask is not black."""
    return np.asarray(load_picture(file).resize((size, size), Image.Resampling.NEAREST).convert("L")) > 0


def _ids(found: Report, split: str) -> tuple[str, ...]:
    """Ids of a split; those without an image or masks are noted."""
    names, there = counted_names(found, split, _id, "ids", PUBLISHED[split], (IMAGES, MASKS))
    if not there:
        return names
    pictures = {file.name for file in os.scandir(found.root / IMAGES)}
    masked = _masked(found.root, names)
    whole = 0
    for name in names:
        if f"{name}.jpg" not in pictures:
            found.problem("images that are missing", f"{IMAGES}/{name}.jpg, which {FILES[split]} lists"
                          + in_capitals(image_file(found.root, name)))
        elif not any(name in of for of in masked.values()):
            found.problem("images without masks",
                          f"{IMAGES}/{name}.jpg has no {found.short(mask_file(found.root, name, 'skin'))}, "
                          "nor any other part's")
        else:
            whole += name in masked["skin"]
    found.count(f"{split} images with masks, that of the skin among them", whole, PUBLISHED[split])
    for part in PARTS:
        found.count(f"{split} masks of {part}", sum(name in masked[part] for name in names))
    return names


def _rows(found: Report, split: str, splits: dict[str, tuple[str, ...]]) -> tuple[Row, ...]:
    return listed_rows(found, split, splits, found.root / IMAGES, _id)


def _id(text: str) -> str | None:
    number = text.removesuffix(".jpg")
    return str(int(number)) if number.isascii() and number.isdecimal() else None


def _masked(root: Path, names: Iterable[str]) -> dict[str, set[str]]:
    """For each part that is drawn the ids that have its mask, of all that are in the folders of ``names``."""
    made: dict[str, set[str]] = {part: set() for part in PARTS}
    for folder in {mask_file(root, name, "skin").parent for name in names}:
        for file in os.scandir(folder) if folder.is_dir() else ():
            number, _, part = file.name.removesuffix(".png").partition("_")
            if part in PARTS and number.isdecimal() and int(number) // FOLDER == int(folder.name):
                made[part].add(str(int(number)))
    return made
