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
    ``seconds``, or as long as what is left out where that is more, so that its noise does not drown them.
    """
    few = 2
    more = {name: _enough(run, few, seconds) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    floors = []
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(PAUSE)
            floors.append(statistics.median(timed(floor)[0] for _ in range(5)))
            time.sleep(PAUSE)
            times[name].append(_slope(run, few, more[name]))
    return {name: Sample(tuple(taken)) for name, taken in times.items()}, Sample(tuple(floors))


def _enough(run: Callable[[int], object], few: int, seconds: float, most: int = 200) -> int:
    """K, from the least times of a short and a longer run."""
    run(few)
    short, long = (min(timed(lambda count=count: run(count))[0] for _ in range(3)) for count in (few, few + 8))
    each = max((long - short) / 8, long / (20 * (few + 8)), 1e-7)  # the second where noise hid the slope
    return int(min(most, max(4, max(seconds, short) / each)))


def _slope(run: Callable[[int], object], few: int, more: int) -> float:
    short, _ = timed(lambda: run(few))
    long, _ = timed(lambda: run(few + more))
    return (long - short) / more
