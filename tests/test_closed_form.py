"""Problems whose answer can be written down."""

from __future__ import annotations

import math

import pytest
import torch
from problems import CONVENTIONS, INF, PENALTIES, Case, dirac_mass, draw, generator, masses
from tolerances import assert_close

from uotlib import SqEuclideanCost, unbalanced_sinkhorn

RTOL = 1e-11
SETTINGS = {"tol": 1e-13, "max_iter": 2000}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.filterwarnings("ignore::uotlib.ConvergenceWarning")
@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-4])
def test_dirac_to_dirac(reg, reg_m, reg_type, backend):
    a, b = (0.7, 0.7) if reg_m == (INF, INF) else (0.7, 1.9)
    case = Case(tensor(0.6).reshape(1, 1), tensor(a), tensor(b), reg, reg_m, reg_type)
    solution = case.solve(backend=backend, tol=1e-11)
    mass = dirac_mass(0.6, a, b, reg, reg_m, reg_type)
    assert float(solution.plan) == pytest.approx(mass, rel=1e-10)
    assert float(solution.transport_cost) == pytest.approx(0.6 * mass, rel=1e-10)


@pytest.mark.parametrize("reg_m", PENALTIES)
def test_constant_cost_gives_the_product_of_the_masses(reg_m):
    case = draw(7, 5, seed=1, reg=0.1, reg_m=reg_m)
    case = case.but(cost=torch.full((7, 5), 0.4, dtype=torch.float64))
    total_a, total_b = float(case.a.sum()), float(case.b.sum())
    mass = dirac_mass(0.4, total_a, total_b, case.reg, case.reg_m, "kl")
    expected = mass * case.a[:, None] * case.b[None, :] / (total_a * total_b)
    assert_close(case.solve(**SETTINGS).plan, expected, RTOL)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_identical_diracs_exchange_more_than_their_mass_only_through_entropy(reg_type):
    """Two unit diracs at one place: nothing to pay, so the plan has mass 1 in both conventions, for every tau."""
    case = Case(tensor(0.0).reshape(1, 1), tensor(1.0), tensor(1.0), 0.3, (0.2, 5.0), reg_type)
    assert float(case.solve(**SETTINGS).plan) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, 3.0), (INF, 0.7)])
def test_permutation_of_the_only_allowed_pairs(reg_m, reg_type, backend):
    """Forbidding all but a permutation leaves n problems of one pair each."""
    n, rng = 6, generator(2)
    order = torch.randperm(n, generator=rng)
    a, b = masses((n,), rng), masses((n,), rng)
    price = torch.rand(n, generator=rng, dtype=torch.float64)
    cost = torch.full((n, n), INF, dtype=torch.float64)
    cost[torch.arange(n), order] = price
    case = Case(cost, a, b, 0.1, reg_m, reg_type)
    expected = torch.zeros(n, n, dtype=torch.float64)
    for i, j in enumerate(order.tolist()):
        expected[i, j] = dirac_mass(float(price[i]), float(a[i]), float(b[j]), 0.1, reg_m, reg_type)
    assert_close(case.solve(backend=backend, **SETTINGS).plan, expected, RTOL)


def test_permutation_is_found_at_tiny_eps(backend):
    """Points moved by less than half their distance: the optimal plan is the identity of the move."""
    n, rng = 40, generator(3)
    x = torch.arange(n, dtype=torch.float64)[:, None]
    order = torch.randperm(n, generator=rng)
    z = x[order] + 0.3 * torch.rand((n, 1), generator=rng, dtype=torch.float64)
    weight = torch.full((n,), 1.0 / n, dtype=torch.float64)
    cost = (x - z.T).square()
    solution = unbalanced_sinkhorn(cost, weight, weight, reg=1e-4, reg_m=10.0, backend=backend)
    assert torch.equal(solution.argmax(dim=-2), order)
    expected = torch.zeros(n, n, dtype=torch.float64)
    for j, i in enumerate(order.tolist()):
        expected[i, j] = dirac_mass(float(cost[i, j]), 1 / n, 1 / n, 1e-4, (10.0, 10.0), "kl")
    assert_close(solution.plan, expected, 1e-3)  # the default tolerance on the violation, times tau/eps-conditioning


@pytest.mark.parametrize("tau", [0.1, 1.0, INF])
def test_two_symmetric_points(tau):
    r"""C = c off the diagonal, a = b = 1/2: then f = g, with
    :math:`f(2/\varepsilon + 1/\tau) = \log 2/(1 + e^{-c/\varepsilon})`.
    """
    c, reg = 0.8, 0.25
    half = tensor(0.5, 0.5)
    case = Case(tensor(0.0, c, c, 0.0).reshape(2, 2), half, half, reg, (tau, tau))
    solution = case.solve(**SETTINGS)
    q = math.exp(-c / reg)
    total = math.log(2 / (1 + q)) / (2 / reg + 1 / tau)
    plan = 0.25 * math.exp(2 * total / reg) * tensor(1.0, q, q, 1.0).reshape(2, 2)
    assert_close(solution.plan, plan, RTOL)
    if not math.isinf(tau):
        assert_close(solution.f, tensor(total, total), RTOL)
        assert_close(solution.g, tensor(total, total), RTOL)


def test_independent_blocks_do_not_see_each_other():
    left, right = (draw(4, 6, seed=seed, reg=0.1, reg_m=(0.3, 0.9)) for seed in (4, 5))
    cost = torch.full((8, 12), INF, dtype=torch.float64)
    cost[:4, :6], cost[4:, 6:] = left.cost, right.cost
    both = left.but(cost=cost, a=torch.cat([left.a, right.a]), b=torch.cat([left.b, right.b])).solve(**SETTINGS).plan
    assert_close(both, torch.block_diag(*(side.solve(**SETTINGS).plan for side in (left, right))), RTOL)


@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, 3.0)])
@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_value_from_the_masses_alone(reg_m, reg_type):
    r""":math:`V = \tau_a m(a) + \tau_b m(b) + \varepsilon m(a)m(b) - (\tau_a+\tau_b+\varepsilon) m(T)` at optimum."""
    case = draw(seed=6, reg=0.1, reg_m=reg_m, reg_type=reg_type)
    solution = case.solve(**SETTINGS)
    total_a, total_b, mass = float(case.a.sum()), float(case.b.sum()), float(solution.row_mass.sum())
    free = case.reg * total_a * total_b if reg_type == "kl" else 0.0
    expected = reg_m[0] * total_a + reg_m[1] * total_b + free - (sum(reg_m) + case.reg) * mass
    assert float(solution.value) == pytest.approx(expected, rel=1e-11)


def test_gaussians_on_a_grid_move_with_the_blur_of_eps():
    r"""Balanced, |x - y|^2, variances s, t on a line: the plan's covariance is
    :math:`\tfrac12(\sqrt{4st + (\varepsilon/2)^2} - \varepsilon/2)`.

    Source: Janati et al. 2020, *Entropic optimal transport between unbalanced Gaussian measures has a closed form*,
    Theorem 1 for the cost :math:`|x-y|^2` and the regulariser :math:`2\sigma^2\mathrm{KL}`, with 2 sigma^2 = eps.
    """
    s, t, reg = 0.5, 1.2, 0.8
    x = torch.linspace(-8, 8, 201, dtype=torch.float64)
    a, b = (torch.softmax(-x.square() / (2 * variance), 0) for variance in (s, t))
    solution = unbalanced_sinkhorn(SqEuclideanCost(x[:, None], x[:, None]), a, b, reg=reg, reg_m=INF, tol=1e-10)
    covariance = float(x @ solution.apply(x))
    assert covariance == pytest.approx(0.5 * (math.sqrt(4 * s * t + (reg / 2) ** 2) - reg / 2), rel=1e-6)
