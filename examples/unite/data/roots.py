"""Whether a folder is the one that a data set's files begin in, or which one near it is."""

from __future__ import annotations

import os
from pathlib import Path


def misplaced(root: Path, expected: str, *others: str) -> str | None:
    """What is wrong with the folder of a data set as a whole, in words; None where nothing is.

    Args:
        root: What was given.
        expected: A file or folder that lies in the right one.  A folder in ``root`` that has it is named; so is the one
            above, where ``root`` has the name of this or of one of the others.
        others: Folders that lie beside it.
    """
    if not root.exists():
        return f"the folder {root} does not exist"
    if not root.is_dir():
        return f"{root} is a file, no folder"
    if (root / expected).exists():
        return None
    with os.scandir(root) as entries:
        inside = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    whole = root.resolve()
    above = [whole.parent] if whole.name in (expected, *others) else []
    near = [folder for folder in (*(root / name for name in inside), *above) if (folder / expected).exists()]
    if not near:
        return None  # what is missing in it is told piece by piece
    return f"{root} is one level off: {expected} is in {near[0]}, which is the folder to give"


def in_capitals(file: Path) -> str:
    """What a message of a missing file says of one whose ending is in capitals; nothing where there is none."""
    other = file.with_name(file.stem + file.suffix.upper())
    return f"; {other.name} is there, whose ending must be {file.suffix}" if other.is_file() else ""
