"""Loops that run inside Triton's kernels against the loop in Python: on a GPU, or under the interpreter."""

from __future__ import annotations

import os
import warnings

import torch
from problems import INF, Case, generator

import uotlib
from uotlib import ConvergenceWarning

ON_GPU = torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1"
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
FIELDS = ("f", "g", "row_mass", "col_mass", "violation", "gap")
#: Of `SolverOptions`, so that each setting is away from its default somewhere.
OPTIONS = [{"anderson_depth": 0, "anneal_order": 0},
           {"anderson_depth": 1, "anderson_start": 3, "anneal_passes": 2, "check_every": 5},
           {"trust_region": 0.05, "safeguard": 1.0, "backtrack": 0.9, "anneal_factor": 0.9}]


def by(backend: str, case: Case, **settings) -> uotlib.Solution:
    moved = case.but(cost=case.cost.to(DEVICE), a=case.a.to(DEVICE), b=case.b.to(DEVICE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return moved.solve(backend=backend, **settings)


def assert_same(found: uotlib.Solution, python: uotlib.Solution, atol: float = 1e-9) -> None:
    assert torch.equal(found.n_iter, python.n_iter)
    assert torch.equal(found.converged, python.converged)
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(python, name), rtol=1e-6, atol=atol, equal_nan=True)


def assert_same_way(case: Case, atol: float = 1e-9, **settings) -> uotlib.Solution:
    """The kernels and the loop in Python take the same passes to the same pair and certificate."""
    found, python = by("triton", case, **settings), by("reference", case, **settings)
    assert_same(found, python, atol)
    return found


def with_idle_points(case: Case) -> Case:
    """Zero masses, forbidden pairs, and rows and columns that reach nothing."""
    n, m = case.cost.shape
    case.cost[torch.rand(n, m, generator=generator(6)) < 0.3] = INF
    case.cost[3], case.cost[:, 7] = INF, INF
    case.a[[0, 5]], case.b[[2, 11, m - 1]] = 0, 0
    return case
