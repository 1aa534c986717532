"""What is installed here and what can run: ``python -m uotlib.info``, the first thing to paste into a bug report."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from ._extension import extension, missing
from .backends import BACKENDS
from .backends.triton import tile_table


def report() -> str:
    """Versions, the compiled extension, Triton's tiles, and every backend with what it runs on or why it does not.

    Returns:
        Lines of text, each a name and what there is to say about it.

    Example:
        >>> from uotlib.info import report
        >>> report().splitlines()[0].startswith("uotlib")
        True
    """
    lines = [("uotlib", _version("uotlib")),
             ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
             ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    lines += [(name, _version(name)) for name in ("triton", "numpy")]
    lines += _extension_lines()
    lines.append(("triton tiles", tile_table()[1]))
    for name, backend in BACKENDS.items():
        for device in _devices():
            reasons = {dtype: backend.why_not(device, dtype) for dtype in (torch.float32, torch.float64)}
            lines.append((f"{name} on {device}", _availability(reasons)))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _extension_lines() -> list[tuple[str, str]]:
    if extension is None:
        return [("extension", str(missing))]
    return [("extension", f"compiled by {extension.compiler}, runs {extension.simd_level()} here"),
            ("extension CUDA", f"{extension.cuda_archs or 'no architectures'}: {extension.cuda_device()}")]


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def _availability(reasons: dict[torch.dtype, str | None]) -> str:
    """One word where it holds for every type of cost, else one sentence each."""
    if len(set(reasons.values())) == 1:
        return next(iter(reasons.values())) or "available"
    return "; ".join(f"{str(dtype).removeprefix('torch.')}: {reason or 'available'}"
                     for dtype, reason in reasons.items())


if __name__ == "__main__":
    print(report())
