"""Solves pass by pass in which all work on vectors is done by kernels (`uotlib.kernels.measure`): nothing waits for the
device but, with ``tol > 0``, one number every few passes; then problems that ended are dropped from all launches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.tiles import Tile
from ..options import Progress
from ..outcome import SCALARS, StoredOutcome
from ..precision import ROUNDOFF
from . import triton_small
from .triton_launch import ceil_div, kernel, launch_options, on, planes
from .triton_passes import Reading, reading_of
from .triton_state import State, size_of

if TYPE_CHECKING:
    from ..operators import GibbsKernel
    from ..options import SolverOptions
    from ..problem import Problem
    from .triton import TritonBackend

#: Partial log-sum-exps of a chunk's columns that are merged together.
MERGED = 4
#: Which of `triton_small.constants_of` each kernel is compiled for.
BEGINS = ("ENTROPY", "TEXTBOOK", "ANNEAL_START")
DECIDES = ("ENTROPY", "TEXTBOOK", "SYNCHRONOUS", "CHECK_EVERY", "ANNEAL_FACTOR", "ANNEAL_VIOLATION", "ANNEAL_ACCURACY",
           "ANNEAL_ORDER", "ANNEAL_PASSES", "DEPTH", "ANDERSON_START", "SAFEGUARD", "BACKTRACK", "SLOTS")
MOVES = ("ENTROPY", "ANNEAL_ORDER", "DEPTH", "TRUST_REGION", "SLOTS")
#: eps, relative to the spread of the cost, below which parts of a plan are so empty that sweeps may leave them out.
SKIPPING_REG = 0.02
#: Entries of a cost from which that may be left to the device: beside a read of it, two launches that find nothing to
#: do are then little.
UNSEEN_ENTRIES = 1 << 24


def why_not(batch: int, max_iter: int, options: SolverOptions) -> str | None:
    """None if the kernels have the whole loop, else what they have no room for: that goes by `uotlib.solver`'s."""
    if batch == 0:
        return "the batch is empty"
    if max_iter > triton_small.MAX_PASSES:
        return f"passes are counted up to {triton_small.MAX_PASSES}, got max_iter={max_iter}"
    for name, most in (("anderson_depth", triton_small.MAX_DEPTH), ("anneal_order", triton_small.MAX_ORDER)):
        if getattr(options, name) > most:
            return f"SolverOptions.{name} fits up to {most}, got {getattr(options, name)}"
    return None


def iterate(backend: TritonBackend, problem: Problem, gibbs: GibbsKernel, method: str, max_iter: int,
            tol: float | None, init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> StoredOutcome:
    """See `uotlib.backends.base.Backend.iterate`."""
    return _Iteration(backend, problem, gibbs, method, max_iter, tol, init, options).run()


class _Iteration:
    """The loop of `uotlib.solver`, whose passes are launches alone."""

    def __init__(self, backend: TritonBackend, problem: Problem, gibbs: GibbsKernel, method: str, max_iter: int,
                 tol: float | None, init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> None:
        self.backend, self.problem, self.gibbs = backend, problem, gibbs
        self.textbook, self.max_iter, self.tol, self.options = method == "sinkhorn", max_iter, tol, options
        self.synchronous = tol is None or tol > 0
        self.check_every = options.looks_every(asynchronous=True)
        self.tile = backend.table.step_tile(max(gibbs.n, gibbs.m))
        self.constants = triton_small.constants_of(method, problem.reg_type, tol, options)
        self.chunks = ceil_div(max(gibbs.n, gibbs.m), self.tile.cols)
        batch, device = problem.batch, problem.device
        self.answers = torch.empty(batch * (3 * gibbs.n + 3 * gibbs.m + SCALARS), dtype=torch.float64, device=device)
        self.table, self.sparse = self._gaps()
        self.size = size_of(self.textbook, self.constants)
        self.tol_bits = triton_small.bits_of(tol or triton_small.DEFAULT_TOL)
        self.state = State.begin(problem, gibbs, self.size, self.chunks)
        self._enter()
        self._begin(None if init is None else init[1])

    def run(self) -> StoredOutcome:
        passes = 0
        while True:
            parity = passes & 1
            passes += 1
            self.reading.read(parity, passes > 1)
            steps = passes - 1 if self.textbook else passes
            last = steps == self.max_iter
            looks = self.synchronous and steps > 0 and steps % self.check_every == 0
            measures = not self.textbook or last or looks
            self._measure(parity, measures)
            if measures:
                self._decide(parity, passes)
            if not (last or self.textbook):
                self._move(parity)  # of problems that have ended too, which nobody looks at
            if last or (looks and self._dropped(parity, passes)):
                return self._outcome()

    def _begin(self, start: Tensor | None) -> None:
        state, gibbs, rows, cols = self.state, self.gibbs, self.problem.rows, self.problem.cols
        reach = [flags.contiguous().view(torch.uint8) for flags in gibbs.reachable(rows.massive, cols.massive)]
        spread = gibbs.spread() if start is None and not self.textbook else None
        given = [None if values is None else values.contiguous() for values in (
            rows.mass, rows.penalty.tau, cols.mass, cols.penalty.tau, self.problem.reg, spread, start)]
        self._launch("begin_kernel", state.rows, state.cols, state.numbers, state.own, *given, *reach, self.beta,
                     state.items, state.n, state.m, state.count, self.chunks, self.max_iter,
                     **{name: self.constants[name] for name in BEGINS})

    def _gaps(self) -> tuple[Tensor | None, Tensor | None]:
        """A table to leave parts of the cost out by, where it may pay, and for which problems: is eps small anywhere?

        Waits for the device for that, or with ``tol=0`` leaves it to the device: no problem is dropped then.
        """
        cost = self.gibbs.matrix
        if cost is None or not self.backend.may_skip(cost):
            return None, None
        if not self.synchronous and cost.numel() < UNSEEN_ENTRIES:
            return None, None
        sparse = self.problem.reg < SKIPPING_REG * self.gibbs.spread()
        if self.synchronous:
            return self.backend.sweep_table(cost) if bool(sparse.any()) else None, None
        flags = sparse.view(torch.uint8)
        return self.backend.sweep_table(cost, flags), flags

    def _enter(self) -> None:
        """What belongs to a number of active problems: scratch memory, and the launches that read the cost."""
        state = self.state
        self.sums = state.own.new_empty(planes().SUMS, state.count, self.chunks)
        slots = self.constants["SLOTS"]
        self.gram = None if self.textbook else state.own.new_empty(state.count, self.chunks, slots, slots)
        self.reading: Reading = reading_of(self.backend, self.gibbs, self.table, self.sparse, state)
        features = self.gibbs.features
        self.beta = None if features is None else features.beta

    def _dropped(self, parity: int, passes: int) -> bool:
        """Look at how many problems have ended and go on without them; whether none is left."""
        state = self.state
        if self.options.progress is not False:
            eps, violation = state.eps[parity], state.violation
            Progress(passes, float(eps.max()), float(violation.max()), state.count).tell(self.options.progress)
        ended = int(state.done.sum())
        if ended == state.count:
            return True
        if ended:
            kept = torch.argsort(state.done, stable=True)[: state.count - ended]
            self.state = state.select(kept, self.gibbs)
            self._enter()
        return False

    def _measure(self, parity: int, measures: bool) -> None:
        state, reading = self.state, self.reading
        self._launch("measure_kernel", state.rows, state.cols, state.numbers, state.own, self.sums, reading.anchors,
                     reading.totals, reading.mask, self.beta, state.items, state.n, state.m, state.count, self.chunks,
                     reading.parts, parity, PARTS=MERGED, TEXTBOOK=self.textbook,
                     ENTROPY=state.entropy, MEASURE=measures)

    def _decide(self, parity: int, passes: int) -> None:
        state = self.state
        constants = {name: self.constants[name] for name in DECIDES}
        constants["CHECK_EVERY"] = triton_small.count(self.check_every)
        self._launch("decide_kernel", state.rows, state.cols, state.numbers, state.own, self.sums, self.gram,
                     state.problems, self.answers, state.n, state.m, state.count, self.problem.batch, self.chunks,
                     parity, passes, self.max_iter, self.tol_bits,
                     PARTS=self.tile.rows, ROUNDOFF=ROUNDOFF[self.problem.dtype], STAGES=self.tile.stages, **constants)

    def _move(self, parity: int) -> None:
        state = self.state
        self._launch("move_kernel", state.rows, state.cols, state.numbers, state.own, self.gram, self.beta,
                     state.items, state.n, state.m, state.count, self.chunks, parity,
                     STAGES=self.tile.stages, **{name: self.constants[name] for name in MOVES})

    def _launch(self, name: str, *arguments: Any, **constants: Any) -> None:
        tile: Tile = self.tile
        with on(self.answers.device):
            kernel(name)[(self.state.count * self.chunks,)](
                *arguments, BLOCK=tile.cols, OWN=self.size.own, **constants, **launch_options(tile))

    def _outcome(self) -> StoredOutcome:
        """Columns that took no part get their potentials, and every pair its certificate."""
        problem, n, m = self.problem, self.gibbs.n, self.gibbs.m
        batch, (rows, cols) = problem.batch, (problem.rows, problem.cols)
        outcome = StoredOutcome(self.answers, batch, n, m)
        exact = self.gibbs.col_lse(outcome.pair.log_u, problem.reg, torch.isneginf(outcome.pair.log_v))
        sums = self.answers.new_empty(2, batch, self.chunks)
        given = [values.contiguous() for values in (exact, rows.mass, cols.mass, rows.penalty.tau, cols.penalty.tau,
                                                    problem.reg)]
        options = launch_options(self.tile)
        with on(self.answers.device):
            kernel("complete_kernel")[(batch * self.chunks,)](
                self.answers, *given, sums, n, m, batch, self.chunks, BLOCK=self.tile.cols,
                ENTROPY=self.constants["ENTROPY"], **options)
            kernel("certify_kernel")[(batch,)](
                self.answers[3 * batch * (n + m) :], sums, given[-1], batch, self.chunks, self.tol_bits,
                PARTS=self.tile.rows, ROUNDOFF=ROUNDOFF[problem.dtype], **options)
        return StoredOutcome(self.answers, batch, n, m)  # what was taken from the other one may have changed
