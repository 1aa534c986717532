"""What the device can do: copies, reads, L2, exponentials, a grid-wide barrier, products.  Measured, never quoted."""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl

from .stage import Row, Stage
from .timing import Call


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


def read_call(source: torch.Tensor, multiprocessors: int) -> Call:
    """A call that reads a contiguous tensor once."""
    block, programs = 4096, 2 * multiprocessors
    share = -(-source.numel() // (programs * block)) * block
    out = torch.empty(programs, device=source.device)
    kernel = read_kernel[(-(-source.numel() // share),)]
    return lambda: kernel(source, out, source.numel(), share, BLOCK=block, STAGES=4, num_warps=8, enable_fp_fusion=True)


def measure(stage: Stage) -> None:
    """One row a ceiling: bytes or operations a second, or seconds."""
    multiprocessors = stage.hardware["multiprocessors"] or 2
    measures: dict[str, Callable[[], Row]] = {
        "copy_bytes_per_s": lambda: _copy(stage), "read_bytes_per_s": lambda: _read(stage, multiprocessors),
        "l2_read_bytes_per_s": lambda: _cached(stage, multiprocessors),
        "exp2_per_s": lambda: _exponentials(stage, multiprocessors),
        "barrier_s": lambda: _barrier(stage, stage.choose(multiprocessors, 1)),
        "matmul_float32_flop_per_s": lambda: _product(stage, torch.float32, "ieee"),
        "matmul_tf32_flop_per_s": lambda: _product(stage, torch.float32, "tf32"),
        "matmul_bfloat16_flop_per_s": lambda: _product(stage, torch.bfloat16, "ieee"),
    }
    for name, found in measures.items():
        stage.row({"ceiling": name}, found)


def _copy(stage: Stage) -> Row:
    """Read and written bytes, both counted."""
    source, target = torch.randn(2, stage.choose(1 << 28, 1 << 10), device=stage.device)
    return {"value": 2 * source.nbytes / stage.timer.graph([lambda: target.copy_(source)])}


def _read(stage: Stage, multiprocessors: int) -> Row:
    source = torch.randn(stage.choose(1 << 28, 1 << 13), device=stage.device)
    return {"value": source.nbytes / stage.timer.graph([read_call(source, multiprocessors)])}


def _cached(stage: Stage, multiprocessors: int) -> Row:
    resident = torch.randn(stage.choose(37 << 18, 1 << 12), device=stage.device)
    seconds = stage.timer.graph([read_call(resident, multiprocessors)] * stage.choose(20, 2))
    return {"value": resident.nbytes / seconds, "bytes": resident.nbytes, "l2_bytes": stage.hardware["l2_bytes"]}


def _exponentials(stage: Stage, multiprocessors: int) -> Row:
    block, programs, steps = 1024, stage.choose(8, 1) * multiprocessors, stage.choose(512, 2)
    values, out = torch.rand(block * programs, device=stage.device), torch.empty(block * programs, device=stage.device)
    seconds = stage.timer.graph([lambda: exponential_kernel[(programs,)](
        values, out, BLOCK=block, STEPS=steps, num_warps=4, enable_fp_fusion=True)])
    return {"value": block * programs * steps / seconds}


def _barrier(stage: Stage, programs: int) -> Row:
    """Seconds of a grid-wide barrier, from the difference of many and few."""
    counter = torch.zeros(1, dtype=torch.int32, device=stage.device)
    failures = torch.zeros(programs, dtype=torch.int32, device=stage.device)
    few, many = stage.choose((20, 220), (1, 2))
    times = {}
    for rounds in (few, many):
        def call(rounds: int = rounds) -> None:
            counter.zero_()
            barrier_kernel[(programs,)](counter, failures, programs, ROUNDS=rounds, num_warps=4, enable_fp_fusion=True)
        times[rounds] = stage.timer.graph([call])
        if int(failures.sum()):
            raise RuntimeError("not every program was resident, or a barrier was passed early")
    return {"value": (times[many] - times[few]) / (many - few)}


def _product(stage: Stage, dtype: torch.dtype, precision: str) -> Row:
    n = stage.choose(8192, 16)
    one, other = torch.randn(2, n, n, device=stage.device).to(dtype)
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        return {"value": 2 * n**3 / stage.timer.graph([lambda: one @ other])}
    finally:
        matmul.fp32_precision = before
