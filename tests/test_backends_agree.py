"""Whole solves by each backend, over a table of types and shapes, against float64 and against plain torch.

The operations themselves are compared in the tests of each backend.
"""

from __future__ import annotations

import math

import pytest
import torch
from problems import CONVENTIONS, INF, PENALTIES, draw
from tolerances import ROUNDOFF, SOLVED_IN, assert_close, assert_no_worse, plan_rtol

from uotlib import unbalanced_sinkhorn
from uotlib.backends import BACKENDS
from uotlib.backends.reference import ReferenceBackend

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
#: Odd, prime, and around the widths of vectors and tiles; rows and columns alone.
SHAPES = [(1, 1), (1, 41), (41, 1), (7, 16), (17, 15), (33, 64), (65, 127), (401, 3)]


def plain_torch(case, dtype, n_iter):
    """The textbook written with torch's own operations, everything in one type."""
    cost, log_a, log_b = case.cost.to(dtype), case.a.to(dtype).log(), case.b.to(dtype).log()
    steps = [case.reg if math.isinf(tau) else tau * case.reg / (tau + case.reg) for tau in case.reg_m]
    g = torch.zeros_like(log_b)
    for _ in range(n_iter):
        f = -steps[0] * torch.logsumexp(log_b[None, :] + (g[None, :] - cost) / case.reg, 1)
        g = -steps[1] * torch.logsumexp(log_a[:, None] + (f[:, None] - cost) / case.reg, 0)
    return torch.exp(log_a[:, None] + log_b[None, :] + (f[:, None] + g[None, :] - cost) / case.reg)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reg", [1.0, 1e-1, 1e-2, 1e-3])
def test_iterates_are_within_the_table(dtype, reg, backend):
    """The same ten iterations in float64, from the same (rounded) numbers."""
    case = draw(29, 41, seed=1, kind="clustered", reg=reg)
    rounded = case.but(cost=case.cost.to(dtype), a=case.a.to(dtype), b=case.b.to(dtype))
    exact = case.but(cost=rounded.cost.double(), a=rounded.a.double(), b=rounded.b.double()).reference(10)
    plan = rounded.solve(method="sinkhorn", max_iter=10, tol=0.0, backend=backend).plan
    assert plan.dtype == SOLVED_IN[dtype]
    assert_close(plan, exact.plan, plan_rtol(dtype, 2.0, reg))


@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, INF)])
@pytest.mark.parametrize("dtype", DTYPES[1:])  # in float64, plain torch is the truth itself
@pytest.mark.parametrize("reg", [1.0, 1e-1, 1e-2])
def test_error_is_at_most_twice_that_of_plain_torch(dtype, reg, reg_m, backend):
    """Both against float64 on the unrounded problem; half precision pays its own rounding, plain torch far more."""
    case = draw(29, 41, seed=2, reg=reg, reg_m=reg_m)
    truth = case.reference(20).plan
    rounded = case.but(cost=case.cost.to(dtype), a=case.a.to(dtype), b=case.b.to(dtype))
    actual = rounded.solve(method="sinkhorn", max_iter=20, tol=0.0, backend=backend).plan
    assert_no_worse(actual, plain_torch(case, dtype, 20), truth)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes(shape, dtype, backend):
    case = draw(*shape, seed=3, reg=0.05, reg_m=(0.3, 2.0))
    rounded = case.but(cost=case.cost.to(dtype), a=case.a.to(dtype), b=case.b.to(dtype))
    tol = 1e-5 if dtype == torch.float32 else 1e-11
    exact = case.but(cost=rounded.cost.double(), a=rounded.a.double(), b=rounded.b.double()).solve(
        tol=1e-12, max_iter=3000, backend="reference")
    solution = rounded.solve(tol=tol, backend=backend)
    assert_close(solution.plan, exact.plan, 40 * tol + plan_rtol(dtype, 1.0, 0.05))
    assert_close(solution.value, exact.value, tol + plan_rtol(dtype, 1.0, 0.05))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", PENALTIES)
def test_solutions_agree(reg_m, reg_type):
    if BACKENDS["native"].why_not(torch.device("cpu"), torch.float64):
        pytest.skip(f"backend native: {BACKENDS['native'].why_not(torch.device('cpu'), torch.float64)}")
    case = draw(23, 37, seed=4, batch=(3,), reg=0.02, reg_m=reg_m, reg_type=reg_type)
    native, reference = (case.solve(backend=name, tol=1e-9, max_iter=3000) for name in ("native", "reference"))
    assert_close(native.plan, reference.plan, 1e-6)
    assert_close(native.value, reference.value, 1e-9)
    assert_close(native.f - native.f.mean(-1, keepdim=True), reference.f - reference.f.mean(-1, keepdim=True), 1e-6)
    assert torch.equal(native.argmax(), reference.argmax())


def test_zero_masses_and_forbidden_pairs(backend):
    case = draw(19, 23, seed=5, batch=(4,), reg=0.05)
    rng = torch.Generator().manual_seed(0)
    cost = case.cost.masked_fill(torch.rand(4, 19, 23, generator=rng) < 0.3, INF)
    a = case.a * (torch.rand(4, 19, generator=rng) > 0.3)
    b = case.b * (torch.rand(4, 23, generator=rng) > 0.3)
    solution = case.but(cost=cost, a=a, b=b).solve(backend=backend, tol=1e-11)
    for item in range(4):
        alive, reached = a[item] > 0, b[item] > 0
        dropped = case.but(cost=cost[item][alive][:, reached], a=a[item][alive], b=b[item][reached])
        assert_close(solution.plan[item][alive][:, reached], dropped.solve(tol=1e-11, backend=backend).plan, 1e-9)
        assert not solution.plan[item][~alive].any()
        assert not solution.plan[item][:, ~reached].any()
    assert not solution.plan[torch.isinf(cost)].any()
    assert torch.isfinite(solution.value).all()


def test_no_backend_reads_what_it_should_not(backend):
    """Rows, columns and items around a view are NaN: one stray read and the answer is NaN."""
    case = draw(13, 21, seed=6, batch=(3,), reg=0.05)
    for dtype in (torch.float32, torch.float64):
        poisoned = torch.full((5, 15, 24), torch.nan, dtype=dtype)
        poisoned[1:4, 1:14, 2:23] = case.cost
        view = poisoned[1:4, 1:14, 2:23]
        solution = case.but(cost=view, a=case.a.to(dtype), b=case.b.to(dtype)).solve(backend=backend)
        clean = case.but(cost=view.clone(), a=case.a.to(dtype), b=case.b.to(dtype)).solve(backend=backend)
        assert torch.equal(solution.plan, clean.plan)
        assert torch.equal(solution.col_mass, clean.col_mass)


def test_unwritten_memory_never_shows(backend, monkeypatch):
    """With torch.empty made of NaN, every output entry has to have been written."""
    genuine = torch.empty

    def poisoned(*args, **kwargs):
        tensor = genuine(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    case = draw(17, 19, seed=7, batch=(3,), reg=0.05)
    case.a[1, 3:], case.b[2, :4] = 0.0, 0.0
    clean = case.solve(backend=backend)
    expected = [clean.plan, clean.f, clean.g, clean.value, clean.apply(torch.ones(19)), clean.topk(3)[0]]
    monkeypatch.setattr(torch, "empty", poisoned)
    dirty = case.solve(backend=backend)
    for right, actual in zip(expected, [dirty.plan, dirty.f, dirty.g, dirty.value, dirty.apply(torch.ones(19)),
                                        dirty.topk(3)[0]], strict=True):
        assert torch.equal(actual, right)


def test_reference_backend_is_the_textbook():
    """Its row log-sum-exp against torch.logsumexp of the definition: what all other comparisons stand on."""
    case = draw(9, 11, seed=8)
    log_v = torch.randn(1, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reg = torch.tensor([0.3], dtype=torch.float64)
    expected = torch.logsumexp(log_v - case.cost[None] / 0.3, -1)
    assert_close(ReferenceBackend().row_lse(case.cost[None], log_v, reg), expected, 4 * ROUNDOFF[torch.float64])


def test_large_totals_and_tiny_totals(backend):
    """Masses in any unit: 1e-12 and 1e12 of them."""
    case = draw(11, 13, seed=9, reg=0.1)
    for unit in (1e-12, 1e12, 1e-30):
        single = case.but(cost=case.cost.float(), a=(unit * case.a).float(), b=(unit * case.b).float())
        double = case.but(cost=single.cost.double(), a=single.a.double(), b=single.b.double())
        assert_close(single.solve(backend=backend).plan.double() / unit, double.solve(tol=1e-11).plan / unit, 1e-3)


def test_auto_takes_the_compiled_backend_where_there_is_one():
    cost = torch.rand(5, 6)
    answers = {name: unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0, backend=name).plan
               for name, backend in BACKENDS.items() if backend.why_not(cost.device, cost.dtype) is None}
    first = next(iter(answers.values()))
    assert torch.equal(unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0).plan, first)
