"""What every launch of a Triton kernel needs.  Triton is imported at the first call, so uotlib imports without it."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ..kernels.tiles import Tile


@dataclass(frozen=True)
class Cut:
    """How programs share a cost: slabs of so many rows of each problem, in so many blocks of columns."""

    tile: Tile
    slabs: int
    rows: int
    blocks: int = 1


@functools.cache
def kernel_modules() -> tuple[ModuleType | None, str]:
    """The kernel modules, or why they cannot be had."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken install fails with OSError or worse, and the user needs its text
        return None, f"triton cannot be imported ({type(error).__name__}: {error})"
    return importlib.import_module("uotlib.kernels.launchable"), ""


def kernel(name: str) -> Any:
    module, reason = kernel_modules()
    if module is None:
        raise RuntimeError(reason)
    return getattr(module, name)


@functools.cache
def planes() -> ModuleType:
    """Where kernels find the state of a solve: `uotlib.kernels.state`, which imports Triton."""
    return importlib.import_module("uotlib.kernels.state")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4  # the interpreter: enough for several slabs an item
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch_options(tile: Tile) -> dict[str, Any]:
    """Options of every launch.  Floating-point fusion is said because its default differs between Triton versions."""
    options: dict[str, Any] = {"num_warps": tile.warps, "enable_fp_fusion": True}
    if torch.version.hip is None:  # AMD's compiler has no such option
        options["maxnreg"] = tile.registers
    return options


def interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)
