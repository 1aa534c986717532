"""Timers: medians of host times that end with the device, and of replays of CUDA graphs; and peaks of memory.

`RehearsalTimer` has the same methods where there is no GPU: every call runs, and what it takes means nothing.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], object]
#: A run of so many iterations.
Run = Callable[[int], object]
#: Iterations of the shorter of two runs, and the most that the longer has more.
FEW, MOST = 1, 48
#: Seconds of a run that is timed once.
SLOW = 1.0


class Timer:
    """Times on a CUDA device, in seconds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        torch.cuda.synchronize(self.device)

    def host(self, call: Call, spend: float = 0.15, most: int = 30) -> float:
        """Median of a call from the host until the device is done, after one that is not counted."""
        call()
        first = self.once(call)
        count = int(min(most, max(3, spend / max(first, 1e-6))))
        return statistics.median([first, *(self.once(call) for _ in range(count - 1))])

    def graph(self, calls: Sequence[Call], spend: float = 0.06) -> float:
        """Median time of a call, from replays of one CUDA graph that makes all calls in turn.

        Calls on enough different buffers time streaming from memory; calls on one buffer, the cache.
        """
        return self._replayed(self._captured(calls), spend) / len(calls)

    def per_iteration(self, run: Run, graph: bool, spend: float = 0.2) -> float:
        """Slope of the time in the number of iterations: what a call does once is left out."""
        run(FEW)  # compiles
        once = self.once(lambda: run(FEW))
        if once > SLOW:
            return (self.once(lambda: run(FEW + 2)) - once) / 2
        more = int(min(MOST, max(2, spend / once)))
        if graph:
            short, long = (self._replayed(self._captured([lambda count=count: run(count)]), spend)
                           for count in (FEW, FEW + more))
        else:
            short, long = (self.host(lambda count=count: run(count), spend) for count in (FEW, FEW + more))
        return (long - short) / more

    def peak(self, call: Call) -> int | None:
        """Bytes of the device that a call takes at most, beside what is there already, in torch's allocator."""
        gc.collect()
        torch.cuda.empty_cache()
        self.wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def release(self) -> None:
        """Give memory that is not in use back to the device."""
        gc.collect()
        torch.cuda.empty_cache()

    def once(self, call: Call) -> float:
        """From the host until the device is done, once."""
        self.wait()
        begin = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - begin

    def _captured(self, calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, list[object]]:
        """The graph, and what its calls returned, whose memory it writes."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = [call() for call in calls]
        return graph, kept

    def _replayed(self, captured: tuple[torch.cuda.CUDAGraph, Any], spend: float) -> float:
        graph = captured[0]
        times = [self._replay(graph) for _ in range(5)]
        count = int(min(200, max(5, spend / max(statistics.median(times), 1e-6))))
        return statistics.median(self._replay(graph) for _ in range(count))

    def _replay(self, graph: torch.cuda.CUDAGraph) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)


class RehearsalTimer(Timer):
    """The same calls without a GPU, each once."""

    def wait(self) -> None:
        """Nothing runs beside the host."""

    def host(self, call: Call, spend: float = 0.0, most: int = 1) -> float:
        return self.once(call)

    def graph(self, calls: Sequence[Call], spend: float = 0.0) -> float:
        return sum(self.once(call) for call in calls) / len(calls)

    def per_iteration(self, run: Run, graph: bool, spend: float = 0.0) -> float:
        return self.once(lambda: run(FEW)) / FEW

    def peak(self, call: Call) -> int | None:
        """None: it is the device's memory that is asked for."""
        return None

    def release(self) -> None:
        """Nothing: tiny sizes, and a collection takes longer than a row."""


def copies_beyond_l2(bytes_each: int, l2_bytes: int) -> int:
    """Buffers to rotate among so that none is still cached when its turn comes again."""
    return max(2, -(-4 * l2_bytes // bytes_each))
