"""The cuda backend: an iteration and whole solves beside triton's, and its barrier and reads by themselves."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu.case import BATCH_TARGET, Problem
from benchmarks.cpu.methods.base import Missing
from uotlib.backends.cuda import CudaBackend

from . import problems
from .build import arch
from .environment import ROOT
from .iteration import our_iteration, our_solve
from .stage import Row, Stage

#: (problems, points a side): all in shared memory, partly in L2, beyond L2; many at a time; rows that go by panels.
SHAPES = ((1, 4096), (1, 2048), (1, 1024), (64, 512), (8, 4096), (256, 128), (8, 2048), (8, 1024), (4096, 32),
          (1000, 200), (1, 8192), (1, 16384))
REG, REG_M = 1e-2, 1.0
#: Of those, whole solves are timed too.
SOLVED = ((1, 4096), (64, 512), (256, 128), (4096, 32), (1000, 200))
#: And iterations also from CUDA graphs, without what the host takes: those that are short beside it.
GRAPHED = (*SOLVED, (1, 2048), (1, 1024))
CUDA = CudaBackend()
#: Rows of 4096 entries that fit shared memory everywhere beside what the kernel keeps there.
SHARED_ROWS = 4
#: Seconds that nvcc may take for the probes.
LIMIT = 90


def measure(stage: Stage) -> None:
    """A rehearsal has no device for the probes, and triton in the place of cuda."""
    for name, probe in {} if stage.rehearsing else {"barrier": _barrier, "shared": _shared, "cache": _cache}.items():
        stage.row({"probe": name}, partial(probe, stage))
    backends = stage.choose(("cuda", "triton"), ("triton",))
    for batch, n in stage.choose(SHAPES, ((2, 5),)):
        shape = {"n": n, "batch": batch, "eps": REG}
        if not stage.rehearsing:
            stage.row({"case": "division", **shape}, partial(CUDA.division, (batch, n, n), stage.device))
        drawn: Callable[[], Problem] = cache(partial(problems.dense, batch, n, REG, REG_M, stage.device))
        for method in ("sinkhorn", "auto"):
            for backend in backends:
                for graph in (False, True) if (batch, n) in GRAPHED else (False,):
                    stage.row({"case": "iteration", "method": f"uotlib {backend} {method}", **shape, "graph": graph},
                              lambda drawn=drawn, method=method, backend=backend, graph=graph: our_iteration(
                                  stage, drawn(), method, graph, backend=backend))
        for backend in backends if (batch, n) in stage.choose(SOLVED, ((2, 5),)) else ():
            stage.row({"case": "solve", "method": f"uotlib {backend} auto", **shape},
                      lambda drawn=drawn, backend=backend: our_solve(
                          stage, drawn(), stage.choose(BATCH_TARGET.violation, 0.1), backend=backend))


class Probes:
    """probes.cu, compiled for an architecture.

    Raises:
        Missing: without nvcc.
    """

    def __init__(self, architecture: str) -> None:
        nvcc = shutil.which("nvcc")
        if nvcc is None:
            raise Missing("nvcc is not on PATH")
        with tempfile.TemporaryDirectory() as place:
            library = Path(place) / "probes.so"
            subprocess.run([nvcc, "-std=c++17", "-O3", f"-arch=sm_{architecture}", "-shared", "-Xcompiler", "-fPIC",
                            "-o", str(library), str(ROOT / "benchmarks/gpu/probes.cu")],
                           check=True, capture_output=True, text=True, timeout=LIMIT)
            self.library = ctypes.CDLL(str(library))

    def call(self, name: str, *arguments: Any) -> None:
        """One of its functions, on the current stream.

        Raises:
            RuntimeError: with the number of CUDA's error.
        """
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status = getattr(self.library, name)(*arguments, stream)
        if status:
            raise RuntimeError(f"{name} failed with CUDA's error {status}")


#: Compiled once in a process.
compiled = cache(Probes)


def address(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def slope(stage: Stage, call: Callable[[int], None], few: int, many: int) -> float:
    """Seconds of a round: the difference of many and few."""
    return (stage.timer.host(lambda: call(many)) - stage.timer.host(lambda: call(few))) / (many - few)


def _barrier(stage: Stage) -> Row:
    """From the end of a phase to the begin of the next, in all blocks."""
    probes, blocks = compiled(arch(stage.hardware["capability"])), stage.hardware["multiprocessors"]
    lines = torch.zeros(256, dtype=torch.uint8, device=stage.device)

    def call(rounds: int) -> None:
        lines.zero_()
        probes.call("barrier", blocks, rounds, address(lines))

    return {"seconds": slope(stage, call, 100, 10_000)}


def _read(stage: Stage, held: bool, rows: int, pitch: int) -> Row:
    """Bytes a second of rows that every block reads again and again; their sum is checked."""
    probes, blocks = compiled(arch(stage.hardware["capability"])), stage.hardware["multiprocessors"]
    data = torch.rand(blocks, rows, pitch, device=stage.device)
    out = torch.empty(blocks, 512, device=stage.device)

    def call(rounds: int) -> None:
        probes.call("read", int(held), blocks, address(data), rows, pitch, rounds, address(out))

    call(1)
    error = float((out.double().sum(1) / data.double().sum((1, 2)) - 1).abs().max())
    seconds = slope(stage, call, 20, 420)
    return {"error": error, "correct": error < 1e-5, "bytes": data.nbytes, "seconds": seconds,
            "bytes_per_s": data.nbytes / seconds}


def _shared(stage: Stage) -> Row:
    """Rows that every multiprocessor has room for."""
    return _read(stage, True, SHARED_ROWS, 4096)


def _cache(stage: Stage) -> Row:
    """What a solve of 4096 x 4096 reads through the cache in a pass, 20 rows a block."""
    return _read(stage, False, 20, 4096)
