"""Settings of the solver that few callers need."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

#: Iterations between looks at the stop rule where a look waits for the device.
GPU_CHECK_EVERY = 4


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
        anderson_depth: Differences that Anderson acceleration keeps, at most 63; 0 turns it off.
        anderson_start: Plain iterations at the start of a level.
        safeguard, backtrack: An accelerated step whose violation exceeds ``safeguard`` times the best since the last
            restart is cut to the fraction ``backtrack``, and the history is forgotten.
        trust_region: Furthest that acceleration moves any potential beyond the plain step, in units of eps.
        check_every: Iterations between looks at the stop rule.  None: 1 where a look costs nothing, on the CPU and
            where one kernel runs a whole solve; else `GPU_CHECK_EVERY`, 4, for a look waits for the device.
        adjoint_tol: Residual of the backward's linear system, relative to its right-hand side, in the norm of the
            preconditioner: the error of a gradient through the plan is of this order, and of the violation's.
        adjoint_max_iter: Most steps of conjugate gradients in one backward, each a pass over the cost.
        block_bytes: Memory that streamed costs and plans are cut to, in bytes.
        storage: Type that a dense or materialised float32 cost is kept in, "float16" or "bfloat16", where the backend
            has that (triton): a pass reads half the bytes, and computes in float32.  A cost c is rounded by up to
            :math:`2^{-11} c` (float16; at most 65504, and by up to 2^-25 below 6e-5) or :math:`2^{-8} c` (bfloat16),
            an error of that over eps in the exponent of the plan; potentials, plan and value are those of the rounded
            cost.  Gradients go to the cost that was given, in its own type.  None keeps the solver's type, float32 for
            a cost given in half precision.
        progress: True for a line on standard error at every check, or a callable that gets a `Progress` there.
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
    check_every: int | None = None
    adjoint_tol: float = 1e-6
    adjoint_max_iter: int = 2000
    block_bytes: int = 1 << 26
    storage: str | None = None
    progress: bool | Callable[[Progress], None] = False

    def __post_init__(self) -> None:
        for name, (kind, wanted, holds) in NUMBERS.items():
            value = getattr(self, name)
            if value is None and name == "check_every":
                continue
            if isinstance(value, bool) or not isinstance(value, kind):
                noun = "an integer" if kind is Integral else "a number"
                raise TypeError(f"SolverOptions.{name} must be {noun}, got {value!r}")
            if not holds(value):
                raise ValueError(f"SolverOptions.{name} must be {wanted}, got {value}")
        if self.storage not in (None, "float16", "bfloat16"):
            raise ValueError(f"SolverOptions.storage must be None, 'float16' or 'bfloat16', got {self.storage!r}")
        if not isinstance(self.progress, bool) and not callable(self.progress):
            raise TypeError(f"SolverOptions.progress must be True, False or a callable, got {self.progress!r}")

    def looks_every(self, asynchronous: bool) -> int:
        """``check_every``, or its default where a look waits for the device (or does not)."""
        if self.check_every is not None:
            return self.check_every
        return GPU_CHECK_EVERY if asynchronous else 1


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

    def tell(self, progress: bool | Callable[[Progress], None]) -> None:
        """Hand it to a callable, or print it where ``progress`` is True."""
        if callable(progress):
            progress(self)
        elif progress:
            print(f"pass {self.n_iter:5d}  eps {self.reg:.3g}  violation {self.violation:.3e}  "
                  f"running {self.running}", file=sys.stderr)


#: Every option that is a number: its kind, the values it may have in words, and as a test that NaN fails.
NUMBERS: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    "anneal_start": (Real, "positive and finite", lambda value: 0 < value < math.inf),
    "anneal_factor": (Real, "in (0, 1)", lambda value: 0 < value < 1),
    "anneal_violation": (Real, "positive", lambda value: value > 0),
    "anneal_accuracy": (Real, "positive", lambda value: value > 0),
    "anneal_order": (Integral, "at least 0", lambda value: value >= 0),
    "anneal_passes": (Integral, "at least 1", lambda value: value >= 1),
    "anderson_depth": (Integral, "from 0 to 63", lambda value: 0 <= value <= 63),
    "anderson_start": (Integral, "at least 0", lambda value: value >= 0),
    "safeguard": (Real, "at least 1", lambda value: value >= 1),
    "backtrack": (Real, "in [0, 1)", lambda value: 0 <= value < 1),
    "trust_region": (Real, "positive", lambda value: value > 0),
    "check_every": (Integral, "at least 1", lambda value: value >= 1),
    "adjoint_tol": (Real, "in [0, 1)", lambda value: 0 <= value < 1),
    "adjoint_max_iter": (Integral, "at least 1", lambda value: value >= 1),
    "block_bytes": (Integral, "at least 4096", lambda value: value >= 4096),
}
