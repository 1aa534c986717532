"""Where single precision, exponentials and sums usually fail: tiny eps, outliers, wide ranges, empty sets."""

from __future__ import annotations

import math

import pytest
import torch
from problems import CONVENTIONS, INF, Case, draw, generator, masses, unit_vectors, with_outliers
from tolerances import ROUNDOFF, assert_close

from uotlib import CosineCost, SolverOptions, unbalanced_sinkhorn


def single(case: Case) -> Case:
    return case.but(cost=case.cost.float(), a=case.a.float(), b=case.b.float())


def double(case: Case) -> Case:
    """The numbers of the float32 problem, in float64: only arithmetic differs."""
    case = single(case)
    return case.but(cost=case.cost.double(), a=case.a.double(), b=case.b.double())


@pytest.mark.parametrize(("reg_m", "reg_type", "distance"), [
    ((0.01, 0.01), "kl", 0.3), ((0.01, 0.01), "kl", 1.0), ((0.01, 0.1), "kl", 1.0), ((0.01, 0.01), "entropy", 1.0)])
def test_outliers_have_exact_potentials(reg_m, reg_type, distance, backend):
    """eps 1e-4, tau 0.01, a quarter of rows and of columns far from everything: their mass, like e^(-C/tau), is far
    below float32 and their sums underflow, but every potential is finite and right to 1e-5.
    """
    n, rng = 128, generator(1)
    case = Case(with_outliers(n, distance=distance), masses((n,), rng, total=1.0), masses((n,), rng, total=1.3),
                1e-4, reg_m, reg_type)
    actual = single(case).solve(backend=backend, tol=1e-5, max_iter=2000)
    exact = double(case).solve(tol=1e-8, max_iter=2000)
    assert bool(actual.converged)
    for mine, truth in ((actual.f, exact.f), (actual.g, exact.g)):
        assert torch.isfinite(truth).all()
        assert float((mine.double() - truth).abs().max()) <= 1e-5
    assert float(actual.value) == pytest.approx(float(exact.value), rel=1e-5)


@pytest.mark.slow
def test_full_size_at_tiny_eps():
    """4096 x 4096 in float32 at eps 1e-4, where POT's plan is zero: converged, and the mass and value of float64."""
    rng = generator(2)
    centres = torch.nn.functional.normalize(torch.randn(16, 64, generator=rng, dtype=torch.float64), dim=-1)
    x, z = (unit_vectors((4096, 64), rng, centres).float() for _ in range(2))
    solution = unbalanced_sinkhorn(CosineCost(x, z), reg=1e-4, reg_m=0.1, max_iter=1000)
    assert bool(solution.converged)
    largest = float(torch.maximum(solution.f.abs().max(), solution.g.abs().max()))
    assert float(solution.violation) <= max(1e-5, ROUNDOFF[torch.float32] * largest / (4 * 1e-4))
    mass = float(solution.row_mass.double().sum())
    assert 0.1 < mass < 1.0
    # The optimum's value in terms of its mass, exact in any precision: 2 tau + eps - (2 tau + eps) m(T).
    assert float(solution.value) == pytest.approx(0.2001 * (1 - mass), rel=1e-3)
    exact = unbalanced_sinkhorn(CosineCost(x[:512].double(), z[:512].double()), reg=1e-4, reg_m=0.1, max_iter=2000)
    part = unbalanced_sinkhorn(CosineCost(x[:512], z[:512]), reg=1e-4, reg_m=0.1, max_iter=2000)
    assert float(part.row_mass.sum()) == pytest.approx(float(exact.row_mass.sum()), rel=1e-4)


@pytest.mark.parametrize(("reg", "tau"), [(1e-2, 0.1), (1e-2, 1.0), (1e-3, 0.1), (1e-3, 1.0), (1e-4, 0.1)])
def test_float32_follows_float64_down_to_tiny_eps(reg, tau, backend):
    case = draw(64, 80, seed=3, kind="clustered", reg=reg, reg_m=tau)
    actual = single(case).solve(backend=backend, max_iter=2000)
    exact = double(case).solve(tol=1e-7, max_iter=4000)
    assert bool(actual.converged)
    assert float((actual.f.double() - exact.f).abs().max()) <= 1e-5 + 20 * tau * float(actual.violation)
    assert float(actual.value) == pytest.approx(float(exact.value), rel=1e-4)
    assert float(actual.row_mass.sum()) == pytest.approx(float(exact.row_mass.sum()), rel=1e-3)


def test_slow_progress_is_not_called_a_rounding_floor():
    """The reference backend computes in float64: whatever slows it down here, it is not the type of the cost."""
    case = draw(64, 80, seed=3, kind="clustered", reg=1e-4, reg_m=1.0)
    assert bool(single(case).solve(backend="reference", max_iter=8000).converged)


def test_costs_thousands_of_eps_apart(backend):
    """One column within reach, the rest at every distance up to 1e6 eps: no overflow, no zero sum."""
    rng = generator(4)
    cost = torch.logspace(-6, 2, 30, dtype=torch.float64)[torch.randperm(30, generator=rng)][None, :].repeat(20, 1)
    cost = cost * (1 + torch.rand((20, 30), generator=rng, dtype=torch.float64))
    case = Case(cost, masses((20,), rng, total=1.0), masses((30,), rng, total=1.0), 1e-4, (0.5, 0.5))
    actual = single(case).solve(backend=backend, max_iter=5000)
    exact = double(case).solve(tol=1e-9, max_iter=5000, backend="reference")
    assert bool(exact.converged)
    assert torch.isfinite(actual.f).all()
    assert torch.isfinite(actual.g).all()
    assert float(actual.value) == pytest.approx(float(exact.value), rel=1e-4)


def test_large_and_negative_costs_in_float32(backend):
    """Only differences to eps matter: an offset of the costs is no reason to lose the plan."""
    case = draw(20, 30, seed=5, reg=0.1, reg_m=(INF, 0.5))
    for offset in (-1e3, 1e3):
        shifted = case.but(cost=case.cost + offset)
        actual = single(shifted).solve(backend=backend, max_iter=3000, tol=1e-2)
        exact = double(shifted).solve(tol=1e-10, max_iter=3000)
        assert_close(actual.plan, exact.plan, 0.1)  # float32 costs of 1e3 have an ulp of 6e-5
        assert_close(exact.plan, double(case).solve(tol=1e-10).plan, 2e-3)  # float32 costs of 1e3 have an ulp of 6e-5


def test_masses_of_all_magnitudes(backend):
    """From 1 down to 1e-30 on either side: the small ones count for their own potentials."""
    rng = generator(6)
    a = torch.logspace(0, -30, 16, dtype=torch.float64)
    cost = torch.rand((16, 20), generator=rng, dtype=torch.float64)
    case = Case(cost, a, masses((20,), rng, total=1.0), 0.05, (0.3, 0.3))
    actual = single(case).solve(backend=backend, tol=1e-6)
    exact = double(case).solve(tol=1e-12)
    assert_close(actual.f, exact.f, 1e-4)
    assert_close(actual.row_mass.double().log(), exact.row_mass.log(), 1e-4)


@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF), (INF, INF)])
@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_zero_masses_equal_leaving_the_points_out(reg_m, method, backend):
    case = draw(9, 11, seed=7, reg=0.1, reg_m=reg_m)
    case.a[[0, 5]], case.b[[2, 10]] = 0.0, 0.0
    if reg_m == (INF, INF):
        case = case.but(b=case.b * (case.a.sum() / case.b.sum()))
    rows, cols = case.a > 0, case.b > 0
    settings = {"method": method, "tol": 1e-11, "max_iter": 5000}
    whole = case.solve(backend=backend, **settings)
    part = case.but(cost=case.cost[rows][:, cols], a=case.a[rows], b=case.b[cols]).solve(backend=backend, **settings)
    assert_close(whole.plan[rows][:, cols], part.plan, 1e-8)
    assert_close(whole.value, part.value, 1e-9)
    assert not whole.plan[~rows].any()
    assert not whole.plan[:, ~cols].any()


@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (INF, 0.7), (0.4, INF)])
def test_potential_of_a_massless_point_is_the_limit(reg_m, backend):
    """In the kl convention; it is what the point's gradient is made of."""
    case = draw(6, 7, seed=8, reg=0.1, reg_m=reg_m)
    little, none = case.but(a=case.a.clone(), b=case.b.clone()), case.but(a=case.a.clone(), b=case.b.clone())
    little.a[1], little.b[3], none.a[1], none.b[3] = 1e-13, 1e-13, 0.0, 0.0
    limit, actual = (one.solve(tol=1e-12, max_iter=3000, backend=backend) for one in (little, none))
    assert torch.isfinite(actual.f).all()
    assert torch.isfinite(actual.g).all()
    assert_close(actual.f, limit.f, 1e-9)
    assert_close(actual.g, limit.g, 1e-9)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_rows_and_columns_that_reach_nothing(reg_type, backend):
    """No plan there, potentials +inf, the penalty for lost mass in the value, and the rest as if they were absent."""
    case = draw(6, 7, seed=9, reg=0.1, reg_m=(0.5, 2.0), reg_type=reg_type)
    cost = case.cost.clone()
    cost[2], cost[:, 4] = INF, INF
    rows, cols = torch.arange(6) != 2, torch.arange(7) != 4
    whole = case.but(cost=cost).solve(tol=1e-11, backend=backend)
    part = case.but(cost=case.cost[rows][:, cols], a=case.a[rows], b=case.b[cols]).solve(tol=1e-11, backend=backend)
    assert bool(whole.converged)
    assert_close(whole.plan[rows][:, cols], part.plan, 1e-9)
    assert float(whole.f[2]) == float(whole.g[4]) == INF
    assert float(whole.row_mass[2]) == float(whole.col_mass[4]) == 0.0
    lost = 0.5 * case.a[2] + 2.0 * case.b[4]
    if reg_type == "kl":
        lost += case.reg * (case.a.sum() * case.b.sum() - case.a[rows].sum() * case.b[cols].sum())
    assert float(whole.value) == pytest.approx(float(part.value + lost), rel=1e-9)
    assert float(whole.gap) == pytest.approx(0.0, abs=1e-12)


def test_points_that_reach_only_massless_ones():
    """Row 0 may go to column 0 alone, and column 0 is empty: the row is stranded, in one step or in two."""
    case = draw(4, 5, seed=10, reg=0.1)
    cost = case.cost.clone()
    cost[0, 1:] = INF
    case.b[0] = 0.0
    solution = case.but(cost=cost).solve(tol=1e-10)
    assert bool(solution.converged)
    assert float(solution.row_mass[0]) == 0.0
    assert not torch.isnan(solution.f).any()
    assert not torch.isnan(solution.g).any()
    assert math.isfinite(float(solution.value))


@pytest.mark.parametrize("empty", ["a", "b", "both", "everything forbidden"])
@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_nothing_to_transport(empty, reg_type, backend):
    """The empty plan, its value the penalty for all mass, and no NaN."""
    case = draw(4, 5, seed=11, reg=0.1, reg_m=(0.5, 2.0), reg_type=reg_type)
    case = case.but(a=case.a * (empty not in ("a", "both")), b=case.b * (empty not in ("b", "both")),
                    cost=case.cost + (INF if empty == "everything forbidden" else 0.0))
    solution = case.solve(backend=backend)
    total_a, total_b = float(case.a.sum()), float(case.b.sum())
    free = case.reg * total_a * total_b if reg_type == "kl" else 0.0
    assert not solution.plan.any()
    assert float(solution.value) == pytest.approx(0.5 * total_a + 2.0 * total_b + free, rel=1e-12)
    assert float(solution.transport_cost) == float(solution.violation) == float(solution.gap) == 0.0
    assert bool(solution.converged)
    assert not torch.isnan(solution.f).any()
    assert not solution.apply(torch.ones(5)).any()
    assert not torch.isnan(solution.barycentric(torch.ones(5))).any()


def test_an_impossible_exact_marginal_is_not_called_converged():
    """A row that reaches nothing cannot have mass a_i: that is for ``converged`` and the warning to say."""
    cost = draw(4, 5, seed=12).cost.clone()
    cost[1] = INF
    with pytest.warns(UserWarning, match="did not reach tol"):
        solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=(INF, 1.0), max_iter=50)
    assert not bool(solution.converged)
    assert float(solution.violation) > 0.1
    assert float(solution.gap) > 0.1


def test_balanced_with_equal_totals_up_to_float32(backend):
    """Two float32 softmaxes do not sum to the same last bit; that is no reason to refuse or to spin."""
    rng = generator(13)
    a, b = (torch.randn(points, generator=rng).softmax(0) for points in (300, 400))
    cost = torch.rand((300, 400), generator=rng)
    solution = unbalanced_sinkhorn(cost, a, b, reg=0.05, reg_m=INF, backend=backend)
    assert bool(solution.converged)
    assert_close(solution.row_mass, a, 1e-4)
    assert_close(solution.col_mass, b, 1e-4)


@pytest.mark.parametrize("size", [1e-36, 1e-40, 1e-45])
def test_tiny_incoming_gradients_stay_numbers(size):
    """float32 has subnormal numbers whose reciprocal it has not: what comes back is small, and no NaN."""
    case = draw(5, 6, seed=30)
    cost = case.cost.float().requires_grad_()
    solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=0.5)
    moved = solution.barycentric(torch.arange(12.0).reshape(6, 2))
    gradients = [torch.autograd.grad(moved, cost, torch.full_like(moved, factor), retain_graph=True)[0]
                 for factor in (1.0, size)]
    assert float((gradients[1].double() / size - gradients[0]).abs().max()) <= max(1e-5, 2e-38 / size)


@pytest.mark.parametrize("far", [1e3, 1e5])
@pytest.mark.parametrize("columns", [False, True])
def test_gradients_beside_a_point_far_from_everything(columns, far):
    """float32 to the accuracy of its tolerances, though exponents are up to 1e7, where its numbers are one apart."""
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.rand(40, 2, generator=generator) for _ in range(2))
    drawn = torch.cdist(x, z).square()
    drawn[0] += far
    v = torch.rand(40, 3, generator=generator)

    def gradient(dtype: torch.dtype, tol: float) -> torch.Tensor:
        cost = (drawn.mT if columns else drawn).to(dtype).contiguous().requires_grad_()
        solution = unbalanced_sinkhorn(cost, reg=1e-2, reg_m=math.inf, tol=tol, max_iter=5000, backend="native",
                                       options=SolverOptions(adjoint_tol=tol))
        loss = (40 * solution.apply(v.to(dtype))).square().sum()
        return torch.autograd.grad(loss, cost)[0].double()

    true = gradient(torch.float64, 1e-9)
    assert float((gradient(torch.float32, 1e-4) - true).norm() / true.norm()) < 5e-3
