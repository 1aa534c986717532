"""`pytest -m gpu`: every test that needs a GPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from functools import partial

from .environment import ROOT
from .stage import Row, Stage

#: Processes that compile kernels side by side; seconds that the tests of a file may take, less than a row may.
WORKERS, LIMIT = 6, 95


def measure(stage: Stage) -> None:
    """A rehearsal collects those that need no interpreter, which finds what cannot be imported."""
    # Of the files that have some: others import peers, which need not be there.
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py")
                   if "mark.gpu" in path.read_text())
    for file in stage.choose(files, ["tests/test_gpu.py"]):
        words = ["-m", "gpu", file, *stage.choose([], ["--collect-only"])]
        stage.row({"suite": f"pytest -m gpu {file}"}, partial(_pytest, words, stage.rehearsing))


def _pytest(words: list[str], rehearsing: bool) -> Row:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfEs", *words]
    if importlib.util.find_spec("xdist") and not rehearsing:
        command += ["-n", str(WORKERS)]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired as late:
        shown = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        return {"correct": False, "failure": f"not finished after {LIMIT} s", "output": shown[-6000:]}
    counts = {word.rstrip("s"): int(count)
              for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?|deselected)", run.stdout)}
    # On a device, a file whose tests were all skipped has shown nothing.
    correct = run.returncode == 0 and (rehearsing or counts.get("passed", 0) > 0)
    return {"correct": correct, **counts, "output": (run.stdout + run.stderr)[-6000:]}
