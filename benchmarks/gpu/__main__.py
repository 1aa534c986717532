"""Every check and figure that needs a GPU, in one command: `python -m benchmarks.gpu [--out DIR] [--quick]`.

Ceilings of the device first, then correctness, then times; a result that fails its check is reported and not timed.
Exit status: 0 all correct, 1 something wrong, 2 no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: No section starts later than this after the start, so that the whole ends within eight minutes.
LATEST_START_S = 330


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON file")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, no torch.compile, no pytest")
    parser.add_argument("--interpret", action="store_true",
                        help="no GPU: tiny correctness checks under Triton's interpreter, nothing timed")
    arguments = parser.parse_args()
    if arguments.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

    import torch

    if not arguments.interpret and not torch.cuda.is_available():
        print("benchmarks.gpu needs a GPU, and torch sees none here; --interpret checks the kernels without one.",
              file=sys.stderr)
        return 2

    from . import environment

    device = torch.device("cpu" if arguments.interpret else "cuda")
    record: dict[str, Any] = {"environment": environment.describe(device), "interpreted": arguments.interpret,
                              "quick": arguments.quick}
    print(json.dumps(record["environment"], indent=1), flush=True)
    name = "interpreter" if arguments.interpret else environment.slug(record["environment"]["device"])
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / f"{name}.json"

    begin = time.perf_counter()
    for section, run in _sections(device, record["environment"], arguments).items():
        if time.perf_counter() - begin > LATEST_START_S:
            record[section] = {"skipped": "out of time"}
            continue
        try:
            record[section] = run()
        except Exception:  # the other sections are still worth having
            record[section] = {"correct": False, "failure": traceback.format_exc()[-3000:]}
        target.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\n{section}\n{_table(record[section])}", flush=True)
    record["seconds"] = time.perf_counter() - begin
    wrong = _wrong(record)
    record["wrong"] = wrong
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{wrong or 'nothing'} wrong; {record['seconds']:.0f} s; {target}")
    return 1 if wrong else 0


def _sections(device: Any, hardware: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What to run, in order of worth."""
    import torch

    from . import correctness

    if arguments.interpret:
        return {"correctness": lambda: [row for eps in (1e-1, 1e-4) for holes in (False, True)
                                        for row in correctness.check((2, 9, 21), eps, device, holes=holes)]}

    from . import ceilings, solves, sweeps

    sizes = (1024, 4096) if arguments.quick else (1024, 2048, 4096)
    batches = (1,) if arguments.quick else (1, 8)
    regs = (1e-2,) if arguments.quick else (1e-1, 1e-2, 1e-3, 1e-4)
    shapes = [(1, 1, 1), (3, 41, 130), (2, 1000, 777), (1, 1024, 1024), (2, 300, 9001), (1, 4096, 4096)]

    def checks() -> list[dict[str, Any]]:
        rows = [row for shape in shapes for eps in (1e-1, 1e-4) for row in correctness.check(shape, eps, device)]
        for dtype in (torch.float32, torch.float64):
            rows += correctness.check((3, 333, 500), 1e-3, device, dtype, holes=True)
        return rows

    sections: dict[str, Callable[[], Any]] = {
        "ceilings": lambda: ceilings.measure(device, hardware["multiprocessors"], hardware["l2_bytes"]),
        "correctness": checks,
        "sweep": lambda: [row for n in sizes for batch in batches
                          for row in sweeps.time_size(n, batch, regs, device, hardware, not arguments.quick)],
        "batch_of_small": lambda: sweeps.time_batches(device, hardware),
        "weak_column_fallback": lambda: sweeps.time_fallback(device),
        "small_solves": lambda: solves.time_small(device),
        "tiles_4096": lambda: sweeps.time_tiles(device, hardware),
        "solves": lambda: solves.time_solves(1024 if arguments.quick else 4096, device),
    }
    if not arguments.quick:
        sections["pytest"] = _gpu_tests
    return sections


def _gpu_tests() -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=140, check=False)
    except subprocess.TimeoutExpired:
        return {"correct": False, "failure": "not finished after 140 s"}
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", run.stdout)}
    return {"correct": run.returncode == 0, **counts, "tail": run.stdout[-1500:]}


def _wrong(value: Any) -> int:
    """How many results say of themselves that they are not correct."""
    if isinstance(value, dict):
        return int(value.get("correct") is False) + sum(_wrong(part) for part in value.values())
    return sum(_wrong(part) for part in value) if isinstance(value, list) else 0


def _table(section: Any) -> str:
    rows = section if isinstance(section, list) else [section]
    return "\n".join("  " + "  ".join(f"{key}={_short(value)}" for key, value in row.items()) for row in rows)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
