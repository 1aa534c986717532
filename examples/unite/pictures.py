"""Images of a folder or of a list, by name: what retrieval compares."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .data.check import SUFFIXES


class Picture(NamedTuple):
    """An image's file, and its name: the path below the folder, with slashes, without the ending."""

    name: str
    file: Path


def find_pictures(source: Path, root: Path | None = None, suffixes: Iterable[str] = SUFFIXES) -> list[Picture]:
    """The images of a folder and all folders in it, by name, or those that a list names, in its order.

    Args:
        source: A folder, whose hidden files are left out; or a text file with a name at the start of each line, the
            rest of a line after a comma being ignored.  A name may have its ending or not, and slashes of either kind.
        root: Where the names of a list begin; None: the list's own folder.  A folder is its own root.
        suffixes: Endings of images, in small letters; files with others are passed over.

    Raises:
        FileNotFoundError: There is no such folder or list, or nothing in it.
        ValueError: Two images with one name, a name that a list repeats or that has no image, with its line; a name
            that would lose a part, taken for an ending, where lists are read.
    """
    suffixes = tuple(suffixes)
    if source.is_dir():
        found = [Picture(_name(file.relative_to(source)), file) for file in _walk(source) if _is_image(file, suffixes)]
        wanted = f"no images ({', '.join(suffixes)}) in {source}"
    elif source.is_file():
        found = list(_listed(source, root if root is not None else source.parent, suffixes))
        wanted = f"{source} names no images"
    else:
        raise FileNotFoundError(f"no folder or list {source}")
    if not found:
        raise FileNotFoundError(wanted)
    first: dict[str, Path] = {}
    for name, file in found:
        if name in first:
            raise ValueError(f"{source} has the name {name!r} twice: {first[name]} and {file}"
                             + ("; --suffix says which endings are images" if first[name] != file else ""))
        if Path(name).suffix.lower() in SUFFIXES:
            raise ValueError(f"{file} would stand in a list as {name!r}, whose end reads as an image's: rename it")
        first[name] = file
    return found


def _walk(folder: Path) -> list[Path]:
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def _is_image(file: Path, suffixes: tuple[str, ...]) -> bool:
    return file.suffix.lower() in suffixes


def _name(path: Path) -> str:
    return path.with_suffix("").as_posix()


def _listed(source: Path, root: Path, suffixes: tuple[str, ...]) -> Iterable[Picture]:
    try:
        lines = list(csv.reader(source.read_text(encoding="utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} is no list of names in UTF-8: {error}") from error
    for line, cells in enumerate(lines, start=1):
        text = cells[0].strip().replace("\\", "/") if cells else ""
        if not text:
            continue
        path = Path(text)
        tried = [path] if _is_image(path, suffixes) else [path.with_name(path.name + ending) for ending in suffixes]
        files = [each for each in tried if (root / each).is_file()]
        if len(files) != 1:
            what = f"more than one file in {root}" if files else f"no image in {root}"
            raise ValueError(f"{source}, line {line}: {text!r} has {what}")
        yield Picture(_name(files[0]), root / files[0])
