"""How large and how long: the settings of a run, the same cases with and without ``--benchmark``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .case import BATCHES
from .machine import ROOT, cores
from .methods import COMPILED, PEERS, Method
from .record import Recorder

SIZES = (256, 1024, 4096)
BUDGET = 20.0


@dataclass
class Bench:
    """One run of the suite.

    Args:
        measuring: Whether ``--benchmark`` was given.
        sizes: Points a side.
        budget: Seconds that a peer's search may take at 4096 points a side; smaller problems get less.
        out: Directory of the results; None is where the repository keeps them.
        say: Prints a line of progress.
        busy: Cores that others kept busy when measuring began.
    """

    measuring: bool = False
    sizes: tuple[int, ...] = SIZES
    budget: float = BUDGET
    out: Path | None = None
    say: Callable[[str], None] = print
    busy: float | None = None
    recorder: Recorder = field(default_factory=Recorder)

    @classmethod
    def tiny(cls, say: Callable[[str], None] = print) -> Bench:
        """Every code path in a fraction of a second."""
        return cls(False, (36,), 0.05, None, say)

    @property
    def repeats(self) -> int:
        return 5 if self.measuring else 1

    @property
    def batches(self) -> tuple[tuple[int, int], ...]:
        """(problems, points a side), smaller where the sizes asked for are."""
        if not self.measuring:
            return ((3, 20), (6, 8))
        return tuple((count, n) for count, n in BATCHES if n <= max(self.sizes))

    @property
    def threads(self) -> int:
        """All cores that this process may use, whoever set torch's threads before."""
        return cores() if self.measuring else 1

    def budget_at(self, n: int) -> float:
        return self.budget * min(1.0, max(0.15, n / 4096)) if self.measuring else self.budget

    @property
    def peers(self) -> tuple[Method, ...]:
        """All of them; at a tiny size one setting of each, and not the one that compiles for seconds."""
        if self.measuring:
            return PEERS
        return tuple({method.name: method for method in PEERS if method is not COMPILED}.values())

    @property
    def csv(self) -> Path:
        return (self.out or ROOT / "benchmarks" / "results") / "cpu.csv"

    @property
    def png(self) -> Path:
        return (self.out or ROOT / "docs" / "images") / "benchmark.png"
