"""The compiled extension, built in place for the device at hand, and what the package says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from .environment import ROOT
from .stage import Row, Stage

#: Seconds that the build may take, and what is asked of the package then.
LIMIT, INFO_LIMIT = 95, 30


def measure(stage: Stage) -> None:
    """A rehearsal takes the extension as it is."""
    if not stage.rehearsing:
        stage.row({"step": "setup.py build_ext"}, partial(_run, LIMIT, "setup.py", "-q", "build_ext", "--inplace",
                                                          UOTLIB_CUDA_ARCHS=arch(stage.hardware["capability"])))
    stage.row({"step": "uotlib.info"}, partial(_run, INFO_LIMIT, "-m", "uotlib.info"))


def arch(capability: Sequence[int]) -> str:
    """What nvcc calls a compute capability, as setup.py compiles for it."""
    name = "".join(map(str, capability))
    return f"{name}a" if name in ("90", "100") else name


def _run(limit: int, *words: str, **environment: str) -> Row:
    begin = time.perf_counter()
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False,
                         env={**os.environ, **environment})
    text = run.stdout if run.returncode == 0 else run.stdout + run.stderr
    return {"correct": run.returncode == 0, "seconds": time.perf_counter() - begin, "output": text[-1500:]}
