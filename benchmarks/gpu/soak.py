"""The cuda backend for long: compute-sanitizer on small solves, and 10,000 launches whose answers must not differ."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
from functools import partial

import torch
from torch import Tensor

from benchmarks.cpu.methods.base import Missing
from uotlib import Solution, unbalanced_sinkhorn

from . import correctness
from .environment import ROOT
from .stage import Row, Stage

#: Rows of launches, problems of a row, and launches of each problem.
ROWS, PROBLEMS, LAUNCHES = 25, 20, 20
#: Largest difference of four textbook iterations to float64, in units of eps.
BOUND = 1e-4
#: Seconds that a tool may take.
LIMIT = 95
#: Part of the kernel's name, by which compute-sanitizer finds it.
KERNEL = "resident"
#: Costs (batch, n, m) that it looks at, as 132 multiprocessors with 227 KiB of shared memory each divide them.  Held:
#: a block alone, groups of blocks, one group, all rows in shared memory; and panels.  Streamed: more rows than fit,
#: in registers ahead or, where rows are narrow, wide or not aligned, through the ring; of each width of a thread.
SHAPES = {
    "held": ((9, 40, 50), (3, 300, 257), (1, 700, 1030), (2, 90, 8200)),
    "streamed": ((140, 64, 1100), (140, 64, 2052), (140, 200, 600), (140, 64, 1030), (140, 64, 2050), (70, 64, 4100)),
}
SMALL = """
import torch
from uotlib import unbalanced_sinkhorn
torch.manual_seed(0)
for shape in {shapes}:
    cost = torch.rand(shape, device="cuda")
    for method in ("auto", "sinkhorn"):
        unbalanced_sinkhorn(cost, reg=0.05, reg_m=1.0, method=method, tol=0, max_iter=3, backend="cuda")
torch.cuda.synchronize()
"""


def measure(stage: Stage) -> None:
    """A rehearsal has triton in the place of cuda, and no device for the sanitizer."""
    for tool in stage.choose(("memcheck", "racecheck"), ()):
        for rows in SHAPES:
            stage.row({"tool": tool, "rows": rows}, partial(_sanitized, tool, rows))
    for seed in range(stage.choose(ROWS, 1)):
        stage.row({"seed": seed}, partial(_launches, stage, seed))


def _sanitized(tool: str, rows: str) -> Row:
    found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if found is None:
        raise Missing("compute-sanitizer is not on PATH")
    # Without torch's own pool, so that every tensor's end is known; and only the kernel of this backend.
    run = subprocess.run([found, "--tool", tool, "--error-exitcode", "9", "--kernel-name", f"kernel_substring={KERNEL}",
                          sys.executable, "-c", SMALL.format(shapes=SHAPES[rows])],
                         cwd=ROOT, capture_output=True, text=True, timeout=LIMIT,
                         env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)})
    return {"correct": run.returncode == 0, "output": (run.stdout + run.stderr)[-3000:]}


def _launches(stage: Stage, seed: int) -> Row:
    """Problems of random shapes in turn: every launch must give the bits of the first, which float64 judges."""
    rng, draw = random.Random(seed), torch.Generator(stage.device).manual_seed(seed)
    backend = stage.choose("cuda", "triton")
    cases, error = [], 0.0
    for _ in range(stage.choose(PROBLEMS, 1)):
        batch, n, m = _shape(rng) if not stage.rehearsing else (2, rng.randint(1, 9), rng.randint(1, 9))
        cost = torch.rand(batch, n, m, generator=draw, device=stage.device)
        settings = {"reg": rng.choice((0.2, 0.05)), "reg_m": rng.choice((0.5, (0.3, 2.0))), "tol": 0}
        textbook, exact = (
            unbalanced_sinkhorn(cost.to(dtype), method="sinkhorn", max_iter=4, backend=by, **settings)
            for by, dtype in ((backend, torch.float32), ("reference", torch.float64)))
        error = max(error, *(correctness.error(getattr(textbook, name), getattr(exact, name)) / settings["reg"]
                             for name in ("f", "g")))
        solve = partial(unbalanced_sinkhorn, cost, method=rng.choice(("auto", "sinkhorn")), backend=backend,
                        max_iter=rng.randint(1, stage.choose(40, 2)), grad="none", **settings)
        first = solve()
        error = math.inf if any(not bool(part.isfinite().all()) for part in (first.f, first.g)) else error
        cases.append((solve, _bits(first)))
    mismatches = torch.zeros((), dtype=torch.int64, device=stage.device)
    launches = stage.choose(LAUNCHES, 1) * len(cases)
    for _ in range(launches):
        solve, wanted = rng.choice(cases)
        mismatches += (_bits(solve()) != wanted).any()
    wrong = int(mismatches)
    return {"launches": launches, "mismatches": wrong, "bound": BOUND,
            "error": error if math.isfinite(error) else "not finite",
            "correct": wrong == 0 and error <= BOUND}


def _shape(rng: random.Random) -> tuple[int, int, int]:
    """A batch of small problems, or a few larger ones."""
    if rng.random() < 0.7:
        return rng.randint(1, 200), rng.randint(1, 200), rng.randint(1, 200)
    return rng.randint(1, 4), rng.randint(1, 1500), rng.choice((rng.randint(1, 5000), 4 * rng.randint(1, 2300)))


def _bits(solution: Solution) -> Tensor:
    return torch.cat((solution.f.flatten(), solution.g.flatten())).view(torch.int32)
