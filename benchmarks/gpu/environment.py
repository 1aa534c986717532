"""Where a figure was measured: device, versions, commit."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch
import triton

ROOT = Path(__file__).resolve().parents[2]


def _output(*command: str) -> str | None:
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def describe(device: torch.device) -> dict[str, Any]:
    """Everything that a reader needs to place the figures, None where it cannot be had."""
    record: dict[str, Any] = {
        "device": platform.processor() or platform.machine(), "torch": torch.__version__, "triton": triton.__version__,
        "python": platform.python_version(), "cuda": torch.version.cuda, "hip": torch.version.hip, "driver": None,
        "commit": _output("git", "rev-parse", "HEAD"), "dirty": bool(_output("git", "status", "--porcelain")),
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


def slug(name: str) -> str:
    """A device's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"
