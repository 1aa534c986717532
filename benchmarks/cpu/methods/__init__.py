"""The library and its peers, one file each; `all_peers` lists those that are measured."""

from __future__ import annotations

from .base import Answer, Method, Missing, Runner
from .geomloss import GEOMLOSS
from .logsumexp import COMPILED, EAGER
from .ott import OTT
from .pot import PLAIN, STABILISED, TRANSLATION_INVARIANT

__all__ = ["COMPILED", "EAGER", "GEOMLOSS", "OTT", "PEERS", "PLAIN", "STABILISED", "TRANSLATION_INVARIANT", "Answer",
           "Method", "Missing", "Runner"]

#: What the full run measures, each with the settings that won the trial (``python -m benchmarks.cpu.trial``).
PEERS: tuple[Method, ...] = (*PLAIN, *STABILISED, *TRANSLATION_INVARIANT, *GEOMLOSS, *OTT, EAGER, COMPILED)
