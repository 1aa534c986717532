"""`pytest -m gpu`: every test that needs a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import partial

from .environment import ROOT
from .stage import Row, Stage

#: Processes that compile kernels side by side; seconds that all tests may take.
WORKERS, LIMIT = 6, 110


def measure(stage: Stage) -> None:
    """A rehearsal collects those that need no interpreter, which finds what cannot be imported."""
    # Of the files that have some: others import peers, which need not be there.
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py")
                   if "mark.gpu" in path.read_text())
    words = ["-m", "gpu", *stage.choose(files, ["tests/test_gpu.py", "--collect-only"])]
    stage.row({"suite": "pytest -m gpu"}, partial(_pytest, words, stage.rehearsing))


def _pytest(words: list[str], rehearsing: bool) -> Row:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfEs", *words]
    if importlib.util.find_spec("xdist") and not rehearsing:
        command += ["-n", str(WORKERS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    counts = {word.rstrip("s"): int(count)
              for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)", run.stdout)}
    return {"correct": run.returncode == 0, **counts, "output": (run.stdout + run.stderr)[-6000:]}
