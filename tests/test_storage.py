"""Costs kept in half precision: the answers are those of the rounded cost, gradients go to the cost that was given."""

from __future__ import annotations

import math

import pytest
import torch
from interpreted import INTERPRETED
from problems import draw, unit_vectors
from torch import Tensor

import uotlib

DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
on_triton = pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs Triton's interpreter")
HALVES = ["float16", "bfloat16"]
SETTINGS = {"reg": 0.05, "reg_m": 0.5, "tol": 1e-6}


def solve(cost: object, backend: str, storage: str | None = None, **settings: object) -> uotlib.Solution:
    return uotlib.unbalanced_sinkhorn(cost, backend=backend, options=uotlib.SolverOptions(storage=storage),
                                      **SETTINGS | settings)


def given(dtype: torch.dtype) -> Tensor:
    cost = draw(9, 16, seed=2).cost
    cost[3, 5] = math.inf
    return cost.to(DEVICE, dtype).requires_grad_()


@on_triton
@pytest.mark.parametrize(("storage", "dtype"), [("float16", torch.float32), ("bfloat16", torch.float32),
                                                ("float16", torch.float16), ("float16", torch.bfloat16)])
def test_triton_solves_the_rounded_cost(storage, dtype):
    """Exactly: arithmetic is float32's.  Gradients go to the cost that was given, in its type, in which they are added
    up: those of the plan have parts that nearly cancel."""
    cost, kept = given(dtype), getattr(torch, storage)
    rounded = cost.detach().to(kept).double().requires_grad_()
    half, whole = solve(cost, "triton", storage), solve(rounded, "reference", tol=1e-9)
    torch.testing.assert_close(half.plan.double(), whole.plan, rtol=1e-4, atol=1e-7)
    v = torch.arange(16.0, device=DEVICE)
    for output in (lambda s: s.value, lambda s: s.apply(v).square().sum(), lambda s: s.transport_cost):
        (ours,), (theirs,) = (torch.autograd.grad(output(s), c, retain_graph=True)
                              for s, c in ((half, cost), (whole, rounded)))
        assert ours.dtype == dtype
        bound = max(1e-3, 32 * torch.finfo(dtype).eps) * float(theirs.abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


@on_triton
@pytest.mark.parametrize("shared", [False, True])
def test_triton_keeps_a_materialised_cost_in_half(shared):
    rng = torch.Generator().manual_seed(0)
    shapes = ((2, 5, 4), (6, 4)) if not shared else ((5, 4), (6, 4))
    x, z = (unit_vectors(shape, rng).float().to(DEVICE).requires_grad_() for shape in shapes)
    b = torch.rand(2, 6, generator=rng).to(DEVICE)
    half, whole = (solve(uotlib.CosineCost(x, z), "triton", storage, b=b) for storage in ("float16", None))
    assert half._matrix.dtype == torch.float16
    assert whole._matrix.dtype == torch.float32
    for ours, theirs in zip(*(torch.autograd.grad(s.barycentric(z).square().sum() + s.f.sin().sum(), (x, z))
                              for s in (half, whole)), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.1 * float(theirs.abs().max()))  # 2^-11 / eps, magnified


@on_triton
@pytest.mark.parametrize("storage", HALVES)
def test_triton_rounds_by_what_the_type_rounds(storage):
    """Plan and potentials are off by the error of the cost over eps, and by no more than twice that."""
    cost = given(torch.float32).detach()
    error = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[storage]
    half, whole = solve(cost, "triton", storage), solve(cost, "triton")
    assert float((half.f - whole.f).abs().max()) <= 2 * error
    some = whole.plan > 0
    assert 0 < float((half.plan[some] / whole.plan[some]).log().abs().max()) <= 4 * error / SETTINGS["reg"]


@on_triton
def test_triton_refuses_what_half_cannot_hold():
    with pytest.raises(ValueError, match=r"finite entries that SolverOptions.storage='float16' cannot hold: .* 65504"):
        solve(torch.full((3, 4), 1e5), "triton", "float16", reg=1e4)
    solve(torch.full((3, 4), 1e5), "triton", "bfloat16", reg=1e4)
    features = torch.rand(3, 2)
    with pytest.raises(ValueError, match=r"storage='float16' is for costs in memory, and this one .* is streamed"):
        solve(uotlib.SqEuclideanCost(features, features, materialize=False), "triton", "float16")
    with pytest.raises(ValueError, match="storage='float16' is for costs and masses of float32 or less, got float64"):
        solve(torch.rand(3, 4).double(), "triton", "float16")


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_backends_without_it_say_so(backend):
    with pytest.raises(ValueError, match=f"storage='bfloat16': the {backend} backend keeps costs in the solver's type"):
        solve(torch.rand(3, 4), backend, "bfloat16")


def test_unknown_types_are_named():
    with pytest.raises(ValueError, match=r"SolverOptions.storage must be None, 'float16' or 'bfloat16', got 'float8'"):
        uotlib.SolverOptions(storage="float8")
