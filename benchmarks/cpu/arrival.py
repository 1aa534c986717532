"""Time to a violation: the library's whole call, and each peer stopped at the first iteration that is good enough."""

from __future__ import annotations

from functools import cached_property, partial

from torch import Tensor

from .bench import Bench
from .case import BEYOND, ORDER, Problem, Target, problem
from .measure import Sample, alternate
from .methods import Method, Missing, Runner
from .methods.ours import NAME, answer, solve
from .record import Row
from .search import Trace, search, timed
from .violation import judge, plan_error, truth

#: Violations, over the target, at which the library's own curve has its points.
CURVE = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)


class Arrival:
    """One problem and one violation to reach.

    Args:
        curves: Whether the ways there are recorded too, for the figure.
    """

    def __init__(self, bench: Bench, n: int, order: str, target: Target, curves: bool = False) -> None:
        self.bench, self.n, self.order, self.target, self.curves = bench, n, order, target, curves
        self.kl = problem(n, order, target.reg, target.reg_m)

    def in_convention(self, convention: str) -> Problem:
        return self.kl if convention == "kl" else self._entropy

    @cached_property
    def _entropy(self) -> Problem:
        return self.kl.but(reg_type="entropy")

    @cached_property
    def _truths(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {}

    def truth(self, convention: str) -> tuple[Tensor, Tensor]:
        if convention not in self._truths:
            self._truths[convention] = truth(self.in_convention(convention))
        return self._truths[convention]

    def ours(self, convention: str = "kl") -> Row:
        """The library, and whether the violation that it returned is what the judge finds."""
        drawn, target = self.in_convention(convention), self.target.violation
        solution = solve(drawn, target)
        found = answer(solution)
        verdict = judge(drawn, found.f, found.g)
        times = alternate({"ours": partial(solve, drawn, target), "floor": drawn.cost.sum}, self.bench.repeats)
        row = self._row(NAME, "auto", convention, times["ours"], times)
        row.status = "reached" if verdict.violation <= target else "slow"
        row.iterations, row.claimed = int(solution.n_iter), float(solution.violation)
        row.violation = verdict.violation
        if self.order == ORDER and self.target != BEYOND:  # the truth takes longer than all else: where peers need it
            row.plan_error = self._plan_error(convention, found.f, found.g)
        if self.curves:
            self._our_curve(drawn, convention)
        return self.bench.recorder.add(row)

    def peer(self, method: Method) -> Row:
        """A peer beside the library, each run in its turn."""
        drawn = self.in_convention(method.convention)
        budget = self.bench.budget_at(self.n)
        try:
            runner = method.prepare(drawn)
        except Missing as absent:
            return self.bench.recorder.add(self._row(method.name, method.setting, method.convention, None, {},
                                                     status="missing", note=str(absent)))
        trace = search(runner, drawn, self.target.violation, budget)
        times = self._beside(runner, drawn, trace, budget)
        row = self._row(method.name, method.setting, method.convention, times["peer"], times)
        row.status, row.iterations, row.violation = trace.status, trace.iterations, trace.verdict.violation
        row.plan_error = self._plan_error(method.convention, trace.answer.f, trace.answer.g)
        if self.curves:
            for iterations, seconds, violation in trace.points:
                self._point(method.name, method.setting, method.convention, seconds, violation, iterations)
        return self.bench.recorder.add(row)

    def _beside(self, runner: Runner, drawn: Problem, trace: Trace, budget: float) -> dict[str, Sample]:
        """The run that was found and the library's, in turns: as many rounds as the budget has time for.

        A run that did not arrive is not run again: it gives a bound, or nothing.
        """
        calls = {"ours": partial(solve, drawn, self.target.violation), "floor": drawn.cost.sum}
        if trace.status != "reached":
            return alternate(calls, min(3, self.bench.repeats)) | {"peer": Sample((trace.seconds,))}
        rounds = max(1, min(self.bench.repeats, int(budget / (2 * trace.seconds + 1e-9))))
        return alternate(calls | {"peer": partial(runner.run, trace.iterations)}, rounds)

    def _plan_error(self, convention: str, f: Tensor, g: Tensor) -> float:
        return plan_error(self.in_convention(convention), f, g, self.truth(convention))

    def _our_curve(self, drawn: Problem, convention: str) -> None:
        for factor in CURVE:
            tol = factor * self.target.violation
            if tol > 0.5:
                continue
            seconds, solution = min((timed(partial(solve, drawn, tol)) for _ in range(3)), key=lambda pair: pair[0])
            found = answer(solution)  # type: ignore[arg-type]
            self._point(NAME, "auto", convention, seconds, judge(drawn, found.f, found.g).violation,
                        int(solution.n_iter))  # type: ignore[attr-defined]

    def _point(self, name: str, setting: str, convention: str, seconds: float, violation: float,
               iterations: int) -> None:
        row = self._row(name, setting, convention, Sample((seconds,)), {})
        row.case, row.violation, row.iterations = "curve", violation, iterations
        self.bench.recorder.add(row)

    def _row(self, name: str, setting: str, convention: str, sample: Sample | None, times: dict[str, Sample],
             status: str = "", note: str = "") -> Row:
        row = Row("arrival", self.n, name, eps=self.target.reg, tau=self.target.reg_m, target=self.target.violation,
                  order=self.order, setting=setting, convention=convention, status=status, note=note)
        if sample is not None:
            row.seconds, (row.low, row.high) = sample.median, sample.quartiles
            if times:
                row.of_floor = sample.median / times["floor"].median
                row.of_ours = sample.median / times["ours"].median
        return row
