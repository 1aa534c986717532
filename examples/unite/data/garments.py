"""Which images of DeepFashion show one garment in one colour: a file's groups, or those of the In-shop names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from .lists import read_text
from .report import Report

#: Images of one garment, if there is such a file: names, apart by commas, a garment a line.
SELF_PAIRS = "deepfashion_self_pair.txt"
#: Kind of problem of its lines, in a `Report`.
LINES = f"lines of {SELF_PAIRS}"
#: WOMEN/Dresses/id_00000244/02_1_front and, without folders, fashionWOMENDressesid0000024402_1front: of either the
#: garment and its colour, and the view, which is what images of one garment differ in.
_NAMES = (re.compile(r"((?:.*/)?id_\d+/\d+)_\d+_[a-z]+"), re.compile(r"(fashion(?:WO)?MEN\w*?id\d{8}\d{2})_\d[a-z]+"))


def garment_of(name: str) -> str:
    """What images of one garment share; a name of another scheme is a garment of its own."""
    for pattern in _NAMES:
        match = pattern.fullmatch(name)
        if match:
            return match[1]
    return name


def garments(found: Report, names: Sequence[str], own: Callable[[str], str | None],
             image: Callable[[str], Path]) -> dict[str, tuple[str, ...]]:
    """For each name all names of its garment, itself among them, in one tuple that they share.

    Where ``ROOT/deepfashion_self_pair.txt`` is there, it decides: names of one line are of one garment, and lines with
    a name in common are one; a name that it lacks stands alone.  Names that are not in the split are counted, and those
    that have no image either are problems.

    Args:
        found: Of the data set; takes the problems of the file by line.
        names: Of the split.
        own: The data set's own name for a text, or None where it is no name.
        image: File of a name's image.
    """
    file = found.root / SELF_PAIRS
    key: Callable[[str], Hashable] = _listed(found, file, set(names), own, image) if file.is_file() else garment_of
    together = defaultdict(list)
    for name in names:
        together[key(name)].append(name)
    shared = {each: tuple(members) for each, members in together.items()}
    return {name: shared[key(name)] for name in names}


def _listed(found: Report, file: Path, split: set[str], own: Callable[[str], str | None],
            image: Callable[[str], Path]) -> Callable[[str], str]:
    """A function that gives the names of a garment in the file one name of theirs."""
    problems: list[str] = []
    parents: dict[str, str] = {}
    known: dict[str, bool] = {}

    def head(name: str) -> str:
        while (parent := parents.get(name, name)) != name:
            parents[name] = name = parents.get(parent, parent)  # a shorter way next time
        return name

    for line, text in enumerate(read_text(file, problems).splitlines(), start=1):
        members = []
        for cell in filter(None, map(str.strip, text.split(","))):
            name = own(cell)
            if name is not None and name not in known:
                known[name] = name in split or image(name).is_file()
            if name is None or not known[name]:
                problems.append(f"{file.name}, line {line}: there is no image {cell!r}")
            elif name in split:
                members.append(name)
        for name in members[1:]:
            parents[head(name)] = head(members[0])
    others = sum(there for name, there in known.items() if name not in split)
    if others:
        found.count(f"images of {file.name} that are not in the training split, left out", others)
    for message in problems:
        found.problem(LINES, message)
    return head
