"""Forward and backward: the library's, and each peer's, whose gradients are judged before they are timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor

from .bench import Bench
from .case import TARGETS, Target
from .gradients import Differentiable, Pass, draw_task
from .gradients.ours import gradient_error, our_pass, true_gradient
from .measure import Sample, alternate
from .methods import Missing
from .methods.ours import NAME
from .record import Row
from .search import timed

#: What is differentiated: the second target, where plans are neither trivial nor empty.
GRADIENT_TARGET = TARGETS[1]
#: Error of a gradient from which on it is called wrong: a solution to 1e-4 has one of about 1e-3.
WRONG = 1e-2
#: Points a side at which the gradient of a method is judged that has no time for all of its iterations.
JUDGED = 256
#: Bytes that autograd may store in a timed run; few iterations are run of a method that would need more.
STORED = 1 << 32
#: Iterations of the shorter run of two, and the fewest of the longer.
FEW, MORE = 2, 6
#: What a peer's calls are called beside the library's.
PEER = "peer"


class Gradients:
    """One loss on one problem."""

    def __init__(self, bench: Bench, n: int, loss: str, target: Target = GRADIENT_TARGET) -> None:
        self.bench, self.n, self.loss, self.target = bench, n, loss, target
        self.kl = draw_task(loss, n, target)

    @cached_property
    def _truths(self) -> dict[tuple[int, str], Tensor]:
        return {}

    def _error(self, gradient: Tensor, n: int, convention: str) -> float:
        if (n, convention) not in self._truths:
            self._truths[n, convention] = true_gradient(draw_task(self.loss, n, self.target).but(reg_type=convention))
        return gradient_error(gradient, self._truths[n, convention])

    def ours(self, convention: str = "kl") -> Row:
        mine = our_pass(self.kl.but(reg_type=convention), self.target.violation)
        error = self._error(_gradient(mine, 0), self.n, convention)
        times = alternate(_calls(NAME, mine, 0) | self._floor, self.bench.repeats)
        return self._row(NAME, "auto", convention, _both(times, NAME), times, error)

    def peer(self, method: Differentiable) -> Row:
        """A peer beside the library: all of its iterations where there is time for them, else what a few tell."""
        try:
            iterations = method.iterations(self.n, self.target)
            run = method.prepare(self.kl.but(reg_type=method.convention), iterations)
        except Missing as absent:
            return self.bench.recorder.add(self._like(method.name, method.setting, method.convention, status="missing",
                                                      note=str(absent)))
        budget = self.bench.budget_at(self.n)
        beside = _calls(NAME, our_pass(self.kl.but(reg_type=method.convention), self.target.violation), 0) | self._floor
        count, note = self._affordable(run, iterations, budget) if method.affine else iterations, ""
        if count < iterations:
            peer, times = _from_few(run, count, iterations), alternate(beside, min(3, self.bench.repeats))
            error, judged = self._judged_small(method, iterations)
            note = f"time from {count} of {iterations} iterations, gradient judged at n = {judged}"
        else:
            spent, gradient = timed(lambda: _gradient(run, count))
            error = self._error(gradient, self.n, method.convention)  # type: ignore[arg-type]
            rounds = max(1, min(self.bench.repeats, int(budget / (spent + 1e-9))))
            times = alternate(beside | _calls(PEER, run, count), rounds)
            peer = _both(times, PEER)
        row = self._row(method.name, method.setting, method.convention, peer, times, error)
        row.iterations, row.note = iterations, note
        return row

    @property
    def _floor(self) -> dict[str, Callable[[], object]]:
        return {"floor": self.kl.problem.cost.sum}

    def _beside(self, convention: str) -> dict[str, Callable[[], object]]:
        return _calls(NAME, our_pass(self.kl.but(reg_type=convention), self.target.violation), 0) | self._floor

    def _affordable(self, run: Pass, iterations: int, budget: float) -> int:
        """Iterations whose forward and backward take the budget, and no more memory than is safe."""
        pilot = _both(alternate(_calls(PEER, run, FEW), 1), PEER).whole.median
        within = STORED // (2 * self.kl.problem.cost.numel() * self.kl.problem.cost.element_size())
        return min(iterations, max(MORE, min(within, int(FEW * budget / pilot))))

    def _judged_small(self, method: Differentiable, iterations: int) -> tuple[float, int]:
        """Error of the gradient after as many iterations on a problem alike that takes no time, and its size."""
        n = min(JUDGED, self.n)
        small = method.prepare(draw_task(self.loss, n, self.target).but(reg_type=method.convention), iterations)
        return self._error(_gradient(small, iterations), n, method.convention), n

    def _row(self, name: str, setting: str, convention: str, mine: Both, beside: dict[str, Sample],
             error: float) -> Row:
        """``beside`` has the library's times, and the floor's, from the same rounds."""
        row = self._like(name, setting, convention, seconds=mine.whole.median, backward=mine.backward.median,
                         gradient_error=error, status="reached" if error <= WRONG else "wrong")
        row.low, row.high = mine.whole.quartiles
        row.of_floor = mine.whole.median / beside["floor"].median
        row.of_ours = mine.whole.median / _both(beside, NAME).whole.median
        return self.bench.recorder.add(row)

    def _like(self, name: str, setting: str, convention: str, **columns: Any) -> Row:
        return Row("gradient", self.n, name, eps=self.target.reg, tau=self.target.reg_m, target=self.target.violation,
                   setting=setting, convention=convention, loss=self.loss, **columns)


class Both(NamedTuple):
    """Times of forward and backward together, and of the backward alone."""

    whole: Sample
    backward: Sample


def _gradient(run: Pass, iterations: int) -> Tensor:
    return run.tensor(run.backward(run.forward(iterations)))


def _calls(name: str, run: Pass, iterations: int) -> dict[str, Callable[[], object]]:
    """Forward and backward as two calls that take turns, the second on what the first left."""
    left: list[object] = []
    return {f"{name} forward": lambda: left.append(run.forward(iterations)),
            f"{name} backward": lambda: run.backward(left.pop())}


def _both(times: dict[str, Sample], name: str) -> Both:
    forward, backward = times[f"{name} forward"], times[f"{name} backward"]
    return Both(Sample(tuple(sum(pair) for pair in zip(forward.times, backward.times, strict=True))), backward)


def _from_few(run: Pass, count: int, iterations: int) -> Both:
    """What all iterations take, from two shorter runs: both ways are affine in them."""
    short, long = (alternate(_calls(PEER, run, few), 1) for few in (FEW, count))
    slopes = {name: max(0.0, long[name].median - short[name].median) / (count - FEW) for name in short}
    return _both({name: Sample((short[name].median + (iterations - FEW) * slope,)) for name, slope in slopes.items()},
                 PEER)
