"""What the long checks of the cuda backend look at, and that wrong answers do not pass them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from cuda_harness import AHEAD, PANELS, RING, division, needs_compiler

from benchmarks.gpu import soak
from benchmarks.gpu.stage import Stage
from uotlib.backends import BACKENDS
from uotlib.backends.reference import ReferenceBackend
from uotlib.outcome import SCALARS, StoredOutcome

ROOT = Path(__file__).parents[1]
STAGE = Stage(torch.device("cpu"), True, {}, {}, [], lambda message: None)
#: An H100's or H200's multiprocessors, bytes of shared memory a block has beside what the kernel keeps there.
BLOCKS, ROOM = 132, 232_448 - 27_808


class Stand(ReferenceBackend):
    """In triton's place: the reference, or potentials of NaN or 0 whatever is asked."""

    name = "triton"

    def __init__(self, potential: float | None) -> None:
        self.potential = potential

    def solve(self, problem, cost, method, max_iter, tol, init, options):
        if self.potential is None:
            return None
        batch, n, m = problem.batch, *cost.shape[1:]
        values = torch.full((batch * (3 * n + 3 * m + SCALARS),), self.potential, dtype=torch.float64)
        values[len(values) - batch * SCALARS:] = 1.0
        return StoredOutcome(values, batch, n, m)


@pytest.mark.parametrize(("potential", "correct"), [(math.nan, False), (0.0, False), (None, True)])
def test_launches_of_wrong_answers_are_wrong(monkeypatch, potential, correct):
    """The same bits every time, and still not right: the same NaN too."""
    monkeypatch.setitem(BACKENDS, "triton", Stand(potential))
    row = soak._launches(STAGE, 0)
    assert row["correct"] is correct, row
    assert row["mismatches"] == 0
    assert (row["error"] == "not finite") == (potential is not None and math.isnan(potential))


@needs_compiler
@pytest.mark.parametrize("bulk", [False, True])
def test_the_sanitizer_sees_every_way_of_rows(harness, bulk):
    """What the planner makes of its shapes: each variant of the kernel, and rows that do not fit."""
    seen = set()
    for kind, shapes in soak.SHAPES.items():
        for batch, n, m in shapes:
            for cache in (50 << 20, 60 << 20):
                cut = division(harness, batch, n, m, chip=(BLOCKS, ROOM, cache), bulk=bulk)
                blocks, way, resident, stages, together = (
                    cut[name] for name in ("blocks", "way", "resident", "stages", "together"))
                assert (resident < math.ceil(n / blocks)) == (kind == "streamed" or way == PANELS), (batch, n, m)
                if kind == "streamed":
                    assert resident > 0
                    assert (stages >= 2) == (way == RING), "the ring has its stages"
                    chunks = 1 if m <= 2048 else 2 if m <= 4096 else 4
                    seen.add((way, chunks, together // (1 if chunks == 4 else 4)))
                    assert cut["bulk"] == (bulk and way == RING and m % 4 == 0)
                elif way == PANELS:
                    assert stages >= 2
                    seen.add((way, 0, 1))
    assert seen == {(AHEAD, 1, 1), (AHEAD, 2, 1), (RING, 1, 2), (RING, 1, 1), (RING, 2, 1), (RING, 4, 1),
                    (PANELS, 0, 1)}


def test_the_sanitizer_finds_the_kernel_by_its_name():
    """Else it would look at nothing, and say that nothing is wrong."""
    kernels = re.findall(r"__global__ void (?:__\w+__\([^)]*\) )?(\w+)\(", (ROOT / "csrc/cuda/resident.cu").read_text())
    assert kernels
    assert all(soak.KERNEL in name for name in kernels)
