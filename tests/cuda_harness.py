"""The resident kernel's code compiled for the processor, and what its tests need to call it."""

from __future__ import annotations

import ctypes
import math
import os
import random
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import uotlib
from uotlib.options import SolverOptions
from uotlib.outcome import StoredOutcome

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/cuda/host_harness.cpp"
COMPILER = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")), "")]
INF = math.inf
FAULTS = {-1: "the blocks did not come to the same decisions", -2: "a wait for a phase that never completes",
          -3: "a copy to a stage that is still read", -4: "an arrival too many", -5: "a read that was not waited for"}
#: Numbers of SolverOptions in the order in which the harness takes them.
OPTIONS = ("anneal_start", "anneal_factor", "anneal_violation", "anneal_accuracy", "anneal_order", "anneal_passes",
           "anderson_depth", "anderson_start", "safeguard", "backtrack", "trust_region", "check_every")


def build(place: Path, *flags: str, source: Path = SOURCE) -> Path:
    library = place / "resident.so"
    command = [*COMPILER, "-std=c++17", "-shared", "-fPIC", "-pthread", *flags, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


def built(place: Path) -> ctypes.CDLL:
    """As every test but those of the sanitizers and of broken code wants it."""
    return ctypes.CDLL(str(build(place, "-O2", "-fno-math-errno", "-Wall", "-Wextra", "-Werror")))


needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER[0]),
                                    reason="needs a C++ compiler: c++, g++, clang++ or CXX")


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def run(harness: Any, cost: Tensor, a: Tensor, b: Tensor, reg: float, reg_m: tuple[float, float], reg_type: str = "kl",
        method: str = "auto", max_iter: int = 500, tol: float | None = None, *, start: Tensor | None = None,
        items: Tensor | None = None, blocks: int = 4, groups: int = 1, room: int = 1 << 16, cache: int = 1 << 40,
        seed: int = 0, bulk: bool = False,
        options: SolverOptions | None = None) -> StoredOutcome:
    """Problems of a batch (B, n, m) by the kernel: so many groups of so many blocks, with ``room`` bytes each for rows.

    ``bulk``: the device has bulk copies.  A cache of fewer bytes than the cost makes rows come from memory.
    ``blocks=0``: the planner divides ``groups`` blocks.
    """
    options = options or SolverOptions()
    count, n, m = (cost.shape[0] if items is None else len(items)), *cost.shape[1:]
    a, b = (mass.double().expand(count, -1).contiguous() for mass in (a, b))
    reg64, tau_a, tau_b = (torch.full((count,), value, dtype=torch.float64) for value in (reg, *reg_m))
    known = {**vars(options), "check_every": options.looks_every(asynchronous=False)}
    numbers = torch.tensor([float(known[name]) for name in OPTIONS], dtype=torch.float64)
    out = torch.full((count * (3 * n + 3 * m + 5),), math.nan, dtype=torch.float64)
    size = ctypes.c_int64
    solve = harness.resident_solve
    solve.restype = size
    phases = solve(address(cost), size(cost.stride(0)), size(cost.stride(1)), address(items), size(count), size(n),
                   size(m), address(a), address(tau_a), address(b), address(tau_b), address(reg64), address(start),
                   address(out), int(reg_type == "entropy"), int(method == "sinkhorn"), size(max_iter),
                   ctypes.c_double(tol or 0.0), int(tol != 0), address(numbers),
                   (size * 5)(max(blocks, 1) * groups, room, cache, int(bulk), 0), size(blocks), ctypes.c_uint64(seed))
    assert phases > 0, FAULTS[int(phases)]
    return StoredOutcome(out, count, n, m, all_converged=False)


def vectors(outcome: StoredOutcome) -> list[Tensor]:
    pair = outcome.pair
    return [pair.f, pair.g, pair.log_u, pair.log_v, pair.row_lse, pair.col_lse]


def problem(rng: random.Random, n: int, m: int, both_exact: bool, holes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A cost (1, n, m) and masses; with holes, some masses are zero and some pairs forbidden."""
    draw = torch.Generator().manual_seed(rng.randrange(1 << 30))
    cost = torch.rand(1, n, m, generator=draw)
    a, b = (0.2 + torch.rand(size, generator=draw, dtype=torch.float64) for size in (n, m))
    if holes and min(n, m) > 4:
        a[3], b[1], b[m - 1] = 0, 0, 0
        cost[0, 1:, 2:][torch.rand(n - 1, m - 2, generator=draw) < 0.3] = INF
    if both_exact:
        b *= a.sum() / b.sum()
    return cost, a, b


def deviation(got: Tensor, wanted: Tensor) -> float:
    """Largest difference; infinite entries must be the same."""
    same = got == wanted
    return float(torch.where(same, 0.0, (got - wanted).abs()).max())


def agrees(harness: Any, n: int, m: int, *, holes: bool = False, passes: int = 3, atol: float = 5e-7, **cut) -> None:
    """A few passes of one problem, which uotlib's own loop does in float64."""
    cost, a, b = problem(random.Random(n + m), n, m, both_exact=False, holes=holes)
    how = {"method": cut.pop("method", "auto"), "max_iter": passes}
    got = run(harness, cost, a, b, 0.05, (0.5, 2.0), tol=0.0, **how, **cut)
    wanted = uotlib.unbalanced_sinkhorn(cost.double(), a, b, reg=0.05, reg_m=(0.5, 2.0), tol=0, backend="native", **how)
    assert deviation(got.pair.f, wanted.f) <= atol
    assert deviation(got.pair.g, wanted.g) <= atol


def division(harness: Any, count: int, n: int, m: int, blocks: int = 0,
             chip: tuple[int, int, int] | None = None, bulk: bool = False,
             clusters: int = 0) -> dict[str, int]:
    """How a batch is divided on a device: by default the H100, of which so many blocks fit clusters of any size."""
    out = (ctypes.c_int64 * 9)()
    size = ctypes.c_int64
    harness.resident_division(size(count), size(n), size(m), (size * 5)(*(chip or H100), int(bulk), clusters),
                              size(blocks), out)
    names = ("groups", "blocks", "way", "resident", "stages", "together", "used", "bulk", "cluster")
    return dict(zip(names, out, strict=True))


#: Multiprocessors, bytes of shared memory for rows, bytes of cache.
H100 = (132, 200_000, 50 << 20)
AHEAD, RING, PANELS = range(3)
