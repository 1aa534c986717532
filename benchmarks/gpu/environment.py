"""Where a figure was measured: device, versions, commit, and hashes of the sources that it is a figure of."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "POT", "geomloss", "flash-sinkhorn", "ott-jax", "jax")
#: What runs on the device, and what launches it: a record of other ones is stale.
KERNELS = ("uotlib/kernels/*.py", "uotlib/backends/base.py", "uotlib/backends/triton*.py",
           "uotlib/backends/features.py", "uotlib/backends/cuda.py", "uotlib/solver.py", "uotlib/operators.py",
           "uotlib/anderson.py", "csrc/cuda/*", "csrc/*.h", "csrc/resident_bindings.cpp", "csrc/cpu/constants.h",
           "setup.py")
#: All that a figure depends on: records of other ones are not completed, but begun anew.
SOURCES = ("uotlib/**/*.py", "csrc/**/*", "setup.py", "benchmarks/*.py", "benchmarks/gpu/*.py", "benchmarks/gpu/*.cu",
           "benchmarks/cpu/**/*.py", "examples/unite/**/*.py")
#: What must be equal for one record to hold the sections of two runs.
IDENTITY = ("device", "driver", "torch", "triton", "commit", "sources", "rehearsal")


def describe(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Everything that a reader needs to place the figures, None where it cannot be had.

    Args:
        commit: What to write where git does not say, as in a copy of the tree.
    """
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    record: dict[str, Any] = {
        "device": platform.processor() or platform.machine(), "python": platform.python_version(),
        **{package.replace("-", "_").lower(): _version(package) for package in PACKAGES},
        "cuda": torch.version.cuda, "hip": torch.version.hip, "driver": None, "multiprocessors": None,
        "memory_bytes": None, "l2_bytes": None, "capability": None,
        "commit": _output("git", "rev-parse", "HEAD") or commit, "dirty": None if changed is None else bool(changed),
        "kernels": digest(KERNELS), "sources": digest(SOURCES), "date": datetime.now(UTC).date().isoformat(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "device": properties.name, "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory, "l2_bytes": properties.L2_cache_size,
            "capability": list(torch.cuda.get_device_capability(device)),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return record


def digest(patterns: tuple[str, ...], root: Path = ROOT) -> str:
    """Hash of the names and contents of the files that match, in twelve hexadecimal digits."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()}):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:12]


def slug(name: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
