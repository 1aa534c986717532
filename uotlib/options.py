"""Settings of the solver that few callers need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class SolverOptions:
    """Schedule, acceleration, memory and progress of `uotlib.unbalanced_sinkhorn`.

    Args:
        anneal_start: First eps of the annealing of ``method="auto"``, relative to the spread of the cost (half the
            difference of its largest and smallest finite entries).  Annealing is skipped where eps is larger.
        anneal_factor: eps of a level over eps of the level before, in (0, 1).
        anneal_violation, anneal_accuracy: A level is left at the violation
            ``min(anneal_violation, anneal_accuracy * sqrt(eps / spread))``.
        anneal_order: Degree in eps of the extrapolation that starts a level from the ends of those before; 0 starts it
            from the last end.
        anneal_passes: Most passes over the cost in one level.
        anderson_depth: Differences that Anderson acceleration keeps; 0 turns it off.
        anderson_start: Plain iterations at the start of a level.
        safeguard, backtrack: An accelerated step whose violation exceeds ``safeguard`` times the best since the last
            restart is cut to the fraction ``backtrack``, and the history is forgotten.
        trust_region: Furthest that acceleration moves any potential beyond the plain step, in units of eps.
        check_every: Iterations between looks at the stop rule (each one waits for the device on a GPU).
        block_bytes: Memory that streamed costs and plans are cut to, in bytes.
        progress: True for a line on standard error every ``check_every`` checks, or a callable that gets a
            `Progress` at every check.
    """

    anneal_start: float = 0.3
    anneal_factor: float = 0.5
    anneal_violation: float = 0.1
    anneal_accuracy: float = 0.3
    anneal_order: int = 2
    anneal_passes: int = 25
    anderson_depth: int = 10
    anderson_start: int = 1
    safeguard: float = 2.0
    backtrack: float = 0.25
    trust_region: float = 10.0
    check_every: int = 1
    block_bytes: int = 1 << 26
    progress: bool | Callable[[Progress], None] = False

    def __post_init__(self) -> None:
        _require(0 < self.anneal_factor < 1, "anneal_factor", "in (0, 1)", self.anneal_factor)
        _require(self.anneal_start > 0, "anneal_start", "positive", self.anneal_start)
        _require(self.anneal_violation > 0, "anneal_violation", "positive", self.anneal_violation)
        _require(self.anneal_accuracy > 0, "anneal_accuracy", "positive", self.anneal_accuracy)
        _require(self.anneal_order >= 0, "anneal_order", "at least 0", self.anneal_order)
        _require(self.anneal_passes >= 1, "anneal_passes", "at least 1", self.anneal_passes)
        _require(self.anderson_depth >= 0, "anderson_depth", "at least 0", self.anderson_depth)
        _require(self.anderson_start >= 0, "anderson_start", "at least 0", self.anderson_start)
        _require(self.safeguard >= 1, "safeguard", "at least 1", self.safeguard)
        _require(0 <= self.backtrack < 1, "backtrack", "in [0, 1)", self.backtrack)
        _require(self.trust_region > 0, "trust_region", "positive", self.trust_region)
        _require(self.check_every >= 1, "check_every", "at least 1", self.check_every)
        _require(self.block_bytes >= 1 << 12, "block_bytes", "at least 4096", self.block_bytes)


@dataclass(frozen=True)
class Progress:
    """What a progress callable is told.

    Args:
        n_iter: Passes over the cost so far (the most of any item of the batch).
        reg: Current eps (the largest of the batch): above the target while annealing.
        violation: Largest violation of the items still running.
        running: Items of the batch that have not finished.
    """

    n_iter: int
    reg: float
    violation: float
    running: int


def _require(holds: bool, name: str, wanted: str, received: float) -> None:
    if not holds or (isinstance(received, float) and math.isnan(received)):
        raise ValueError(f"SolverOptions.{name} must be {wanted}, got {received}")
