"""Faults of other libraries, each shown absent here and, where it costs little, present there (POT 0.9.7).

If a newer POT repairs one, the assertion about POT fails: then drop that assertion, not the test.
"""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from problems import CONVENTIONS, INF, PENALTIES, Case, cost_matrix, draw, generator, masses, unit_vectors
from tolerances import assert_close

from uotlib import DotCost, unbalanced_sinkhorn
from uotlib.reference import reference_primal, update

pytestmark = pytest.mark.filterwarnings("ignore:Numerical errors", "ignore:divide by zero", "ignore:invalid value",
                                        "ignore:overflow", "ignore:If reg_type = entropy",
                                        "ignore:Stabilized Unbalanced Sinkhorn did not converge")
SINKHORNS = ["sinkhorn", "sinkhorn_stabilized", "sinkhorn_translation_invariant"]


def pot(case: Case, **settings) -> torch.Tensor:
    return torch.from_numpy(ot.unbalanced.sinkhorn_unbalanced(
        case.a.numpy(), case.b.numpy(), case.cost.numpy(), case.reg, case.reg_m, reg_type=case.reg_type, **settings))


@pytest.fixture(scope="module")
def far_apart() -> Case:
    """Random directions: every cosine distance is hundreds of times eps, and e^(-C/eps) is zero in float64."""
    rng = generator(0)
    x, z = (unit_vectors((60, 64), rng) for _ in range(2))
    return Case(1 - x @ z.T, masses((60,), rng, total=1.0), masses((60,), rng, total=1.0), 1e-4, (0.1, 0.1))


@pytest.mark.parametrize("method", SINKHORNS)
def test_plan_at_tiny_eps_is_not_zero(far_apart, method, backend):
    """POT's unbalanced solvers return zeros without an error; the truth has the mass that the value implies."""
    theirs = pot(far_apart, method=method)
    assert torch.isfinite(theirs).all()
    assert not theirs.any()
    solution = far_apart.solve(backend=backend, max_iter=5000)
    mass = float(solution.row_mass.sum())
    assert mass > 0.01
    # The value in terms of masses alone: tau m(a) + tau m(b) + eps m(a)m(b) - (2 tau + eps) m(T).
    assert float(solution.value) == pytest.approx(0.2 + 1e-4 - 0.2001 * mass, rel=1e-4)


def test_log_domain_method_is_one():
    """ot.solve(method="sinkhorn_log") with penalties is the plain-domain solver, and the mass underflows."""
    rng = generator(1)
    cost = 10 * torch.rand((6, 6), generator=rng, dtype=torch.float64)
    case = Case(cost, masses((6,), rng, total=2.0), masses((6,), rng, total=3.0), 1e-3, (1.0, 1.0))
    theirs = ot.solve(cost.numpy(), case.a.numpy(), case.b.numpy(), reg=case.reg, reg_type="kl", unbalanced=1.0,
                      method="sinkhorn_log", max_iter=5000).plan
    solution = case.solve(tol=1e-9, max_iter=5000)
    assert theirs.sum() < 1e-9 < 0.1 < float(solution.plan.sum())
    # The textbook would take 10,000 steps to get there; that it stays there is as good.
    f = update(case.cost, case.a, case.a.log(), case.b.log(), solution.g, case.reg, 1.0)
    g = update(case.cost.T, case.b, case.b.log(), case.a.log(), f, case.reg, 1.0)
    assert_close(f, solution.f, 1e-9)
    assert_close(g, solution.g, 1e-9)


def test_stabilised_plan_has_the_right_mass():
    rng = generator(1)
    cost = 10 * torch.rand((6, 6), generator=rng, dtype=torch.float64)
    case = Case(cost, masses((6,), rng, total=2.0), masses((6,), rng, total=3.0), 1e-2, (1.0, 1.0))
    truth = case.reference(1000).plan
    stabilised = pot(case, method="sinkhorn_stabilized", numItermax=5000)
    assert abs(float(stabilised.sum() / truth.sum()) - 1) > 0.5
    assert_close(case.solve(tol=1e-10).plan, truth, 1e-6)


def test_translation_is_right_for_unequal_penalties():
    case = draw(5, 6, seed=2, reg=0.1, reg_m=(1.0, 5.0))
    truth = pot(case, method="sinkhorn", numItermax=20_000, stopThr=1e-15)
    translated = pot(case, method="sinkhorn_translation_invariant", numItermax=20_000, stopThr=1e-15)
    assert float((translated - truth).abs().max()) > 1e-3
    assert_close(case.solve(tol=1e-12).plan, truth, 1e-10)


def test_zero_weights_have_a_value_and_gradients():
    case = draw(5, 6, seed=3, reg=0.5)
    case.a[2] = 0.0
    theirs = ot.solve(case.cost, case.a, case.b, reg=0.5, reg_type="kl", unbalanced=0.5)
    assert math.isnan(float(theirs.value))
    for reg_type in CONVENTIONS:
        a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
        value = case.but(a=a, b=b, reg_type=reg_type).solve().value
        value.backward()
        assert math.isfinite(float(value.detach()))
        assert torch.isfinite(a.grad).all()
        assert torch.isfinite(b.grad).all()


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_value_is_the_whole_objective(reg_type):
    """POT's ``*2`` functions return only <C, T>, and its total_cost in the entropy convention is a KL against ones."""
    case = draw(5, 6, seed=4, reg=0.3, reg_m=(0.5, 2.0), reg_type=reg_type)
    solution = case.solve(tol=1e-12)
    linear = float(ot.unbalanced.sinkhorn_unbalanced2(
        case.a.numpy(), case.b.numpy(), case.cost.numpy(), case.reg, case.reg_m, reg_type=reg_type,
        numItermax=10_000, stopThr=1e-14))
    whole = float(reference_primal(solution.plan, *case.definition))
    assert linear == pytest.approx(float(solution.transport_cost), rel=1e-9)
    assert float(solution.value) == pytest.approx(whole, rel=1e-11)
    assert abs(linear - whole) > 0.1


@pytest.mark.parametrize("totals", [(1.0, 1.0), (0.2, 9.0), (50.0, 3.0)])
def test_value_with_unequal_masses_is_right_and_not_negative(totals):
    """Costs >= 0 make every term of the kl objective >= 0: no plan is worth less than nothing."""
    for seed, reg_m in enumerate(PENALTIES[:4]):
        rng = generator(seed)
        case = Case(cost_matrix("random", (5, 6), rng), masses((5,), rng, total=totals[0]),
                    masses((6,), rng, total=totals[1]), 0.2, reg_m)
        value = float(case.solve(tol=1e-11, max_iter=5000).value)
        assert value >= 0
        assert value == pytest.approx(float(reference_primal(case.reference(400).plan, *case.definition)), rel=1e-8)


@pytest.mark.parametrize("n_iter", [3, 100])
def test_value_gradient_keeps_no_unrolled_graph(n_iter):
    """The graph behind the value has the same few nodes however many iterations were run."""
    cost = draw(5, 6, seed=5).cost.requires_grad_()
    value = unbalanced_sinkhorn(cost, reg=0.05, reg_m=1.0, max_iter=n_iter, tol=0, grad="envelope").value
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [follower for follower, _ in node.next_functions]
    assert len(seen) <= 10


def test_value_gradient_is_the_plan_and_not_twice_it():
    """GeomLoss returns about twice the plan, or scales a gradient by (tau + eps/2)/(tau + eps)."""
    for reg_m in PENALTIES:
        case = draw(5, 6, seed=6, reg=0.3, reg_m=reg_m)
        cost = case.cost.clone().requires_grad_()
        case.but(cost=cost).solve(tol=1e-12).value.backward()
        assert_close(cost.grad, case.reference(300).plan, 1e-9)


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_plan_gradient_is_not_that_of_the_last_step(method):
    """POT's batch solver offers "last_step", GeomLoss does it always; on this problem it is wrong by half."""
    case = draw(5, 6, seed=11, reg=0.05)
    weight = torch.rand(5, 6, generator=generator(12), dtype=torch.float64)
    direction = torch.rand(5, 6, generator=generator(13), dtype=torch.float64)
    settings = {"method": method, "tol": 1e-12, "max_iter": 20_000}
    cost = case.cost.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((case.but(cost=cost).solve(**settings).plan * weight).sum(), cost)
    either = [float((case.but(cost=case.cost + step * direction).solve(**settings).plan * weight).sum())
              for step in (1e-6, -1e-6)]
    assert float((gradient * direction).sum()) == pytest.approx((either[0] - either[1]) / 2e-6, rel=1e-5)

    g = case.solve(**settings).g
    once = case.cost.clone().requires_grad_()
    f = update(once, case.a, case.a.log(), case.b.log(), g, 0.05, 0.5)
    plan = case.a[:, None] * case.b * torch.exp((f[:, None] + g - once) / 0.05)
    (last_step,) = torch.autograd.grad((plan * weight).sum(), once)
    assert float((last_step - gradient).norm()) > 0.1 * float(gradient.norm())


def test_gradient_to_masses_with_zero_weights_is_not_nan():
    """POT returns NaN there in the kl convention."""
    case = draw(5, 6, seed=14)
    case.a[2] = case.b[[0, 3]] = 0.0
    for reg_type in CONVENTIONS:
        leaves = [mass.clone().requires_grad_() for mass in (case.a, case.b)]
        solution = case.but(a=leaves[0], b=leaves[1], reg_type=reg_type).solve(tol=1e-10)
        loss = solution.plan.square().sum() + solution.value + solution.row_mass.sum() + solution.transport_cost
        for gradient in torch.autograd.grad(loss, leaves):
            assert torch.isfinite(gradient).all()
            assert gradient.any()


def test_plan_and_value_in_one_loss():
    """GeomLoss's users ask how to have both without solving twice."""
    case = draw(5, 6, seed=15)
    cost = case.cost.clone().requires_grad_()
    solution = case.but(cost=cost).solve(tol=1e-11)
    parts = solution.value, solution.plan.square().sum(), solution.barycentric(torch.ones(6).double()).sum()
    together = torch.autograd.grad(sum(parts), cost, retain_graph=True)[0]
    apart = [torch.autograd.grad(part, cost, retain_graph=True)[0] for part in parts]
    assert_close(together, sum(apart), 1e-6)


def test_a_finite_penalty_is_not_damped_towards_balance():
    """The plan of a damped balanced iteration has marginals a and b whatever tau; this one gives up expensive mass."""
    case = draw(7, 8, seed=7, reg=0.05, reg_m=INF)
    for tau in (0.05, 0.5, 5.0, 50.0):
        solution = case.solve(reg_m=tau, tol=1e-11)
        assert_close(solution.row_mass, case.a * torch.exp(-solution.f / tau), 1e-9)
    masses_kept = [float(case.solve(reg_m=tau).row_mass.sum()) for tau in (0.05, 0.5, 5.0, 50.0)]
    assert masses_kept == sorted(masses_kept)
    assert masses_kept[0] < 0.8 < 0.99 < masses_kept[-1] < 1
    assert_close(case.solve(reg_m=1e6, tol=1e-9).plan, case.solve(tol=1e-9).plan, 1e-4)


def test_each_convention_is_what_it_is_called():
    """kl and entropy differ for finite tau: POT's default once changed from one to the other, and results with it."""
    case = draw(5, 6, seed=8, reg=0.3)
    for reg_type in CONVENTIONS:
        one = case.but(reg_type=reg_type)
        assert_close(one.solve(tol=1e-11).plan, pot(one, numItermax=5000, stopThr=1e-15), 1e-9)
    kl, entropy = (case.but(reg_type=reg_type).solve().plan for reg_type in CONVENTIONS)
    assert float((kl - entropy).abs().max()) > 0.01
    both = [case.but(reg_m=(INF, INF), reg_type=reg_type, b=case.b / case.b.sum()) for reg_type in CONVENTIONS]
    assert_close(both[0].solve(tol=1e-11).plan, both[1].solve(tol=1e-11).plan, 1e-9)


def test_scores_at_temperature_0_05_do_not_overflow():
    """Self-supervised training exponentiates scores over 0.05: e^(30/0.05) is inf in any type."""
    rng = np.random.default_rng(0)
    x, z = (torch.from_numpy(rng.standard_normal((points, 32)).astype(np.float16)) for points in (64, 10))
    solution = unbalanced_sinkhorn(DotCost(x, z), reg=0.05, reg_m=INF, max_iter=5000)
    assert bool(solution.converged)
    # The default tolerance, u max|f| / (4 eps) with scores of 30, is 1e-5 of the mass.
    assert_close(solution.row_mass, torch.full((64,), 1 / 64), 2e-3)
    assert_close(solution.col_mass, torch.full((10,), 1 / 10), 2e-3)


def test_padding_changes_nothing():
    """A ragged batch is zero-mass padding, whatever the padded costs hold."""
    small, large = draw(4, 5, seed=9), draw(7, 9, seed=10)
    for fill in (0.0, 1e4, INF):
        cost = torch.stack([torch.nn.functional.pad(small.cost, (0, 4, 0, 3), value=fill), large.cost])
        a = torch.stack([torch.nn.functional.pad(small.a, (0, 3)), large.a])
        b = torch.stack([torch.nn.functional.pad(small.b, (0, 4)), large.b])
        solution = small.but(cost=cost, a=a, b=b).solve(tol=1e-11)
        assert_close(solution.plan[0, :4, :5], small.solve(tol=1e-11).plan, 1e-9)
        assert not solution.plan[0, 4:].any()
        assert not solution.plan[0, :, 5:].any()
        assert_close(solution.plan[1], large.solve(tol=1e-11).plan, 1e-9)
        assert_close(solution.value[0], small.solve(tol=1e-11).value, 1e-9)
