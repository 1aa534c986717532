"""How large and how long: the settings of a run, the same cases with and without ``--benchmark``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .case import BATCHES, TARGETS, Target
from .gradients import DIFFERENTIABLE, LOSSES, OTT, Differentiable
from .machine import ROOT, cores
from .methods import COMPILED, EAGER, PEERS, Method
from .methods import OTT as OTT_SOLVERS
from .record import Recorder

SIZES = (256, 1024, 4096)
BUDGET = 4.0


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

    def peers_to(self, n: int, target: Target) -> tuple[Method, ...]:
        """Peers that are measured on the way to a target, without runs that would say nothing.

        At fewer than 1024 points only the easier half; on the harder half no eager torch, whose iterations are those of
        the compiled one; and OTT-JAX with the one of its settings that is the best at this eps.
        """
        if not self.measuring:
            return self.peers
        easy = target in TARGETS[:2]
        if n < 1024 and not easy:
            return ()
        left_out = (OTT_SOLVERS[0] if target.reg < 1e-3 else OTT_SOLVERS[1], *((EAGER,) * (not easy)))
        return tuple(peer for peer in self.peers if peer not in left_out)

    @property
    def differentiable(self) -> tuple[Differentiable, ...]:
        """Peers that give gradients; at a tiny size not the one that compiles for seconds."""
        return tuple(method for method in DIFFERENTIABLE if self.measuring or method is not OTT)

    def differentiable_to(self, n: int, loss: str) -> tuple[Differentiable, ...]:
        """Those for one loss: all of them, but at more than 1024 points only for the plan and the cost."""
        return self.differentiable if n <= 1024 or loss == LOSSES[0] else ()

    @property
    def gradient_sizes(self) -> tuple[int, ...]:
        """1024 if it is among the sizes, and the largest."""
        return tuple(sorted({n for n in self.sizes if n == 1024} | {max(self.sizes)}))

    @property
    def csv(self) -> Path:
        return (self.out or ROOT / "benchmarks" / "results") / "cpu.csv"

    @property
    def png(self) -> Path:
        return (self.out or ROOT / "docs" / "images") / "benchmark.png"
