"""Boxes of things and stuff from COCO's annotations, read once and kept in a small file."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.unite.checkpoint import write_whole

#: Raised when what is kept changes.
REVISION = 1


class AnnotationError(ValueError):
    """A file of annotations that cannot be used; the message names it."""


class Boxes(NamedTuple):
    """Every image of a split with its boxes.

    Attributes:
        names: (n,) names of the images' files.
        starts: (n + 1,) int64: the boxes of image i are starts[i] to starts[i + 1].
        categories: (m,) int32: COCO's own ids, with its gaps.
        corners: (m, 4) float64: left, top, right, bottom as shares of the image's width and height.
        class_ids, class_names: (k,) int64 ids, and names, of the categories.
    """

    names: np.ndarray
    starts: np.ndarray
    categories: np.ndarray
    corners: np.ndarray
    class_ids: np.ndarray
    class_names: np.ndarray


def read_boxes(files: Sequence[Path], cache: Path) -> Boxes:
    """The boxes of several files of annotations of the same images.

    What was read is kept in ``cache``, and read from there as long as names, sizes and times of the files are the same.
    Where it cannot be written, a warning says so.

    Args:
        files: In COCO's format: ``images`` with id, file_name, width, height; ``annotations`` with image_id,
            category_id, bbox; ``categories`` with id and name.
        cache: Its file, ``.npz``.

    Raises:
        AnnotationError: A file is broken or is no file of annotations.
    """
    key = json.dumps([REVISION, *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)])
    kept = _kept(cache, key)
    if kept is not None:
        return kept
    made = _joined(files)
    try:
        write_whole(cache, lambda out: np.savez_compressed(out, key=np.array(key), **made._asdict()))
    except OSError as error:
        warnings.warn(f"{cache} cannot be written ({error.strerror or error}): the annotations are read anew each "
                      "time, which takes minutes", stacklevel=2)
    return made


def _kept(cache: Path, key: str) -> Boxes | None:
    """What the cache holds for these files; None where it holds something else, or is damaged in any way."""
    try:
        with np.load(cache, allow_pickle=False) as stored:
            return Boxes(*(stored[name] for name in Boxes._fields)) if str(stored["key"]) == key else None
    except Exception:
        return None


def _joined(files: Sequence[Path]) -> Boxes:
    """The boxes of all files, by image."""
    sides: dict[int, tuple[str, float, float]] = {}
    found: list[tuple[int, int, tuple[float, ...]]] = []
    classes: dict[int, str] = {}
    for file in files:
        images, annotations, categories = _parsed(file)
        try:
            for identity, name, width, height in images:
                if not (0 < width < math.inf and 0 < height < math.inf):
                    raise AnnotationError(f"{file}: image {name!r} is {width} x {height} pixels")
                sides[identity] = (os.path.basename(name), float(width), float(height))
            for identity, category, box in annotations:
                if identity not in sides:
                    raise AnnotationError(f"{file}: a box is of image {identity!r}, which the file does not have")
                x, y, width, height = (float(each) for each in box)
                if not (math.isfinite(x) and math.isfinite(y) and 0 <= width < math.inf and 0 <= height < math.inf):
                    raise AnnotationError(f"{file}: a box of image {sides[identity][0]!r} is {width:g} x {height:g} "
                                          f"pixels at ({x:g}, {y:g}); sides are finite and not below 0")
                found.append((identity, int(category), (x, y, x + width, y + height)))
            classes |= {int(each.identity): str(each.name) for each in categories}
        except (TypeError, ValueError) as error:
            if isinstance(error, AnnotationError):
                raise
            raise AnnotationError(f"{file} has an image or a box with a wrong value: {error}") from error
    order = {identity: place for place, identity in enumerate(sorted(sides, key=lambda each: sides[each][0]))}
    found.sort(key=lambda each: order[each[0]])  # stable: within an image as in the files
    places = np.array([order[identity] for identity, _, _ in found], np.int64)
    scales = np.array([2 * sides[identity][1:] for identity, _, _ in found]).reshape(-1, 4)
    corners = np.array([box for _, _, box in found]).reshape(-1, 4) / scales
    return Boxes(np.array([sides[identity][0] for identity in order], dtype=str),
                 np.searchsorted(places, np.arange(len(order) + 1)),
                 np.array([category for _, category, _ in found], np.int32), np.clip(corners, 0, 1),
                 np.array(sorted(classes), np.int64), np.array([classes[each] for each in sorted(classes)], dtype=str))


class _Image(NamedTuple):
    identity: int
    name: str
    width: float
    height: float


class _Box(NamedTuple):
    identity: int
    category: int
    box: Sequence[float]


class _Category(NamedTuple):
    identity: int
    name: str


def _slim(item: dict[str, Any]) -> Any:
    """What an object of the JSON leaves behind: outlines, which are nearly all of it, are dropped as they are read."""
    if "bbox" in item and "image_id" in item:
        return _Box(item["image_id"], item.get("category_id"), item["bbox"])
    if "file_name" in item:
        return _Image(item.get("id"), item["file_name"], item.get("width"), item.get("height"))
    if "id" in item and "name" in item:
        return _Category(item["id"], item["name"])
    return item


def _parsed(file: Path) -> tuple[list[_Image], list[_Box], list[_Category]]:
    try:
        with file.open(encoding="utf-8") as opened:
            tree = json.load(opened, object_hook=_slim)
    except ValueError as error:
        raise AnnotationError(f"{file} is cut short or no JSON ({error})") from error
    parts = {"images": _Image, "annotations": _Box, "categories": _Category}
    lists = tuple(tree.get(part) for part in parts) if isinstance(tree, dict) else (None,) * len(parts)
    if not all(isinstance(part, list) and all(isinstance(each, kind) for each in part)
               for part, kind in zip(lists, parts.values(), strict=True)):
        raise AnnotationError(f"{file} is no file of COCO's annotations: it needs images (id, file_name, width, "
                              "height), annotations (image_id, category_id, bbox) and categories (id, name)")
    return lists
