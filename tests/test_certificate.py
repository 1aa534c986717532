"""What a pair of potentials proves about itself: gap, violation, translation, and the KL divergence they rest on."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from problems import CONVENTIONS, INF, PENALTIES, draw, generator
from tolerances import ROUNDOFF, assert_close, assert_no_worse, max_error, plan_rtol

from uotlib import certificate
from uotlib.divergences import kl
from uotlib.problem import build_problem
from uotlib.reference import reference_dual, reference_plan, reference_primal

FINITE = [(0.5, 0.5), (0.2, 3.0), (5.0, 0.05)]


def sides(case):
    problem = build_problem(case.cost[None], case.a[None], case.b[None], case.reg, case.reg_m, case.reg_type)
    return problem.rows, problem.cols


def potentials(case, seed, scale=0.3):
    rng = generator(seed)
    return [scale * torch.randn(size, generator=rng, dtype=torch.float64) for size in case.cost.shape]


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", FINITE)
def test_gap_is_primal_minus_dual_of_any_pair(reg_m, reg_type):
    """Not only of iterates: the identity holds for any potentials whatever."""
    case = draw(seed=1, reg=0.2, reg_m=reg_m, reg_type=reg_type)
    for seed in range(5):
        f, g = potentials(case, seed)
        plan = reference_plan(f, g, case.cost, case.a, case.b, case.reg, reg_type)
        gap = certificate.gap(*sides(case), f[None], g[None], plan.sum(1)[None], plan.sum(0)[None])
        difference = reference_primal(plan, *case.definition) - reference_dual(f, g, *case.definition)
        assert float(gap) == pytest.approx(float(difference), rel=1e-10)
        assert float(gap) > 0


@pytest.mark.parametrize("reg_m", [*FINITE, (INF, 0.7), (0.4, INF)])
def test_shift_is_the_maximiser_of_the_dual(reg_m):
    """The slope along (f + t, g - t) is the difference of the penalised masses: zero after the shift."""
    case = draw(seed=2, reg=0.2, reg_m=reg_m)
    for seed in range(3):
        f, g = potentials(case, seed)
        t = certificate.optimal_shift(*sides(case), f[None], g[None]).clone().requires_grad_()
        dual = reference_dual(f + t, g - t, *case.definition)
        (slope,) = torch.autograd.grad(dual, t)
        assert abs(float(slope)) <= 64 * ROUNDOFF[torch.float64] * 10 * float(case.a.sum() + case.b.sum())
        for other in (-1e-3, 1e-3):
            assert reference_dual(f + t + other, g - t - other, *case.definition) < dual


def test_no_shift_with_both_marginals_exact():
    case = draw(seed=3, reg_m=INF)
    f, g = potentials(case, 0)
    assert float(certificate.optimal_shift(*sides(case), f[None], g[None])) == 0.0


def test_violation_is_the_gradient_of_the_dual():
    r"""d dual / df_i = a_i e^(-f_i/tau) - (T 1)_i, in the L1 norm and relative to the mass."""
    for reg_m in PENALTIES:
        case = draw(seed=4, reg=0.2, reg_m=reg_m)
        f, g = (potential.requires_grad_() for potential in potentials(case, 0))
        gradients = torch.autograd.grad(reference_dual(f, g, *case.definition), (f, g))
        plan = reference_plan(f, g, case.cost, case.a, case.b, case.reg).detach()
        expected = sum(gradient.abs().sum() for gradient in gradients) / plan.sum()
        actual = certificate.violation(*sides(case), f.detach()[None], g.detach()[None], plan.sum(1)[None],
                                       plan.sum(0)[None])
        assert float(actual) == pytest.approx(float(expected), rel=1e-12)


def test_divergence_keeps_its_digits_where_its_terms_cancel():
    """KL(q(1+d) | q) = q d^2/2 (1 + O(d)): the closed form loses all of it near d = 1e-8."""
    for d in (0.5, 1e-2, 9.9e-3, 1e-4, -1e-4, 1e-8, -1e-12, 0.0):
        q = torch.tensor([0.3], dtype=torch.float64)
        p = q * (1 + d)
        with localcontext(prec=60):
            p_exact, q_exact = Decimal(float(p)), Decimal(float(q))
            exact = p_exact * (p_exact / q_exact).ln() - p_exact + q_exact
        assert float(kl(p, q)) == pytest.approx(float(exact), rel=1e-12)


def test_divergence_at_the_edges():
    def of(p, q):
        return float(kl(torch.tensor([p], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)))

    assert of(0.0, 0.0) == 0.0
    assert of(0.0, 0.7) == pytest.approx(0.7)
    assert of(0.7, 0.0) == INF
    assert of(1e-300, 1e-300) == 0.0
    assert of(1e-300, 1.0) == pytest.approx(1.0)
    assert of(1e300, 1e290) == pytest.approx(1e300 * (math.log(1e10) - 1) + 1e290)
    rng = generator(0)
    p, q = torch.rand(2, 1000, 7, generator=rng, dtype=torch.float64)
    assert (kl(p, q) >= 0).all()
    assert (kl(p, p * (1 + 1e-15 * torch.randn(1000, 7, generator=rng, dtype=torch.float64))) >= 0).all()


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_gap_in_float32_is_not_lost_to_cancellation(method):
    """Primal minus dual in float32 is noise of 1e-8 at best; the certificate keeps its sign and its size."""
    case = draw(30, 40, seed=5, reg=0.05)
    case = case.but(cost=case.cost.float().double(), a=case.a.float().double(), b=case.b.float().double())
    for max_iter in (5, 10, 20):
        single = case.but(cost=case.cost.float(), a=case.a.float(), b=case.b.float()).solve(
            method=method, max_iter=max_iter, tol=0.0, backend="reference")
        double = case.solve(method=method, max_iter=max_iter, tol=0.0, backend="reference")
        assert float(single.gap) >= 0
        assert float(single.gap) == pytest.approx(float(double.gap), rel=1e-3, abs=1e-14)


@pytest.mark.parametrize("reg_m", [(INF, 0.7), (0.4, INF), (INF, INF)])
def test_exact_marginals_are_met(reg_m):
    """The side that is updated last holds to rounding; with both exact the violation bounds the other."""
    case = draw(seed=6, reg=0.05, reg_m=reg_m)
    solution = case.solve(tol=1e-4, max_iter=3000)
    errors = [float((marginal - mass).abs().sum()) for marginal, mass in
              ((solution.row_mass, case.a), (solution.col_mass, case.b))]
    exact = [error for error, tau in zip(errors, reg_m, strict=True) if math.isinf(tau)]
    assert min(exact) <= 1e-12
    assert max(exact) <= 1e-4 * float(solution.row_mass.sum()) + 1e-12


# The helpers that every other file trusts.


def test_assert_close_notices():
    good = torch.tensor([1.0, 1e-9])
    assert_close(good, good + torch.tensor([0.0, 1e-9]), 1e-8)
    for bad in (torch.tensor([1.1, 1e-9]), torch.tensor([math.nan, 1e-9]), torch.tensor([[1.0, 1e-9]])):
        with pytest.raises(AssertionError):
            assert_close(bad, good, 1e-2)
    assert max_error(torch.tensor([math.nan]), torch.tensor([1.0])) == INF


def test_assert_no_worse_notices():
    truth = torch.tensor([1.0], dtype=torch.float64)
    plain = torch.tensor([1.001])
    assert_no_worse(torch.tensor([1.0019]), plain, truth)
    with pytest.raises(AssertionError, match="plain torch makes"):
        assert_no_worse(torch.tensor([1.0025]), plain, truth)


def test_tolerances_follow_the_arithmetic():
    assert plan_rtol(torch.bfloat16, 1.0, 0.1) == plan_rtol(torch.float32, 1.0, 0.1)
    assert plan_rtol(torch.float64, 1.0, 0.1) < 1e-13
    assert plan_rtol(torch.float32, 2.0, 1e-4) == pytest.approx(16 * 2.0**-24 * 20001)
