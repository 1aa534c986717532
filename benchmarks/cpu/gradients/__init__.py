"""Gradients: what is differentiated, the library's backward, and its peers', one file each."""

from __future__ import annotations

from .base import LOSSES, Differentiable, Pass, Task, draw_task
from .ott import OTT
from .unrolled import COMMON, GEOMLOSS, LOGSUMEXP, POT

__all__ = ["COMMON", "DIFFERENTIABLE", "LOGSUMEXP", "LOSSES", "OTT", "Differentiable", "Pass", "Task", "draw_task"]

#: What the full run measures.
DIFFERENTIABLE: tuple[Differentiable, ...] = (LOGSUMEXP, POT, GEOMLOSS, OTT)
