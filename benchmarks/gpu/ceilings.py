"""What the device can do: copy and read bandwidth, exponentials, L2, a grid-wide barrier.  Measured, never quoted."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .timing import graph_us

CHAINS, STEPS = 8, 512


@triton.jit
def read_kernel(source, out, count, per_program, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """Sum of a contiguous share of the entries; per_program is a multiple of BLOCK."""
    program = tl.program_id(0)
    base = source + program.to(tl.int64) * per_program
    left = tl.minimum(count - program.to(tl.int64) * per_program, per_program)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, per_program, BLOCK, num_stages=STAGES):
        ids = start + tl.arange(0, BLOCK)
        total += tl.load(base + ids, mask=ids < left, other=0.0)
    tl.store(out + program, tl.sum(total, axis=0))


@triton.jit
def exponential_kernel(source, out, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    """STEPS dependent exp2 an element, whose values stay in (0, 1]."""
    ids = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + ids)
    for _ in range(STEPS):
        x = tl.exp2(-x)
    tl.store(out + ids, x)


@triton.jit
def barrier_kernel(counter, failures, programs, ROUNDS: tl.constexpr):
    """ROUNDS grid-wide barriers over one counter that starts at 0.  All programs must be resident at once."""
    lost = 0
    for turn in range(ROUNDS):
        tl.debug_barrier()
        seen = tl.atomic_add(counter, 1, sem="acq_rel") + 1
        spins = 0
        # Bounded, so that a grid that is not resident as a whole ends with a wrong count and not with a hang.
        while (seen < (turn + 1) * programs) & (spins < 100000):
            seen = tl.atomic_add(counter, 0, sem="acquire")
            spins += 1
        lost += tl.where(seen < (turn + 1) * programs, 1, 0)
    tl.store(failures + tl.program_id(0), lost)


def read_call(source: torch.Tensor, multiprocessors: int) -> Any:
    """A call that reads a contiguous tensor once."""
    block, programs = 4096, 2 * multiprocessors
    share = -(-source.numel() // (programs * block)) * block
    out = torch.empty(programs, device=source.device)
    kernel = read_kernel[(-(-source.numel() // share),)]
    return lambda: kernel(source, out, source.numel(), share, BLOCK=block, STAGES=4, num_warps=8, enable_fp_fusion=True)


def measure(device: torch.device, multiprocessors: int, l2_bytes: int) -> dict[str, float | None]:
    """The ceilings, in bytes or operations a second, and microseconds a barrier (None where it failed)."""
    record: dict[str, float | None] = {}
    source, target = torch.randn(2, 1 << 28, device=device)
    record["copy_bytes_per_s"] = 2e6 * source.nbytes / graph_us([lambda: target.copy_(source)])
    record["read_bytes_per_s"] = 1e6 * source.nbytes / graph_us([read_call(source, multiprocessors)])

    resident = torch.randn(37 << 18, device=device)
    record["l2_resident_bytes"] = resident.nbytes
    record["l2_bytes"] = l2_bytes
    record["l2_read_bytes_per_s"] = 1e6 * resident.nbytes / graph_us([read_call(resident, multiprocessors)] * 20)

    block, programs = 1024, 8 * multiprocessors
    values, out = torch.rand(block * programs, device=device), torch.empty(block * programs, device=device)
    exponentials = graph_us([lambda: exponential_kernel[(programs,)](values, out, BLOCK=block, STEPS=STEPS, num_warps=4,
                                                                     enable_fp_fusion=True)])
    record["exp2_per_s"] = 1e6 * block * programs * STEPS / exponentials

    record["barrier_us"] = _barrier(device, multiprocessors)
    return record


def _barrier(device: torch.device, programs: int) -> float | None:
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    failures = torch.zeros(programs, dtype=torch.int32, device=device)
    times = {}
    for rounds in (20, 220):
        def call(rounds: int = rounds) -> None:
            counter.zero_()
            barrier_kernel[(programs,)](counter, failures, programs, ROUNDS=rounds, num_warps=4, enable_fp_fusion=True)
        times[rounds] = graph_us([call])
        if int(failures.sum()):
            return None
    return (times[220] - times[20]) / 200
