"""Exemplar lists, ``name,exemplar1,...,exemplarK`` a line, the easiest first: pairs.csv of a folder, and
``ROOT/lists/train.csv`` and ``ROOT/lists/test.csv`` of the data sets that have images and no pairs.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .report import Report

#: Endings of images, which names in a list may have or leave out.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: A first line that names its columns: name,exemplar or name,exemplar1,exemplar2,...
_HEADER = re.compile(r"name(,exemplar[ _]?\d*)+", re.IGNORECASE)
#: Kind of problem of a line, in a `Report`.
LINES = "lines of exemplar lists"

#: The command that makes a list, and the weights that it wants, under a name of the reader's choice.
_RETRIEVE = ("python", "-m", "examples.unite.retrieve")
WEIGHTS, WEIGHTS_FROM = "VGG19.pth", "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"

#: A name and the names of its exemplars, the easiest first.
Row = tuple[str, tuple[str, ...]]


class Line(NamedTuple):
    """A line of a list, and its number, from 1 on."""

    name: str
    exemplars: tuple[str, ...]
    number: int


def list_file(root: Path, split: str) -> Path:
    """Where the list of a split is."""
    return root / "lists" / f"{split}.csv"


def exemplar_rows(report: Report, split: str, names: Collection[str], exemplars: Collection[str],
                  retrieval: Sequence[str | Path], passed_over: Collection[str] = (),
                  spelled: Callable[[str], str | None] | None = None) -> tuple[Row, ...]:
    """The list of a split of a data set, `list_file`, in the data set's own names; only what it lists is used.

    A name may have a suffix and folders before it (``training/ADE_train_00000001.jpg``), with slashes of either kind.
    What is wrong is noted in the report by file and line.  An exemplar must be one of ``exemplars``; where these are
    another split than ``names``, no exemplar may be in both.  An image that is listed as its own exemplar, as some are
    in the authors' lists, is left out and counted.

    Args:
        report: Of the data set; a list that is not there is noted as missing, with the command that makes one.
        split: "train" or "test".
        names: Of the split.
        exemplars: Names that may be exemplars: of the training split, or ``names`` itself.
        retrieval: Where that command finds images and gallery: its options.
        passed_over: Images that are there and are not used: as if the list did not name them.
        spelled: The data set's own name for another spelling of it, or None where it is none.
    """
    file = list_file(report.root, split)
    if not file.is_file():
        command = shlex.join(map(str, (*_RETRIEVE, *retrieval, "-k", 20, "-o", file, "--file", WEIGHTS)))
        message = (f"{report.short(file)}, the exemplars of split {split}; {command} makes it ({WEIGHTS}: "
                   f"torchvision's state dict of vgg19, {WEIGHTS_FROM})")
        if split == "train":
            message += "; with pseudo pairs alone (train.pseudo_share=1) none is needed"
            report.of_pairs.add(message)
        report.miss(message)
        return ()
    if not names or not exemplars:
        return ()  # what is missing is told already
    problems: list[str] = []
    own = {name: name for name in names}
    given = own if exemplars is names else {name: name for name in exemplars}
    unused = {name: name for name in passed_over}
    rows, empty, selves = [], 0, 0
    lines: dict[str, int] = {}
    found = read_pairs(file, problems)
    for name, refs, line in found:
        known = _resolved(name, own, spelled)
        if known is None and _resolved(name, unused, spelled) is not None:
            continue
        if known is None:
            problems.append(f"{file.name}, line {line}: split {split} has no image {name!r}")
        kept = []
        for ref in refs:
            exemplar = _resolved(ref, given, spelled)
            if exemplar is not None and exemplar == known:
                selves += 1
            elif exemplar is not None and (given is own or exemplar not in own):
                kept.append(exemplar)
            elif exemplar is not None or _resolved(ref, unused, spelled) is None:
                listed = _resolved(ref, own, spelled) is not None
                problems.append(f"{file.name}, line {line}: {_refusal(ref, split, exemplar is not None, listed)}")
        if known is not None and lines.setdefault(known, line) != line:
            problems.append(f"{file.name}, line {line}: {known!r} stands in line {lines[known]} already")
        elif known is not None and kept:
            rows.append((known, tuple(kept)))
        empty += not kept
    if not found and not problems:
        problems.append(f"{file.name} lists no pairs")
    elif not rows and not problems:
        problems.append(f"{file.name} lists no exemplar that is used")
    for message in (f"{file.parent.name}/{problem}" for problem in problems):
        report.problem(LINES, message)
        if split == "train":
            report.of_pairs.add(message)
    report.count(f"{split} images with exemplars", len(rows))
    if selves:
        report.count(f"exemplars of {report.short(file)} that are the image itself, left out", selves)
    if empty and not problems:
        report.count(f"lines of {report.short(file)} without an exemplar that is used", empty)
    return tuple(rows)


def _refusal(ref: str, split: str, exemplar: bool, listed: bool) -> str:
    """Why an image cannot be an exemplar: whether it is one of those, and an image of the split."""
    if exemplar:
        return f"{ref!r} is in both splits, and so no exemplar of split {split}"
    if listed:
        return f"{ref!r} is an image of split {split}, whose exemplars are of the training split"
    return f"there is no image {ref!r}"


def _resolved(text: str, known: dict[str, str], spelled: Callable[[str], str | None] | None) -> str | None:
    """The data set's own name, the longest end of a path that it knows."""
    name = text.replace("\\", "/")
    while name not in known:
        before, slash, name = name.partition("/")
        if not slash:
            return known.get(spelled(before) or "") if spelled is not None else None
    return known[name]


def read_pairs(file: Path, problems: list[str]) -> list[Line]:
    """The lines of a list, names without suffixes; what is wrong goes into ``problems``."""
    found: list[Line] = []
    seen: dict[str, int] = {}
    try:
        lines = list(csv.reader(io.StringIO(read_text(file, problems), newline="")))
    except csv.Error as error:
        problems.append(f"{file.name} cannot be read: {error}")
        lines = []
    for number, cells in enumerate(lines, start=1):
        names = [stem(cell.strip()) for cell in cells]
        if not any(names) or (number == 1 and _HEADER.fullmatch(",".join(names))):
            continue
        if len(names) < 2 or not all(names):
            problems.append(f"{file.name}, line {number}: a line is name,exemplar[,exemplar...],"
                            f" got {','.join(cells)!r}")
            continue
        if names[0] in seen:
            problems.append(f"{file.name}, line {number}: {names[0]!r} stands in line {seen[names[0]]} already")
            continue
        seen[names[0]] = number
        found.append(Line(names[0], tuple(names[1:]), number))
    return found


def read_text(file: Path, problems: list[str]) -> str:
    """What a file says; nothing where it is not in UTF-8, which is a problem."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        problems.append(f"{file.name}, line {line}: not in UTF-8 (byte 0x{error.object[error.start]:02x}); save it as "
                        "UTF-8")
        return ""


def stem(name: str) -> str:
    """A name without the suffix of an image."""
    start, suffix = os.path.splitext(name)
    return start if suffix.lower() in SUFFIXES else name
