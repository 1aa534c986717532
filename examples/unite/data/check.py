"""What a folder of one's own data must be, looked at before anything is trained on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .lists import SUFFIXES, read_pairs, read_text
from .roots import in_capitals, misplaced

LABEL_MODES = ("1", "L", "P", "I", "I;16")


class FolderError(ValueError):
    """A folder that cannot be trained on; ``problems`` has one message a file."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n  ".join([f"{root} has {count}:", *problems]))


class Unreadable(ValueError):
    """A picture's file that no decoder takes; ``reason`` is why, without the file's name.

    A loader's process hands an error on by its message alone, so that one string must make it.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Listing:
    """A folder that was found right.

    Attributes:
        rows: A name and the names of its exemplars, the easiest first.
        images: File of each name's image.
        conditions: File of each name's condition.
        class_names: Of label conditions; None where conditions are RGB images.
    """

    rows: tuple[tuple[str, tuple[str, ...]], ...]
    images: dict[str, Path]
    conditions: dict[str, Path]
    class_names: tuple[str, ...] | None


def check_folder(root: str | os.PathLike[str], split: str = "train") -> Listing:
    """Reads every file that the pairs name.

    The folder holds ``condition/NAME.png`` (class ids with a palette or as grey values; or RGB images, all of them),
    ``image/NAME.png`` (or .jpg, .jpeg, .webp, .bmp) of the same size, ``pairs.csv`` with lines ``name,exemplar`` or
    ``name,exemplar1,exemplar2,...`` (the easiest first), and if wanted ``classes.txt`` with the name of class 0, 1, ...
    a line, without which there are as many classes as the highest id says.  Split "test" reads ``pairs_test.csv`` where
    there is one, else ``pairs.csv``.

    Raises:
        FolderError: with a message for each file that is missing, broken, of a wrong kind or size, or has an unknown
            class id, and for each line of the pairs that cannot be read.
    """
    root = Path(root)
    listed = pairs_file(root, split)
    wrong = misplaced(root, "pairs.csv", "condition", "image")
    missing = [wrong] if wrong else []
    missing += [f"{name} is missing" for name, there in
                (("condition/", (root / "condition").is_dir()), ("image/", (root / "image").is_dir()),
                 (listed.name, listed.is_file())) if not there]
    if missing:
        raise FolderError(root, missing)
    problems: list[str] = []
    rows = read_pairs(listed, problems)
    wanted: dict[str, int] = {}
    for row in rows:
        for name in (row.name, *row.exemplars):
            wanted.setdefault(name, row.number)
    classes = _read_classes(root / "classes.txt", problems)
    images, conditions, kinds, highest = {}, {}, {}, 0
    for name, line in wanted.items():
        where = f"{listed.name}, line {line}"
        image, image_size = _image(root, name, where, problems)
        condition, condition_size, kind, top = _condition(root, name, where, classes, problems)
        if image_size and condition_size and image_size != condition_size:
            problems.append(f"condition/{name}.png is {condition_size[0]} x {condition_size[1]}, but "
                            f"image/{image.name} is {image_size[0]} x {image_size[1]}")
        images[name], conditions[name], kinds[name], highest = image, condition, kind, max(highest, top)
    problems += _mixed(kinds)
    if not rows and not problems:
        problems.append(f"{listed.name} lists no pairs")
    if problems:
        raise FolderError(root, problems)
    labels = "labels" in kinds.values()
    names = classes if classes is not None else tuple(f"class {i}" for i in range(highest + 1))
    return Listing(tuple((row.name, row.exemplars) for row in rows), images, conditions, names if labels else None)


def pairs_file(root: Path, split: str) -> Path:
    """The list of a split."""
    test = root / "pairs_test.csv"
    return test if split == "test" and test.is_file() else root / "pairs.csv"


def _read_classes(file: Path, problems: list[str]) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    before = len(problems)
    names = tuple(line.strip() for line in read_text(file, problems).splitlines())
    if len(problems) > before:
        return None
    if not names or not all(names):
        problems.append("classes.txt must have the name of a class on each line")
        return None
    return names


def _image(root: Path, name: str, where: str, problems: list[str]) -> tuple[Path, tuple[int, int] | None]:
    """The file of an image and its size; None for one that has a problem."""
    found = [path for suffix in SUFFIXES if (path := root / "image" / f"{name}{suffix}").is_file()]
    if len(found) != 1:
        capitals = "".join(in_capitals(root / "image" / f"{name}{suffix}") for suffix in SUFFIXES)
        problems.append(f"image/{name}.* is missing ({where}){capitals}" if not found else
                        f"image/{name} has more than one file: {', '.join(path.name for path in found)}")
        return root / "image" / name, None
    try:
        return found[0], load_picture(found[0]).size
    except Unreadable as error:
        problems.append(f"image/{found[0].name} cannot be read: {error.reason}")
        return found[0], None


def _condition(root: Path, name: str, where: str, classes: tuple[str, ...] | None,
               problems: list[str]) -> tuple[Path, tuple[int, int] | None, str, int]:
    """The file of a condition, its size, whether it is "labels" or "image", and its highest id."""
    file = root / "condition" / f"{name}.png"
    if not file.is_file():
        problems.append(f"condition/{name}.png is missing ({where}){in_capitals(file)}")
        return file, None, "", 0
    try:
        picture = load_picture(file)
    except Unreadable as error:
        problems.append(f"condition/{name}.png cannot be read: {error.reason}")
        return file, None, "", 0
    if picture.mode not in LABEL_MODES:
        return file, picture.size, "image", 0
    ids = np.asarray(picture)
    highest = int(ids.max())
    limit = len(classes) if classes is not None else 256
    if highest >= limit or ids.min() < 0:
        unknown = sorted(i for i in np.unique(ids).tolist() if not 0 <= i < limit)
        known = f"classes.txt names 0 to {limit - 1}" if classes is not None else "ids go from 0 to 255"
        problems.append(f"condition/{name}.png has the unknown class "
                        f"{'ids' if len(unknown) > 1 else 'id'} {', '.join(map(str, unknown[:8]))}: {known}")
        return file, None, "labels", 0
    return file, picture.size, "labels", highest


def _mixed(kinds: dict[str, str]) -> list[str]:
    """Conditions of the kind that fewer have, where there are two."""
    of = {kind: [name for name, found in kinds.items() if found == kind] for kind in ("labels", "image")}
    fewer, more = sorted(of, key=lambda kind: len(of[kind]))
    words = {"labels": "class ids", "image": "an RGB image"}
    return [f"condition/{name}.png is {words[fewer]}, but others are {words[more].replace('an ', '')}"
            for name in of[fewer]]


def load_picture(file: Path) -> Image.Image:
    """A picture, decoded whole.

    Raises:
        FileNotFoundError: There is no such file.
        Unreadable: Whatever a decoder made of a broken one: each fails in ways of its own.
    """
    with _opened(file) as opened:
        opened.load()
        return opened


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height of a picture by its head, of which nothing is decoded; raises what `load_picture` does."""
    with _opened(file) as opened:
        return opened.size


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as opened:
            yield opened
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).split("'")[0].strip() or type(error).__name__
        raise Unreadable(f"{file} cannot be read: {reason}", reason) from error
