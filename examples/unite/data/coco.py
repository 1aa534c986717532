"""COCO-Stuff as layouts: boxes of things and stuff, each filling the channel of its class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .boxes import AnnotationError, Boxes, read_boxes
from .listed import Listed, Loaded, first_rows
from .lists import Row, exemplar_rows
from .reading import pixels
from .report import Report

#: Channels are COCO's category ids: 1 to 91 things, 92 to 182 stuff, with gaps; 0 is where no box is.
CHANNELS = 183
#: "other": all that is no class of its own.
OTHER = 183
#: Share of the image that a box must exceed, and how many such boxes an image must have.
SMALLEST, FEWEST, MOST = 0.02, 3, 8
FOLDERS = {"train": "train2017", "test": "val2017"}
PUBLISHED = {"train": 118_287, "test": 5_000}
WHERE = (
    "https://cocodataset.org, download: 2017 Train images, 2017 Val images (their folders go into image/), 2017 "
    "Train/Val annotations (instances_*.json), 2017 Stuff Train/Val annotations (stuff_*.json)",
    "https://github.com/nightrome/cocostuff describes the stuff annotations",
)


class _Layout(NamedTuple):
    """An image and the boxes that it is made from: their channels (m,) and corners (m, 4), shares of the sides."""

    image: Path
    channels: np.ndarray
    corners: np.ndarray


class COCO(Listed):
    """Pairs of COCO-Stuff layouts, drawn as `Listed` says, but resized to ``size`` straight away: nothing is cropped.

    ``ROOT/image/{train2017,val2017}/*.jpg``, ``ROOT/annotations/{instances,stuff}_{train2017,val2017}.json``, and the
    exemplars in ``ROOT/lists/{train,test}.csv`` (`lists.exemplar_rows`), those of a split being of the same split.
    Boxes below 2 per cent of the image and of the class "other" are dropped, and images with fewer than 3 or more than
    8 boxes that are left; lists may name them and are read as if they did not.  The annotations are parsed once; what
    is kept of them is in ``ROOT/cache``.

    A box fills channel category_id.  Channel 0 is 1 where there is no box at all.  (The authors' code sets it wherever
    some box is absent, which is nearly everywhere: a channel that says nothing, and the mask loss, which leaves out
    what is class 0, would leave out everything.)  Where boxes overlap, that loss counts the lowest id: things before
    stuff, which lies behind them.  Boxes become a map before the mirror, which then takes image and map together.

    Args:
        root: The folder.
        size: Side of images and conditions in pixels, 128 in the paper; images are stretched to a square.
        pseudo_share: With 1 training needs no list: each image of the split that is kept is an item.
        count: Only the first so many pairs.

    Raises:
        report.DataError: what is missing or wrong, all of it.
    """

    condition_channels = CHANNELS
    enlarged = 1.0

    def __init__(self, *, root: str | os.PathLike[str], size: int = 128, split: str = "train", seed: int = 0,
                 pseudo_share: float = 0.3, count: int | None = None, mirror: bool = True) -> None:
        super().__init__(size=size, split=split, seed=seed, pseudo_share=pseudo_share, mirror=mirror)
        found = Report("coco", Path(root), WHERE)
        found.place("annotations", "image")
        self.layouts, left_out, self.class_names = _layouts(found, split)
        rows = self.wanted_rows(self.layouts, lambda: _rows(found, split, self.layouts, left_out))
        found.require()
        self.rows = first_rows(rows, count)

    def load(self, name: str, size: int) -> Loaded:
        layout = self.layouts[name]
        return pixels(layout.image, size), drawn(layout.channels, layout.corners, size)

    def tensor(self, condition: np.ndarray) -> Tensor:
        return torch.from_numpy(condition).permute(2, 0, 1).float()


def drawn(channels: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Boxes as a map (size, size, CHANNELS) of 0 and 1, uint8.

    Args:
        channels: (m,) channel of each box.
        corners: (m, 4) left, top, right, bottom as shares of the sides; a position is in a box that covers any of it.
    """
    planes = np.zeros((size, size, CHANNELS), np.uint8)
    starts = np.floor(corners[:, :2] * size + 1e-9).astype(int)
    ends = np.maximum(np.ceil(corners[:, 2:] * size - 1e-9).astype(int), starts + 1)
    for channel, (left, top), (right, bottom) in zip(channels, starts, ends, strict=True):
        planes[top:bottom, left:right, channel] = 1
    planes[..., 0] = ~planes.any(-1)
    return planes


def report(root: str | os.PathLike[str], decode: bool = False) -> Report:
    """What there is of COCO-Stuff in a folder; ``decode`` reads every image too."""
    found = Report("coco", Path(root), WHERE)
    found.place("annotations", "image")
    for split in FOLDERS:
        layouts, left_out, _ = _layouts(found, split)
        _rows(found, split, layouts, left_out)
        if decode:
            found.decode([layout.image for layout in layouts.values()])
    return found


def _layouts(found: Report, split: str) -> tuple[dict[str, _Layout], set[str], tuple[str, ...]]:
    """Images of a split that are kept, by name; the names of those that are left out for their boxes; the channels'."""
    name = FOLDERS[split]
    folder = found.root / "image" / name
    there = set(os.listdir(folder)) if folder.is_dir() else None
    if there is None:
        found.miss(f"image/{name}/, the images of split {split}")
    boxes = _boxes(found, name)
    if there is None or boxes is None:
        return {}, set(), ()
    # A file at a time: images of both annotations, whether boxes of it are kept or not.
    annotated = set(boxes.names.tolist())
    found.count(f"{split} images", len(annotated & there), PUBLISHED[split])
    for missing in sorted(annotated - there):
        found.problem("images that the annotations have and the folder lacks", f"image/{name}/{missing}")
    for unknown in sorted(each for each in there - annotated if each.lower().endswith(".jpg") and each[0] != "."):
        found.problem("images without annotations", f"image/{name}/{unknown}")
    _check_categories(found, name, boxes)
    width, height = (boxes.corners[:, i + 2] - boxes.corners[:, i] for i in (0, 1))
    kept = (width * height > SMALLEST) & (boxes.categories != OTHER)
    layouts, left_out = {}, set()
    for place, file in enumerate(boxes.names.tolist()):
        of = np.arange(boxes.starts[place], boxes.starts[place + 1])
        of = of[kept[of]]
        stem = os.path.splitext(file)[0]
        if FEWEST <= len(of) <= MOST:
            layouts[stem] = _Layout(folder / file, boxes.categories[of], boxes.corners[of])
        else:
            left_out.add(stem)
    found.count(f"{split} images with {FEWEST} to {MOST} boxes", len(layouts))
    classes = dict(zip(boxes.class_ids.tolist(), boxes.class_names.tolist(), strict=True))
    return layouts, left_out, ("no box", *(classes.get(i, f"class {i}") for i in range(1, CHANNELS)))


def _boxes(found: Report, name: str) -> Boxes | None:
    files = [found.root / "annotations" / f"{kind}_{name}.json" for kind in ("instances", "stuff")]
    missing = [file for file in files if not file.is_file()]
    for file in missing:
        found.miss(found.short(file))
    if missing:
        return None
    try:
        return read_boxes(files, found.root / "cache" / f"boxes_{name}.npz")
    except AnnotationError as error:
        found.problem("annotations that cannot be used", str(error))
        return None


def _check_categories(found: Report, name: str, boxes: Boxes) -> None:
    owner = np.searchsorted(boxes.starts, np.arange(len(boxes.categories)), side="right") - 1
    for place in np.nonzero((boxes.categories < 1) | (boxes.categories > OTHER))[0]:
        found.problem("boxes of an unknown class", f"image/{name}/{boxes.names[owner[place]]}: category "
                      f"{boxes.categories[place]}, where 1 to {OTHER} are known")


def _rows(found: Report, split: str, layouts: dict[str, _Layout], left_out: set[str]) -> tuple[Row, ...]:
    images = found.root / "image" / FOLDERS[split]
    return exemplar_rows(found, split, layouts, layouts, ("--query", images, "--gallery", images, "--suffix", ".jpg"),
                         left_out)
