"""Where a figure was measured: no host name, no path."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from uotlib._extension import extension

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("uotlib", "torch", "numpy", "POT", "geomloss", "ott-jax", "jax")
#: Cores that others may keep busy without a warning.
BUSY = 0.2


def machine(busy: float | None = None) -> dict[str, str]:
    """Columns that every row of the CSV has.

    Args:
        busy: Cores that other processes kept busy, as `others_busy` said.
    """
    return {
        "cpu": _cpu(), "cores": str(cores()), "threads": str(torch.get_num_threads()),
        "simd": extension.simd_level() if extension is not None else "no extension",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
        "busy": "unknown" if busy is None else f"{busy:.1f}",
        "commit": _commit(), "date": datetime.now(UTC).date().isoformat(),
    }


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others_busy(seconds: float = 1.0) -> float | None:
    """Cores that are busy while this process sleeps: who measures beside them measures them too.  Linux only."""
    def ticks() -> int:
        words = Path("/proc/stat").read_text().split("\n")[0].split()
        user, nice, system, _, _, *interrupts = map(int, words[1:8])
        return user + nice + system + sum(interrupts)

    try:
        before = ticks()
        time.sleep(seconds)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
    except OSError:
        return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """Model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Short hash, with a + where a tracked file was changed."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
