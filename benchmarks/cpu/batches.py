"""Batches of small problems: one call of the library, a loop over POT, and batched torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from .bench import Bench
from .case import BATCH_TARGET, Problem, Target, batch_problem
from .iteration import time_iterations
from .measure import alternate
from .methods import COMPILED, EAGER, PLAIN, Method, Missing
from .methods.ours import NAME, answer, solve
from .record import Row
from .search import search, timed
from .violation import judge

#: Items that a loop over a peer is timed on; its time is scaled to the batch.
SAMPLE = 16


def batch_iteration(bench: Bench, count: int, n: int) -> list[Row]:
    """One iteration of the whole batch."""
    drawn = batch_problem(count, n, BATCH_TARGET)
    like = Row("iteration", n, "", batch=count, eps=drawn.reg, tau=drawn.reg_m)
    return time_iterations(bench, drawn, _batched(bench), like)


def batch_arrival(bench: Bench, count: int, n: int, target: Target = BATCH_TARGET) -> list[Row]:
    """Time until every problem of the batch is within the violation."""
    drawn = batch_problem(count, n, target)
    solution = solve(drawn, target.violation)
    found = answer(solution)
    verdict = judge(drawn, found.f, found.g)
    times = alternate({"ours": partial(solve, drawn, target.violation), "floor": drawn.cost.sum}, bench.repeats)
    ours, floor = times["ours"], times["floor"].median
    budget = bench.budget_at(math.isqrt(count) * n)  # what as many entries have in one problem
    rows = [Row("batch", n, NAME, setting="auto, one call", seconds=ours.median, low=ours.quartiles[0],
                high=ours.quartiles[1], of_floor=ours.median / floor, of_ours=1.0,
                iterations=int(solution.n_iter.max()), violation=verdict.violation,
                claimed=float(solution.violation.max()),
                status="reached" if verdict.violation <= target.violation else "slow")]
    for method in PLAIN:  # of POT's, the quickest of small problems
        rows.append(_guarded(method, partial(_loop, budget, drawn, target), n))
    for method in _batched(bench):
        rows.append(_guarded(method, partial(_whole, budget, drawn, target), n))
    for row in rows:
        row.batch, row.eps, row.tau, row.target = count, target.reg, target.reg_m, target.violation
        if row.seconds is not None and row.method != NAME:
            row.of_floor, row.of_ours = row.seconds / floor, row.seconds / ours.median
    return [bench.recorder.add(row) for row in rows]


def _batched(bench: Bench) -> tuple[Method, ...]:
    return (EAGER, COMPILED) if bench.measuring else (EAGER,)


def _guarded(method: Method, time: Callable[[Method], Row], n: int) -> Row:
    try:
        return time(method)
    except Missing as absent:
        return Row("batch", n, method.name, setting=method.setting, status="missing", note=str(absent))


def _loop(budget: float, drawn: Problem, target: Target, method: Method) -> Row:
    """A call an item, each stopped at its own first iteration that is good enough."""
    count, n = drawn.cost.shape[:2]
    chosen = range(0, count, max(1, count // SAMPLE))
    budget /= len(chosen)
    seconds, iterations, worst, status = 0.0, 0, 0.0, "reached"
    for index in chosen:
        item = drawn.item(index)
        runner = method.prepare(item)
        trace = search(runner, item, target.violation, budget)
        seconds += alternate({"peer": partial(runner.run, trace.iterations)}, 1)["peer"].median
        iterations, worst = max(iterations, trace.iterations), max(worst, trace.verdict.violation)
        status = status if trace.status == "reached" else trace.status
    return Row("batch", n, method.name, setting=f"{method.setting}, a loop", seconds=seconds * count / len(chosen),
               iterations=iterations, violation=worst, status=status,
               note=f"{len(chosen)} of {count} problems, scaled" if len(chosen) < count else "")


def _whole(budget: float, drawn: Problem, target: Target, method: Method) -> Row:
    """The whole batch in one tensor; as many iterations as the slowest of a sample of its items needs."""
    count, n = drawn.cost.shape[:2]
    few = torch.arange(0, count, max(1, count // SAMPLE))
    sample = drawn.but(cost=drawn.cost[few], a=drawn.a[few], b=drawn.b[few])
    trace = search(EAGER.prepare(sample), sample, target.violation, budget)
    runner = method.prepare(drawn)
    runner.run(1)
    pilot, _ = timed(lambda: runner.run(2))
    scale, iterations, note = 1.0, trace.iterations, ""
    if iterations * pilot / 2 > budget:
        iterations = max(2, int(2 * budget / pilot))
        scale, note = trace.iterations / iterations, f"from {iterations} of {trace.iterations} iterations"
    seconds = alternate({"peer": partial(runner.run, iterations)}, 1)["peer"].median * scale
    return Row("batch", n, method.name, setting=f"{method.setting}, batched", seconds=seconds,
               iterations=trace.iterations, violation=trace.verdict.violation, status=trace.status, note=note)
