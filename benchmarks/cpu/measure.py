"""Times of calls that take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .search import timed

#: Seconds before a timed call in which the threads of the one before may go to sleep: some spin for a while.
PAUSE = 0.005


@dataclass(frozen=True)
class Sample:
    """Times of one call in seconds."""

    times: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.times) < 2:
            return self.times[0], self.times[0]
        low, _, high = statistics.quantiles(self.times, n=4, method="inclusive")
        return low, high


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Sample]:
    """Every call once a round, after one round that is not counted where there is more than one."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + (repeats > 1)):
        for name, call in calls.items():
            time.sleep(PAUSE)
            seconds, _ = timed(call)
            if turn or repeats == 1:
                times[name].append(seconds)
    return {name: Sample(tuple(taken)) for name, taken in times.items()}


def per_iteration(runs: Mapping[str, Callable[[int], object]], floor: Callable[[], object], repeats: int,
                  seconds: float = 0.2) -> tuple[dict[str, Sample], Sample]:
    """Seconds an iteration of each run, (t(k + K) - t(k)) / K, and of the floor, in one set of rounds.

    The difference leaves out what a call does once: checking, kernels, plans.  k = 2, and K iterations take about
    ``seconds``.
    """
    few = 2
    more = {}
    for name, run in runs.items():
        run(few)
        each = min(timed(lambda run=run: run(few + 4))[0] for _ in range(3)) / (few + 4)  # with what a call does once
        more[name] = int(min(1000, max(4, seconds / max(each, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    floors = []
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(PAUSE)
            floors.append(statistics.median(timed(floor)[0] for _ in range(5)))
            time.sleep(PAUSE)
            times[name].append(_slope(run, few, more[name]))
    return {name: Sample(tuple(taken)) for name, taken in times.items()}, Sample(tuple(floors))


def _slope(run: Callable[[int], object], few: int, more: int) -> float:
    short, _ = timed(lambda: run(few))
    long, _ = timed(lambda: run(few + more))
    return (long - short) / more
