"""Splits that are files of names: ``ROOT/train.txt`` and ``ROOT/val.txt``, a name a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .lists import Row, exemplar_rows, read_text
from .report import Report

FILES = {"train": "train.txt", "test": "val.txt"}
#: Kind of problem of a line, in a `Report`.
LINES = "lines of splits"


def split_names(report: Report, split: str, own: Callable[[str], str | None]) -> tuple[str, ...]:
    """The names of a split in the order of its file; what is missing or wrong is noted, by file and line.

    Args:
        report: Of the data set.
        split: "train" or "test".
        own: The data set's own name for the text of a line, or None where it is no name.
    """
    file = report.root / FILES[split]
    if not file.is_file():
        report.miss(f"{file.name}, the names of split {split}, one a line")
        return ()
    problems: list[str] = []
    names: dict[str, int] = {}
    for line, text in enumerate(read_text(file, problems).splitlines(), start=1):
        if not text.strip():
            continue
        name = own(text.strip())
        if name is None:
            problems.append(f"{file.name}, line {line}: {text.strip()!r} is no name of an image")
        elif name in names:
            problems.append(f"{file.name}, line {line}: {name!r} stands in line {names[name]} already")
        else:
            names[name] = line
    if not names and not problems:
        problems.append(f"{file.name} lists no names")
    for message in problems:
        report.problem(LINES, message)
    return tuple(names)


def counted_names(report: Report, split: str, own: Callable[[str], str | None], what: str, published: int,
                  folders: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """`split_names`, counted as ``what``, and whether the folders with their files are there; those that are not are
    noted.
    """
    names = split_names(report, split, own)
    report.count(f"{split} {what} in {FILES[split]}", len(names), published)
    missing = [folder for folder in folders if not (report.root / folder).is_dir()]
    for folder in missing:
        report.miss(f"{folder}/")
    return names, not missing


def listed_rows(report: Report, split: str, splits: Mapping[str, tuple[str, ...]], images: Path,
                spelled: Callable[[str], str | None] | None = None) -> tuple[Row, ...]:
    """The exemplar list of a split (`lists.exemplar_rows`), whose exemplars are of the training split.

    Args:
        report: Of the data set; a list that is not there is noted as missing, with the command that makes one.
        split: "train" or "test".
        splits: Names of the training split and of ``split``.
        images: Folder where the names in the files of splits begin.
        spelled: As `lists.exemplar_rows` takes it.
    """
    query, gallery = (report.root / FILES[each] for each in (split, "train"))
    if split == "test":
        training = set(splits["train"])
        for name in splits["test"]:
            if name in training:
                report.problem("names in both splits", f"{name!r} is in {gallery.name} and in {query.name}")
    return exemplar_rows(report, split, splits[split], splits["train"],
                         ("--query", query, "--gallery", gallery, "--root", images, "--suffix", ".jpg"),
                         spelled=spelled)
