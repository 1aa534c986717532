"""Device times: medians of event pairs, and of graph replays where launches would hide the kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
import triton.testing

Call = Callable[[], object]


def call_us(call: Call, repeat_ms: int = 60) -> float:
    """Median microseconds of one call from the host, launches included, with a cold L2 (Triton's do_bench)."""
    return 1e3 * triton.testing.do_bench(call, warmup=20, rep=repeat_ms, return_mode="median")


def graph_us(calls: Sequence[Call], repeat_ms: float = 60.0) -> float:
    """Median microseconds a call, from replays of one CUDA graph that makes all calls in turn.

    Give it calls on enough different buffers and it times streaming from memory; on one buffer, the cache.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = [_replay(graph) for _ in range(5)]
    count = int(min(200, max(10, repeat_ms / statistics.median(times))))
    return 1e3 * statistics.median(_replay(graph) for _ in range(count)) / len(calls)


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def copies_beyond_l2(bytes_each: int, l2_bytes: int) -> int:
    """Buffers to rotate among so that none is still cached when its turn comes again."""
    return max(2, -(-4 * l2_bytes // bytes_each))
