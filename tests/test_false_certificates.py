"""No answer may call itself converged unless its own plan, summed anew in float64, says so too."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from problems import draw
from torch import Tensor

import uotlib
from uotlib._extension import extension
from uotlib.backends import BACKENDS
from uotlib.reference import reference_sinkhorn

BOTH = [(torch.float32, 1e-7), (torch.float64, 1e-16)]


def true_violation(solution: uotlib.Solution, cost: Tensor, reg: float, reg_m: float) -> tuple[float, float]:
    """Violation and mass of the plan of the solver's own potentials, all in float64, for uniform masses."""
    f, g = solution._pair.f[0], solution._pair.g[0]
    n, m = cost.shape
    plan = torch.exp((f[:, None] + g - cost.double()) / reg) / (n * m)
    asked = [torch.exp(-f / reg_m) / n, torch.exp(-g / reg_m) / m]
    error = (plan.sum(1) - asked[0]).abs().sum() + (plan.sum(0) - asked[1]).abs().sum()
    return float(error / plan.sum()), float(plan.sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", range(3, 21))
def test_converged_means_converged(power, dtype):
    """Costs of 1 at eps from 1e-3 down to where no type can hold their ratio."""
    cost = torch.rand(30, 40, generator=torch.Generator().manual_seed(power), dtype=torch.float64).to(dtype)
    reg = 10.0**-power
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", uotlib.ConvergenceWarning)
        solution = uotlib.unbalanced_sinkhorn(cost, reg=reg, reg_m=1.0, tol=1e-2, max_iter=300, grad="none")
    if bool(solution.converged):
        violation, mass = true_violation(solution, cost, reg, 1.0)
        roundoff = 2.0**-24 if dtype == torch.float32 else 2.0**-53
        assert violation <= 1e-2 + 64 * roundoff / reg
        assert 0.5 < mass < 1.5


def test_numbers_out_of_range_are_not_an_empty_optimum():
    with pytest.warns(uotlib.ConvergenceWarning, match="left the range of float32"):
        solution = uotlib.unbalanced_sinkhorn(torch.rand(30, 40), reg=1e-12, reg_m=1.0, tol=1e-4)
    assert not bool(solution.converged)
    assert math.isnan(float(solution.violation))


def test_a_plan_that_has_to_be_empty_is_converged():
    """Forbidding every pair of a row, or giving a side no mass, is a problem with an answer."""
    cost = torch.rand(3, 4)
    cost[1] = torch.inf
    solution = uotlib.unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0)
    assert bool(solution.converged)
    assert float(solution.row_mass[1]) == 0.0
    empty = uotlib.unbalanced_sinkhorn(cost, torch.zeros(3), reg=0.1, reg_m=1.0)
    assert bool(empty.converged)
    assert float(empty.plan.sum()) == 0.0


@pytest.mark.parametrize("n_iter", [1, 2, 5])
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_textbook_iterates_with_empty_columns(n_iter, reg_type):
    case = draw(6, 5, seed=1, reg=0.3, reg_type=reg_type)
    b = case.b.clone()
    b[2] = 0.0
    solution = uotlib.unbalanced_sinkhorn(case.cost, case.a, b, reg=case.reg, reg_m=case.reg_m, reg_type=reg_type,
                                          method="sinkhorn", max_iter=n_iter, tol=0)
    expected = reference_sinkhorn(case.cost, case.a, b, case.reg, case.reg_m, reg_type, n_iter).plan
    torch.testing.assert_close(solution.plan, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_the_rounding_floor_ends_either_method(method):
    case = draw(20, 27, seed=1, reg=0.1)
    with pytest.warns(uotlib.ConvergenceWarning, match="rounding floor"):
        solution = case.solve(method=method, tol=1e-30, max_iter=1000)
    assert int(solution.n_iter) < 500


def test_gradient_under_autocast_is_the_gradient():
    x, z = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    x.requires_grad_()
    value = uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), reg=0.1, reg_m=1.0).value
    (plain,) = torch.autograd.grad(value, x, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(inside, plain, rtol=0, atol=0)


def test_single_columns_are_redone_without_copying_the_batch():
    """Only flagged columns of flagged items are read: the others may hold anything."""
    cost = torch.full((3, 8, 6), torch.nan)
    cost[1, :, 2] = torch.rand(8)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 2] = True
    log_u, reg = torch.zeros(2, 8, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    items = torch.tensor([0, 1])
    for name in ("reference", "native"):
        if BACKENDS[name].why_not(cost.device, cost.dtype) is None:
            lse = BACKENDS[name].col_lse_masked(cost, log_u, reg, mask, items)
            assert torch.isneginf(lse[~mask]).all()
            torch.testing.assert_close(lse[1, 2], torch.logsumexp(-cost[1, :, 2].double(), 0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("far", [1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_a_row_or_a_column_far_from_everything(method, columns, far):
    """Its exponents of up to 1e7 take nothing from the others, nor from its own: the plan is as right as without it."""
    if columns and extension is not None and extension.simd_level() == "baseline":
        pytest.skip("needs fused multiply-adds: without them the sweep rounds the products of a far column's costs")
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.rand(40, 2, generator=generator) for _ in range(2))
    cost = torch.cdist(x, z).square()
    cost[0] += far
    cost = cost.mT.contiguous() if columns else cost
    single, double = (uotlib.unbalanced_sinkhorn(cost.to(dtype), reg=1e-2, reg_m=math.inf, tol=1e-4, max_iter=500,
                                                 method=method, backend="native", grad="none")
                      for dtype in (torch.float32, torch.float64))
    assert bool(single.converged)
    assert int(single.n_iter) <= 2 * int(double.n_iter)
    assert true_violation(single, cost, 1e-2, math.inf)[0] < 1.1e-4
    uniform = torch.full((40,), 1 / 40, dtype=torch.float64)
    exact = reference_sinkhorn(cost.double(), uniform, uniform, 1e-2, math.inf, n_iter=1000).plan
    assert float((single.plan - exact).norm() / exact.norm()) < 2e-3
