"""What is true of every unbalanced problem, on problems that hypothesis chooses."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from problems import CONVENTIONS, INF, Case, draw, generator
from tolerances import assert_close

from uotlib.reference import reference_dual, reference_plan, reference_primal

#: Far below what is compared, so that only rounding and conditioning are left.
TOL = 1e-12
#: The conditioning of these problems, eps >= 0.05 and tau <= 5, is at most about tau/eps = 100.
RTOL = 1e-9

finite_tau = st.floats(0.05, 5.0)
any_tau = st.one_of(finite_tau, st.just(INF))


@st.composite
def cases(draw_from, tau=finite_tau) -> Case:
    n, m = draw_from(st.integers(1, 9)), draw_from(st.integers(1, 9))
    return draw(n, m, seed=draw_from(st.integers(0, 2**16)), kind=draw_from(st.sampled_from(["random", "clustered"])),
                reg=draw_from(st.floats(0.05, 2.0)), reg_m=(draw_from(tau), draw_from(tau)),
                reg_type=draw_from(st.sampled_from(CONVENTIONS)))


def plan(case: Case) -> torch.Tensor:
    return case.solve(tol=TOL, max_iter=3000).plan


@given(cases(any_tau))
def test_transposing_the_cost_transposes_the_plan(case):
    flipped = case.but(cost=case.cost.T, a=case.b, b=case.a, reg_m=case.reg_m[::-1])
    assert_close(plan(flipped), plan(case).T, RTOL)


@given(cases(any_tau), st.floats(-2.0, 2.0))
def test_shifting_the_cost_scales_the_plan(case, shift):
    r"""C + s: :math:`e^{-s/(\tau_a+\tau_b+\varepsilon)}\,T` in both conventions; T itself if a marginal is exact."""
    factor = math.exp(-shift / (sum(case.reg_m) + case.reg))
    assert_close(plan(case.but(cost=case.cost + shift)), factor * plan(case), RTOL)


@given(cases(), st.floats(-2.0, 2.0))
def test_shifting_the_cost_shifts_the_value_by_the_mass_it_meets(case, shift):
    r"""dV/ds = m(T(s)), so that :math:`V(s) - V(0) = \kappa\,m(T)(1 - e^{-s/\kappa})`, with
    :math:`\kappa=\tau_a+\tau_b+\varepsilon`.
    """
    before, after = (problem.solve(tol=TOL, max_iter=3000) for problem in (case, case.but(cost=case.cost + shift)))
    kappa = sum(case.reg_m) + case.reg
    expected = -kappa * math.expm1(-shift / kappa) * float(before.row_mass.sum())
    assert float(after.value - before.value) == pytest.approx(expected, rel=1e-8, abs=1e-10)


@given(cases(), st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_scaling_the_masses_scales_the_plan(case, s, t):
    r"""(sa, tb): :math:`(s^{\tau_a+\varepsilon} t^{\tau_b+\varepsilon})^{1/(\tau_a+\tau_b+\varepsilon)}\,T` in the kl
    convention; in the entropy convention without the eps of s's and t's exponents.
    """
    extra = case.reg if case.reg_type == "kl" else 0.0
    power = ((case.reg_m[0] + extra) * math.log(s) + (case.reg_m[1] + extra) * math.log(t))
    factor = math.exp(power / (sum(case.reg_m) + case.reg))
    assert_close(plan(case.but(a=s * case.a, b=t * case.b)), factor * plan(case), RTOL)


@given(cases(), st.floats(0.01, 100.0))
def test_units_of_the_cost_do_not_matter(case, unit):
    scaled = case.but(cost=unit * case.cost, reg=unit * case.reg, reg_m=tuple(unit * tau for tau in case.reg_m))
    here, there = case.solve(tol=TOL, max_iter=3000), scaled.solve(tol=TOL, max_iter=3000)
    assert_close(there.plan, here.plan, RTOL)
    assert_close(there.f, unit * here.f, RTOL)
    assert_close(there.value, unit * here.value, RTOL)


@given(cases(any_tau), st.integers(0, 100))
def test_relabelling_points_relabels_the_plan(case, seed):
    rng = generator(seed)
    rows, cols = (torch.randperm(size, generator=rng) for size in case.cost.shape)
    shuffled = case.but(cost=case.cost[rows][:, cols], a=case.a[rows], b=case.b[cols])
    assert_close(plan(shuffled), plan(case)[rows][:, cols], RTOL)


@given(cases(), st.floats(0.1, 0.9))
def test_splitting_a_point_splits_its_row_in_the_kl_convention(case, share):
    case = case.but(reg_type="kl")
    weight = torch.tensor([share, 1 - share], dtype=torch.float64)
    split = case.but(cost=torch.cat([case.cost[:1], case.cost]), a=torch.cat([weight * case.a[0], case.a[1:]]))
    whole = plan(case)
    assert_close(plan(split), torch.cat([weight[:, None] * whole[0], whole[1:]]), RTOL)


@given(cases(), st.integers(1, 12))
def test_primal_minus_dual_is_the_gap(case, n_iter):
    """Of any iterate, not only the last: the certificate needs no convergence."""
    for method in ("sinkhorn", "auto"):
        solution = case.solve(method=method, max_iter=n_iter, tol=0.0)
        f, g = solution.f, solution.g
        primal = reference_primal(reference_plan(f, g, *case.definition[:4], case.reg_type), *case.definition)
        dual = reference_dual(f, g, *case.definition)
        size = 1 + abs(float(primal)) + abs(float(dual))
        assert float(solution.gap) >= 0
        assert float(solution.gap) == pytest.approx(float(primal - dual), rel=1e-9, abs=1e-13 * size)
        assert float(solution.value) == pytest.approx(float(primal), rel=1e-10, abs=1e-12 * size)


@given(cases())
def test_gap_vanishes_at_the_optimum(case):
    solution = case.solve(tol=TOL, max_iter=3000)
    assert 0 <= float(solution.gap) <= 1e-12 * (1 + abs(float(solution.value)))


@given(cases(), st.integers(0, 100))
def test_no_plan_is_cheaper_and_no_potentials_prove_more(case, seed):
    """Weak duality, and optimality on both sides of it."""
    rng = generator(seed)
    n, m = case.cost.shape
    solution = case.solve(tol=TOL, max_iter=3000)
    value, best = float(solution.value), solution.plan
    slack = 1e-10 * (1 + abs(value))
    for scale in (1e-3, 0.1, 1.0):
        noise = torch.randn((n, m), generator=rng, dtype=torch.float64)
        other = best * torch.exp(scale * noise)
        f, g = (scale * torch.randn(size, generator=rng, dtype=torch.float64) for size in (n, m))
        assert float(reference_dual(f, g, *case.definition)) <= value + slack
        assert value <= float(reference_primal(other, *case.definition)) + slack


@given(cases(any_tau))
def test_marginals_at_the_optimum(case):
    r""":math:`T\mathbf 1 = a\,e^{-f/\tau_a}`, or a itself where the marginal is exact."""
    solution = case.solve(tol=TOL, max_iter=3000)
    assert_close(solution.row_mass, case.a * torch.exp(-solution.f / case.reg_m[0]), RTOL)
    assert_close(solution.col_mass, case.b * torch.exp(-solution.g / case.reg_m[1]), RTOL)
    assert_close(solution.plan.sum(1), solution.row_mass, RTOL)
    assert_close(solution.plan.sum(0), solution.col_mass, RTOL)


@given(st.integers(1, 3), st.integers(0, 2**16), any_tau, any_tau)
def test_a_batch_is_its_items(batch, seed, tau_a, tau_b):
    case = draw(5, 7, seed=seed, batch=(batch,), reg=0.1, reg_m=(tau_a, tau_b))
    together = case.solve(tol=1e-11)
    for item in range(batch):
        alone = case.item(item).solve(tol=1e-11)
        assert_close(together.plan[item], alone.plan, RTOL)
        assert_close(together.value[item], alone.value, RTOL)
