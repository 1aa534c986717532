"""The registry of backends, and the one rule by which one is chosen."""

from __future__ import annotations

import torch

from ..exceptions import BackendUnavailable
from .base import Backend
from .cuda import CudaBackend
from .native import NativeBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

#: In the order in which ``backend="auto"`` tries those that are automatic.
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (NativeBackend(), TritonBackend(), CudaBackend(), ReferenceBackend())
}


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of that name, or for "auto" the first that can run costs of this device and type.

    Raises:
        ValueError: for an unknown name.
        BackendUnavailable: with each backend's own sentence.
    """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"backend must be 'auto', {', '.join(map(repr, BACKENDS))}, got {name!r}")
    reasons = []
    automatic = [backend for backend in BACKENDS.values() if backend.automatic]
    for backend in automatic if name == "auto" else [BACKENDS[name]]:
        reason = backend.why_not(device, dtype)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}" if name == "auto" else reason)
    raise BackendUnavailable("; ".join(reasons))
