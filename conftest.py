"""The flag of the benchmarks, known wherever pytest is started in this repository."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("uotlib benchmarks", "measuring (pytest benchmarks/ --benchmark)")
    group.addoption("--benchmark", action="store_true",
                    help="measure; without it every benchmark runs once at a tiny size")
    group.addoption("--benchmark-sizes", metavar="N,N", default=None,
                    help="points a side (default: 256,1024,4096)")
    group.addoption("--benchmark-budget", metavar="SECONDS", type=float, default=None,
                    help="time that the search for a peer's best run may take at 4096 points (default: 4)")
    group.addoption("--benchmark-out", metavar="DIR", type=Path, default=None,
                    help="where cpu.csv and benchmark.png go (default: benchmarks/results and docs/images)")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to measure beside other workers of the same run."""
    if config.getoption("--benchmark") and (hasattr(config, "workerinput") or config.getoption("numprocesses", None)):
        raise pytest.UsageError("--benchmark measures and needs the machine to itself: run without -n, or with -n 0")
