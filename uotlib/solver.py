r"""The one loop: textbook Sinkhorn, and its annealed, translated and accelerated form.  Shared by every backend.

The state is the column potential g.  A sweep from g gives f, the marginals of the plan of (f, g) and the next g in one
pass over the cost, so that every pass certifies its own pair.  With ``tol = 0`` nothing here waits for the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import certificate
from .anderson import Anderson
from .annealing import Annealing
from .operators import GibbsKernel
from .options import Progress, SolverOptions
from .outcome import Outcome, Pair
from .precision import ROUNDOFF
from .problem import Problem
from .process import on_threads

#: Passes without progress, near what rounding allows, after which the solver stops.
STALL_PASSES = 40


def solve(problem: Problem, kernel: GibbsKernel, method: str, max_iter: int, tol: float | None,
          init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome:
    """Run the loop on checked input; see `uotlib.unbalanced_sinkhorn` for the arguments."""
    if kernel.matrix is not None:
        outcome = kernel.backend.solve(problem, kernel.matrix, method, max_iter, tol, init, options)
        if outcome is not None:
            return outcome
    loop = _Textbook if method == "sinkhorn" else _Accelerated
    threads = torch.get_num_threads()
    with torch.no_grad():
        outcome = kernel.backend.iterate(problem, kernel, method, max_iter, tol, init, options)
        if outcome is not None:
            return outcome
        with on_threads(1 if problem.device.type == "cpu" else threads):
            return loop(problem, kernel, max_iter, tol, init, options, threads).run()


class _Loop:
    """What both methods share: the active items, a step, the bookkeeping of finished items."""

    def __init__(self, problem: Problem, kernel: GibbsKernel, max_iter: int, tol: float | None,
                 init: tuple[Tensor, Tensor] | None, options: SolverOptions, threads: int) -> None:
        self.threads = threads
        self.problem, self.kernel, self.max_iter, self.tol, self.options = problem, kernel, max_iter, tol, options
        self.synchronous = tol is None or tol > 0
        self.check_every = options.looks_every(kernel.backend.asynchronous)
        self.items: Tensor | None = None
        self.rows, self.cols, self.reg = problem.rows, problem.cols, problem.reg
        self.eps = self.reg
        batch, n, m = problem.batch, kernel.n, kernel.m
        self.g = torch.zeros(batch, m, dtype=torch.float64, device=problem.device) if init is None else init[1]
        self.reachable = torch.ones(batch, m, dtype=torch.bool, device=problem.device)
        self.structure = kernel.reachable(self.rows.massive, self.cols.massive) if kernel.backend.asynchronous else None
        self.lost = torch.zeros(batch, dtype=torch.bool, device=problem.device)
        self.record = torch.full((batch,), torch.inf, dtype=torch.float64, device=problem.device)
        self.record_pass = torch.zeros(batch, dtype=torch.int64, device=problem.device)
        self.shift = _mass_scale(problem)
        self.passes = 0

        def empty(size: int) -> Tensor:
            return torch.full((batch, size), torch.nan, dtype=torch.float64, device=problem.device)

        self.pair = Pair(empty(n), empty(m), empty(n), empty(m), empty(n), empty(m))
        self.violation = torch.full((batch,), torch.nan, dtype=torch.float64, device=problem.device)
        self.n_iter = torch.zeros(batch, dtype=torch.int64, device=problem.device)
        self.at_floor = torch.zeros(batch, dtype=torch.bool, device=problem.device)

    def sweep(self, log_v: Tensor | None = None) -> tuple[Pair, Tensor]:
        """One pass at the current g and eps: the pair (f, g), and the column potential that f asks for."""
        if log_v is None:
            log_v = self.cols.log_scaling(torch.where(self.reachable, self.g, torch.inf), self.eps)
        offset, damping = self.rows.half_step(self.eps)
        with on_threads(self.threads):
            swept = self.kernel.sweep(log_v, offset, damping, self.eps, self.shift, self.items)
        self.passes += 1
        f = self.rows.potential(swept.row_lse, self.eps)
        answer = self.cols.potential(swept.col_lse, self.eps)
        alive = self.cols.massive & self.reachable
        self.reachable = self.reachable & (torch.isfinite(answer) | ~alive)
        self._find_lost(torch.isneginf(swept.row_lse) & self.rows.massive, alive & ~self.reachable)
        answer = torch.where(alive & self.reachable, answer, self.g)
        g, log_v = torch.where(self.reachable, self.g, torch.inf), torch.where(self.reachable, log_v, -torch.inf)
        return Pair(f, g, swept.log_u, log_v, swept.row_lse, swept.col_lse), answer

    def _find_lost(self, rows: Tensor, cols: Tensor) -> None:
        """Mark items in which a point that has allowed pairs found none: its numbers left the range of the type."""
        if self.structure is None:
            if not bool(rows.any()) and not bool(cols.any()):
                return
            self.structure = self.kernel.reachable(self.problem.rows.massive, self.problem.cols.massive)
        row_reach, col_reach = self.structure if self.items is None else [part[self.items] for part in self.structure]
        self.lost = self.lost | (rows & row_reach).any(1) | (cols & col_reach).any(1)

    def judge(self, pair: Pair) -> Tensor:
        """Violation of the pair, NaN for items that are lost, (A,)."""
        violation = certificate.violation(self.rows, self.cols, pair.f, pair.g, pair.row_mass, pair.col_mass)
        return torch.where(self.lost, torch.nan, violation)

    def stalled(self, pair: Pair, violation: Tensor) -> Tensor:
        """No progress for a while, at a violation that rounding explains."""
        improved = violation < 0.9 * self.record
        self.record = torch.where(improved, violation, self.record)
        self.record_pass = torch.where(improved, self.passes, self.record_pass)
        exact = ROUNDOFF[torch.float64] * _largest_of(pair) / self.reg  # potentials are float64 in either type
        floor = 256 * exact.clamp_min(ROUNDOFF[self.problem.dtype])
        return (self.passes - self.record_pass >= STALL_PASSES) & (violation <= floor)

    def tolerance(self, pair: Pair, reg: Tensor) -> Tensor | float:
        """tol, or where none was given the default of `uotlib.unbalanced_sinkhorn`."""
        return self.tol if self.tol else (roundoff(pair, reg, self.problem.dtype) / 4).clamp(1e-5, 1e-2)

    def finish(self, done: Tensor | None, pair: Pair, violation: Tensor, n_iter: int, at_floor: Tensor | None) -> None:
        """Write down the answers of these of the active items (None: all of them)."""
        source = slice(None) if done is None else done
        target = source if self.items is None else self.items[source]
        for name in ("f", "g", "log_u", "log_v", "row_lse", "col_lse"):
            getattr(self.pair, name)[target] = getattr(pair, name)[source]
        self.violation[target] = violation[source]
        self.n_iter[target] = n_iter
        if at_floor is not None:
            self.at_floor[target] = at_floor[source]

    def select(self, kept: Tensor) -> None:
        """Go on with these of the active items."""
        self.items = kept if self.items is None else self.items[kept]
        self.rows, self.cols = self.rows.select(kept), self.cols.select(kept)
        for name in ("reg", "eps", "g", "reachable", "shift", "lost", "record", "record_pass"):
            setattr(self, name, getattr(self, name)[kept])

    def report(self, violation: Tensor) -> None:
        if self.options.progress is False or not len(violation):
            return
        state = Progress(self.passes, float(self.eps.max()), float(violation.max()), len(violation))
        with on_threads(self.threads):
            state.tell(self.options.progress)

    def outcome(self) -> Outcome:
        """Complete the potentials of columns that took no part, and certify every pair."""
        pair, rows, cols, reg = self.pair, self.problem.rows, self.problem.cols, self.problem.reg
        idle = torch.isneginf(pair.log_v)
        if self.kernel.backend.asynchronous or bool(idle.any()):
            with on_threads(self.threads):
                lse = self.kernel.col_lse(pair.log_u, reg, idle)
            pair.col_lse = torch.where(idle, lse, pair.col_lse)
            pair.g = torch.where(idle, cols.potential(lse, reg), pair.g)
        gap = certificate.gap(rows, cols, pair.f, pair.g, pair.row_mass, pair.col_mass)
        gap = torch.where(self.violation.isnan(), torch.nan, gap)
        converged = self.violation <= self.tolerance(pair, reg)
        return Outcome(pair, self.violation, gap, self.n_iter, converged, self.at_floor & ~converged)


class _Textbook(_Loop):
    """Alternating half-steps at the target eps, step for step as POT takes them; returns POT's pair (f_k, g_k).

    Rows of that pair are known only after the next pass, so that k iterations take k + 1 passes.
    """

    def run(self) -> Outcome:
        before: Pair | None = None
        for iteration in range(self.max_iter + 1):
            # Textbook v_0 has an entry for every column, massless ones too; from v_1 on those are 0.
            everyone = iteration == 0 and self.problem.reg_type == "entropy"
            here, answer = self.sweep(self.g / self.eps[:, None] if everyone else None)
            last = iteration == self.max_iter
            if before is not None:
                pair = Pair(before.f, here.g, before.log_u, here.log_v, here.row_lse, before.col_lse)
                violation = self.judge(pair)
                if last:
                    self.finish(None, pair, violation, iteration, None)
                    break
                if self.synchronous and iteration % self.check_every == 0:
                    stalled = self.stalled(pair, violation)
                    done = (violation <= self.tolerance(pair, self.reg)) | stalled | violation.isnan()
                    self.report(violation)
                    parts = _parted(done)
                    if parts is not None:
                        ended, kept = parts
                        self.finish(ended, pair, violation, iteration, stalled)
                        if not len(kept):
                            break
                        self.select(kept)
                        here, answer = _keep(here, kept), answer[kept]
            before, self.g = here, answer
        return self.outcome()


class _Accelerated(_Loop):
    """Annealing of eps, exact translation and safeguarded Anderson acceleration: same fixed point, far fewer passes."""

    def __init__(self, problem: Problem, kernel: GibbsKernel, max_iter: int, tol: float | None,
                 init: tuple[Tensor, Tensor] | None, options: SolverOptions, threads: int) -> None:
        super().__init__(problem, kernel, max_iter, tol, init, options, threads)
        batch = problem.batch
        spread = torch.zeros_like(self.reg) if init is not None else kernel.spread()
        self.annealing = Annealing(self.reg, spread, kernel.m, max_iter, options)
        self.eps = self.annealing.eps
        self.anderson = Anderson(options.anderson_depth, batch, kernel.m, problem.device)
        infinite = torch.full((batch,), torch.inf, dtype=torch.float64, device=problem.device)
        self.best, self.best_answer = infinite, self.g
        self.confirming = torch.zeros(batch, dtype=torch.bool, device=problem.device)
        self.before: Pair | None = None

    def run(self) -> Outcome:
        while len(self.reg):
            here, answer = self.sweep()
            pair, violation = self._certified(here)
            at_target = self.annealing.at_target
            if self.passes >= self.max_iter:
                self.finish(None, pair, violation, self.passes, None)
                break
            close = at_target & (violation <= self.tolerance(here, self.reg))
            if self.synchronous and self.passes % self.check_every == 0:
                self.report(violation)
                stalled = at_target & self.stalled(here, violation)
                done = (close & (self.confirming | ~self._one_sided)) | stalled | violation.isnan()
                parts = _parted(done)
                if parts is not None:
                    ended, kept = parts
                    self.finish(ended, pair, violation, self.passes, stalled)
                    self.select(kept)
                    here, answer, violation = _keep(here, kept), answer[kept], violation[kept]
                    close = close[kept]
            self._advance(here, answer, violation, close)
        return self.outcome()

    @property
    def _one_sided(self) -> Tensor:
        """Only the columns' marginal is exact: their update must come last, which the next pass has to confirm."""
        return self.cols.penalty.exact & ~self.rows.penalty.exact

    def _certified(self, here: Pair) -> tuple[Pair, Tensor]:
        """The pair that this pass certifies: (f, g) of the pass; while confirming, (f of the pass before, g)."""
        pair = here
        if self.before is not None:
            old, new = self.before, here
            confirmed = Pair(old.f, new.g, old.log_u, new.log_v, new.row_lse, old.col_lse)
            pair = Pair(*(torch.where(self.confirming[:, None], getattr(confirmed, name), getattr(new, name))
                          for name in ("f", "g", "log_u", "log_v", "row_lse", "col_lse")))
        return pair, self.judge(pair)

    def _advance(self, here: Pair, answer: Tensor, violation: Tensor, close: Tensor) -> None:
        """Choose the next g and eps of every active item."""
        options = self.options
        moved = answer - certificate.optimal_shift(self.rows, self.cols, here.f, torch.where(
            self.reachable, answer, torch.inf))[:, None]
        moved = torch.where(self.cols.massive & self.reachable, moved, self.g)  # who takes no part stays

        rejected = violation > options.safeguard * self.best
        better = violation < self.best
        self.best = torch.where(rejected, torch.inf, torch.where(better, violation, self.best))
        retreat = self.best_answer
        self.best_answer = torch.where(better[:, None], moved, self.best_answer)

        leaving, solved = self.annealing.level_done(violation, self.passes)
        weight = self.cols.penalty.target(self.cols.mass, torch.where(self.reachable, self.g, torch.inf))
        self.anderson.restart(rejected | (self.annealing.level_pass <= options.anderson_start))
        accelerated = self._trusted(self.anderson.extrapolate(self.g, moved, weight), moved)
        retreat = retreat + options.backtrack * (self.g - retreat)
        start = self.annealing.descend(leaving, solved, moved)
        self.g = torch.where(rejected[:, None], retreat, torch.where(leaving[:, None], start, accelerated))

        self.anderson.restart(rejected | leaving)
        self.eps = self.annealing.eps
        self.best = torch.where(leaving, torch.inf, self.best)
        self.record = torch.where(leaving, torch.inf, self.record)

        final = self.passes == self.max_iter - 1
        self.confirming = self._one_sided & (close | (self.annealing.at_target & final))
        self.g = torch.where(self.confirming[:, None], answer, self.g)
        self.before = here

    def _trusted(self, accelerated: Tensor, plain: Tensor) -> Tensor:
        """The accelerated point, no further from the plain one than the iteration's own scale of nonlinearity, eps."""
        extra = accelerated - plain
        allowed = self.options.trust_region * self.eps / extra.abs().amax(1).clamp_min(torch.finfo(extra.dtype).tiny)
        return plain + extra * allowed.clamp_max(1.0)[:, None]

    def select(self, kept: Tensor) -> None:
        super().select(kept)
        self.anderson.select(kept)
        self.annealing.select(kept)
        for name in ("best", "best_answer", "confirming"):
            setattr(self, name, getattr(self, name)[kept])


def roundoff(pair: Pair, reg: Tensor, dtype: torch.dtype) -> Tensor:
    """Relative error of the plan that one rounding of a potential makes in this type, (A,)."""
    return ROUNDOFF[dtype] * _largest_of(pair) / reg


def _largest_of(pair: Pair) -> Tensor:
    """max |f, g| over the finite potentials, (A,)."""
    f, g = (torch.where(torch.isfinite(potential), potential.abs(), 0.0).amax(-1) for potential in (pair.f, pair.g))
    return torch.maximum(f, g)


def _parted(done: Tensor) -> tuple[Tensor, Tensor] | None:
    """Which items are done and which are not, in order; None if none is.  Waits for the device, for their number."""
    count = int(done.sum())
    if not count:
        return None
    order = torch.argsort(done.to(torch.uint8), stable=True, descending=True)
    return order[:count], order[count:]


def _keep(pair: Pair, kept: Tensor) -> Pair:
    return Pair(*(getattr(pair, name)[kept] for name in ("f", "g", "log_u", "log_v", "row_lse", "col_lse")))


def _mass_scale(problem: Problem) -> Tensor:
    """Logarithm of the mass that sums are scaled by: the geometric mean of the totals, 1 where one is empty."""
    scale = 0.5 * (problem.rows.mass.sum(-1).log() + problem.cols.mass.sum(-1).log())
    return torch.where(torch.isfinite(scale), scale, 0.0)
