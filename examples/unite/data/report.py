"""What there is of a data set on the disk: one report, which the check prints and by which training refuses.

Each data set on the disk has, beside its class, a function ``report(root, decode=False) -> Report`` that looks at all
of it.  What it shares with the class is one function that reads a split and notes into a `Report` what it finds; the
class then calls `Report.require`, so that training refuses with the words of the check.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from .check import Unreadable, load_picture, picture_size
from .roots import misplaced

T = TypeVar("T")

#: Messages of a kind of problem that are shown where nobody asks for another number.
EXAMPLES = 3


class Count(NamedTuple):
    """How many of something there are, and how many the published data set has (None: nobody says)."""

    what: str
    number: int
    published: int | None


@dataclass
class Report:
    """What is there, what is missing, what is wrong, and where the data set is to be had.

    Attributes:
        name: Of the source, as ``--data`` takes it.
        root: The folder that was looked at.
        where: Lines: the official page, the archives, and what is to be done with them.
        found: Counts, in the order in which they are told.
        missing: What training cannot start without: a folder, a file, a list; one message each.
        problems: Kind of problem, in the plural ("images without labels") -> messages, each with a file's name, in the
            order in which they were found (the keys of a dictionary).
        astray: What is wrong with the root itself, which is told before anything else.
        of_pairs: Those messages of both that are about the training split's list: pseudo pairs alone do without it.
        unlisted: Whether the training split has no list, in a data set whose task does without it.
    """

    name: str
    root: Path
    where: tuple[str, ...]
    found: list[Count] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: dict[str, dict[str, None]] = field(default_factory=dict)
    astray: str | None = None
    of_pairs: set[str] = field(default_factory=set)
    unlisted: bool = False

    def count(self, what: str, number: int, published: int | None = None) -> None:
        """Note how many there are of something; another number than the published is no problem."""
        self.found.append(Count(what, number, published))

    def miss(self, message: str) -> None:
        """Note something missing, once however often it is found so."""
        if message not in self.missing:
            self.missing.append(message)

    def problem(self, kind: str, message: str) -> None:
        """Note a problem; a message that was noted already is not repeated."""
        self.problems.setdefault(kind, {})[message] = None

    def place(self, expected: str, *others: str) -> None:
        """Note a root that is none, or one level off (`roots.misplaced`)."""
        self.astray = misplaced(self.root, expected, *others)

    def sizes(self, files: Collection[Path]) -> Iterator[tuple[Path, tuple[int, int]]]:
        """Width and height of every picture by its head; those that no decoder takes are noted."""
        return self._read(files, picture_size, "reading sizes")

    def pictures(self, files: Collection[Path]) -> Iterator[tuple[Path, Image.Image]]:
        """Every picture, decoded whole; those that no decoder takes are noted."""
        return self._read(files, load_picture, "reading pictures")

    def _read(self, files: Collection[Path], read: Callable[[Path], T], what: str) -> Iterator[tuple[Path, T]]:
        """A terminal sees a bar."""
        from tqdm import tqdm  # of the extra "unite"

        for file in tqdm(files, desc=f"{self.name}: {what}", disable=None):
            try:
                yield file, read(file)
            except (FileNotFoundError, Unreadable) as error:
                reason = error.reason if isinstance(error, Unreadable) else "it is gone"
                self.problem("pictures that cannot be read", f"{self.short(file)}: {reason}")

    def decode(self, files: Collection[Path]) -> None:
        """Note the pictures that no decoder takes."""
        for _ in self.pictures(files):
            pass

    def short(self, file: Path) -> str:
        """A file's name below the root."""
        return str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file)

    @property
    def right(self) -> bool:
        """Whether nothing is missing and nothing is wrong."""
        return not (self.astray or self.missing or self.problems)

    @property
    def right_for_pseudo_pairs(self) -> bool:
        """Whether training can start with pseudo pairs alone: what is missing or wrong is the training split's list."""
        told = {*self.missing, *(each for messages in self.problems.values() for each in messages)}
        return not self.astray and told <= self.of_pairs

    def complaints(self, examples: int = EXAMPLES) -> list[str]:
        """Lines: what is missing and what is wrong, up to ``examples`` messages of each kind of problem."""
        return self._astray() + self._details(examples)

    def _astray(self) -> list[str]:
        return [self.astray] if self.astray else []

    def _details(self, examples: int) -> list[str]:
        lines = [f"missing: {message}" for message in self.missing]
        for kind, messages in self.problems.items():
            lines.append(f"{kind}: {len(messages):,}")
            lines += [f"  {message}" for message in list(messages)[:examples]]
            if len(messages) > examples:
                lines.append(f"  ... and {len(messages) - examples:,} more")
        return lines

    def lines(self, examples: int = EXAMPLES) -> list[str]:
        """The whole report; where the data set is to be had is told where something is missing."""
        lines = [f"{self.name} in {self.root}", *self._astray()]
        for what, number, published in self.found:
            lines.append(f"{what}: {number:,}" + (f" (published: {published:,})" if published is not None else ""))
        lines += self._details(examples)
        if self.missing:
            lines += ["where to get it:", *(f"  {line}" for line in self.where)]
        return lines

    def require(self) -> None:
        """Go on only with a data set that is right.

        Raises:
            DataError: Something is missing or wrong.
        """
        if not self.right:
            raise DataError(self)


class DataError(ValueError):
    """A data set that cannot be trained on; ``report`` has all that is wrong."""

    def __init__(self, report: Report) -> None:
        self.report = report
        words = [f"{report.root} cannot be used as {report.name}:", *report.complaints(),
                 shlex.join(("python", "-m", "examples.unite.check", "--data", report.name, "--root",
                             str(report.root))) + " says more"]
        super().__init__("\n  ".join(words))
