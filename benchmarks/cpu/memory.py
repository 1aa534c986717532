"""Memory that a whole solve takes beside its inputs, in a process of its own.

    python -m benchmarks.cpu.memory [--n 4096]
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import peak_bytes
from uotlib import unbalanced_sinkhorn

from .bench import Bench
from .case import TARGETS, Target
from .machine import ROOT
from .record import Row


def memory(bench: Bench, n: int, target: Target = TARGETS[2]) -> Row:
    """Extra bytes of a solve over the bytes of its cost, measured by a fresh process."""
    found = ask("benchmarks.cpu.memory", n=n, threads=bench.threads, reg=target.reg, reg_m=target.reg_m,
                tol=target.violation)
    return bench.recorder.add(Row("memory", n, "uotlib", eps=target.reg, tau=target.reg_m, target=target.violation,
                                  setting="auto", of_floor=found["extra"] / found["cost"], iterations=found["passes"],
                                  status="reached" if found["converged"] else "slow", note=found["how"]))


def _status_bytes(field: str) -> int:
    """A line of /proc/self/status."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def start() -> tuple[int, str]:
    """Bytes now, and how the peak will be known: where the kernel can, it starts to count here."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmRSS"), "peak of VmHWM since the call"
    except OSError:
        return peak_bytes(), "growth of the process's peak"


def peak(how: str) -> int:
    """Most bytes since ``start``, as it said."""
    return _status_bytes("VmHWM") if how.startswith("peak") else peak_bytes()


def ask(module: str, **arguments: object) -> dict[str, Any]:
    """What a fresh process of this module prints, as JSON."""
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return json.loads(subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, check=True,
                                     stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--reg", type=float, default=TARGETS[2].reg)
    parser.add_argument("--reg_m", type=float, default=TARGETS[2].reg_m)
    parser.add_argument("--tol", type=float, default=TARGETS[2].violation)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(32, 64, generator=generator)
    x, z = (torch.nn.functional.normalize(centres[torch.arange(arguments.n) * 32 // arguments.n]
            + 0.35 * torch.randn(arguments.n, 64, generator=generator), dim=1) for _ in range(2))
    settings = {"reg": arguments.reg, "reg_m": arguments.reg_m, "tol": arguments.tol, "backend": "native"}
    small = 1 - x[:64] @ z[:64].T
    unbalanced_sinkhorn(small, **settings)  # what importing and threads take is not a solve's
    cost = torch.mm(x, z.T).neg_().add_(1)  # in place: nothing larger was ever there
    before, how = start()
    solution = unbalanced_sinkhorn(cost, **settings)
    print(json.dumps({"extra": max(0, peak(how) - before), "cost": cost.numel() * cost.element_size(), "how": how,
                      "passes": int(solution.n_iter), "converged": bool(solution.converged)}))


if __name__ == "__main__":
    main()
