"""The report of any source, by name."""

from __future__ import annotations

import os
from pathlib import Path

from . import NAMES
from .avatars import DEFAULT_ROOT, packages
from .check import FolderError, check_folder, pairs_file
from .pairs import SPLITS
from .report import Report


def report_of(name: str, root: str | os.PathLike[str] | None, decode: bool = False) -> Report:
    """What there is of a source.

    Args:
        name: One of `NAMES`.
        root: Its folder; of avatars that of the cache, None for the usual one.
        decode: Read every picture too; those of one's own folder are read in any case.

    Raises:
        ValueError: There is no such source, or no folder for one that needs it.
    """
    if name not in NAMES:
        raise ValueError(f"data must be one of {', '.join(NAMES)}, got {name!r}")
    if name == "avatars":
        return _avatars(Path(root or DEFAULT_ROOT))
    if not root:
        raise ValueError(f"root must be the folder of the data {name}, got none")
    if name == "folder":
        return _folder(Path(root))
    if name == "ade20k":
        from .ade20k import report
    elif name == "coco":
        from .coco import report
    elif name == "celebahq":
        from .celebahq import report
    else:
        from .deepfashion import report
    return report(root, decode)


def _avatars(root: Path) -> Report:
    """They are drawn as they are needed, so that only what draws them can be missing."""
    found = Report("avatars", root, ("https://pypi.org/project/python-avatars, https://pypi.org/project/resvg-py",))
    try:
        packages()
    except ModuleNotFoundError as error:
        found.miss(str(error))
    found.count("drawn pairs that are kept", sum(1 for _ in root.glob("*/*/*.npz")))
    return found


def _folder(root: Path) -> Report:
    found = Report("folder", root, ("examples/unite/README.md says what a folder of one's own data holds",))
    for split in SPLITS:
        if split == "test" and pairs_file(root, split) == pairs_file(root, "train"):
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
