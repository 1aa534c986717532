"""The debiased divergence: against POT, against what can be written down, and what makes it a divergence."""

from __future__ import annotations

import math
import warnings

import geomloss
import ot
import pytest
import torch
from differentiation import leaf
from hypothesis import given
from hypothesis import strategies as st
from problems import INF, generator, masses
from tolerances import assert_close

from uotlib import CosineCost, DotCost, SqEuclideanCost, sinkhorn_divergence, unbalanced_sinkhorn
from uotlib.divergences import kl

COSTS = [CosineCost, SqEuclideanCost, DotCost]
EXACT = {"tol": 1e-12, "max_iter": 5000}
#: Values are primal objectives of plans solved to 1e-12, and their error is of second order: what is left is rounding.
RTOL = 1e-11


def clouds(n=7, m=9, d=3, seed=0, batch=()):
    """Points around the origin with masses of unequal totals."""
    rng = generator(seed)
    x, z = (0.5 * torch.randn(*batch, points, d, generator=rng, dtype=torch.float64) for points in (n, m))
    return x, z, masses((*batch, n), rng, total=1.0), masses((*batch, m), rng, total=1.7)


def dirac(place, mass):
    return torch.tensor([[place]], dtype=torch.float64), torch.tensor([mass], dtype=torch.float64)


def pot_value(x, z, a, b, reg, reg_m):
    """The whole objective of POT's plan, each term by its definition."""
    cost = torch.cdist(x, z).square()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = torch.from_numpy(ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(), b.numpy(), cost.numpy(), reg, reg_m, reg_type="kl", numItermax=20_000, stopThr=1e-15))
    product = a[:, None] * b[None, :]
    return ((cost * plan).sum() + reg_m * (kl(plan.sum(1), a) + kl(plan.sum(0), b))
            + reg * kl(plan.reshape(-1), product.reshape(-1)))


@pytest.mark.parametrize("reg_m", [0.2, 3.0])
@pytest.mark.parametrize("reg", [1.0, 0.1])
def test_values_of_pot(reg, reg_m):
    x, z, a, b = clouds()
    expected = pot_value(x, z, a, b, reg, reg_m) - 0.5 * pot_value(x, x, a, a, reg, reg_m) \
        - 0.5 * pot_value(z, z, b, b, reg, reg_m) + 0.5 * reg * (a.sum() - b.sum()) ** 2
    assert_close(sinkhorn_divergence(SqEuclideanCost(x, z), a, b, reg=reg, reg_m=reg_m, **EXACT), expected, 1e-9)


@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_value_of_geomloss(ratio):
    """GeomLoss, by an author of the paper, halves the square and stops after one sweep of its annealing: 5e-5 here."""
    x, z, a, b = clouds(batch=(1,))
    loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=0.3, reach=0.7, scaling=0.99, backend="tensorized")
    dense = tuple(0.5 * torch.cdist(*pair)[0].square() for pair in ((x, z), (x, x), (z, z)))
    found = sinkhorn_divergence(dense, a[0], ratio * b[0], reg=0.3**2, reg_m=0.7**2, **EXACT)
    assert_close(found[None], loss(a, x, ratio * b, z), 1e-3)


@pytest.mark.parametrize("reg_m", [0.05, 0.7, 40.0])
@pytest.mark.parametrize("reg", [1.0, 1e-2])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.7, 1.9)])
def test_two_diracs(a, b, reg, reg_m):
    r"""With s = 2 tau + eps and A = a^((tau + eps)/s), S is s/2 (A^2 + B^2 - 2 A B e^(-C/s))."""
    distance = 0.6
    (x, mass_a), (z, mass_b) = dirac(0.0, a), dirac(distance, b)
    found = sinkhorn_divergence(SqEuclideanCost(x, z), mass_a, mass_b, reg=reg, reg_m=reg_m, **EXACT)
    scale = 2 * reg_m + reg
    left, right = (mass ** ((reg_m + reg) / scale) for mass in (a, b))
    expected = 0.5 * scale * (left**2 + right**2 - 2 * left * right * math.exp(-(distance**2) / scale))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_translation_with_exact_marginals():
    """|x - z - t|^2 differs from |x - z|^2 by terms of one side: S of a cloud moved by t is |t|^2 times its mass."""
    x, _, a, _ = clouds()
    shift = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64)
    found = sinkhorn_divergence(SqEuclideanCost(x, x + shift), 1.3 * a, 1.3 * a, reg=0.5, reg_m=INF, **EXACT)
    assert float(found) == pytest.approx(1.3 * float(shift.square().sum()), rel=1e-9)


@pytest.mark.parametrize("reg_m", [0.3, INF])
@pytest.mark.parametrize("kind", COSTS)
def test_equal_measures_are_at_distance_zero_without_a_slope(kind, reg_m):
    """The same points in another order, one of them written as two halves."""
    x, _, a, _ = clouds()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4, 4])
    z, b = x[order], torch.where(order == 4, 0.5, 1.0) * a[order]
    leaves = [leaf(tensor) for tensor in (x, z, a, b)]
    found = sinkhorn_divergence(kind(*leaves[:2]), *leaves[2:], reg=0.2, reg_m=reg_m, **EXACT)
    assert abs(float(found.detach())) < 1e-12
    gradients = torch.autograd.grad(found, leaves)
    moving = gradients[:2] if math.isinf(reg_m) else gradients  # exact marginals let no mass change alone
    for gradient in moving:
        assert float(gradient.abs().max()) < 1e-9


def test_identical_arguments_give_exactly_zero():
    x, _, a, _ = clouds()
    for dtype in (torch.float32, torch.float64):
        cost = SqEuclideanCost(x.to(dtype), x.to(dtype))
        assert float(sinkhorn_divergence(cost, a.to(dtype), a.to(dtype), reg=0.05, reg_m=0.5)) == 0


@given(seed=st.integers(0, 10_000), reg=st.sampled_from([0.02, 0.3, 4.0]), reg_m=st.sampled_from([0.05, 1.0, 20.0]),
       kind=st.sampled_from(COSTS), ratio=st.sampled_from([0.1, 1.0, 3.0]))
def test_never_negative(seed, reg, reg_m, kind, ratio):
    x, z, a, b = clouds(4, 5, seed=seed)
    found = sinkhorn_divergence(kind(x, z), a, ratio * b, reg=reg, reg_m=reg_m, tol=1e-9, max_iter=5000)
    assert float(found) > 0


def test_without_the_term_of_the_masses_it_would_be_negative():
    (x, a), (_, b) = dirac(0.0, 1.0), dirac(0.0, 2.0)
    settings = {"reg": 1.0, "reg_m": 0.05, **EXACT}
    values = [unbalanced_sinkhorn(SqEuclideanCost(x, x), left, right, **settings).value
              for left, right in ((a, b), (a, a), (b, b))]
    assert float(values[0] - 0.5 * values[1] - 0.5 * values[2]) < -0.01
    assert float(sinkhorn_divergence(SqEuclideanCost(x, x), a, b, **settings)) > 0.01


def test_the_entropy_convention_sees_how_a_measure_is_written():
    """Why it is refused: splitting a point changes its value, and not that of the other convention."""
    (x, a), (z, b) = dirac(0.0, 1.0), dirac(0.5, 1.0)
    halves, two = x.expand(2, 1), 0.5 * a.expand(2)

    def change(reg_type):
        values = [unbalanced_sinkhorn(SqEuclideanCost(*pair), *mass, reg=0.5, reg_m=1.0, reg_type=reg_type,
                                      **EXACT).value for pair, mass in (((x, z), (a, b)), ((halves, z), (two, b)))]
        return abs(float(values[0] - values[1]))

    assert change("kl") < 1e-12
    assert change("entropy") > 0.05
    with pytest.raises(ValueError, match="'entropy', whose value is no function of the measures"):
        sinkhorn_divergence(SqEuclideanCost(x, z), a, b, reg=0.5, reg_m=1.0, reg_type="entropy")


@pytest.mark.parametrize("kind", COSTS)
def test_gradients_are_those_of_finite_differences(kind):
    x, z, a, b = clouds(3, 4, d=2, seed=1)
    leaves = [leaf(value) for value in (x, z, a, b, 0.3, 0.6)]

    def divergence(x, z, a, b, reg, reg_m):
        return sinkhorn_divergence(kind(x, z), a, b, reg=reg, reg_m=reg_m, tol=1e-13, max_iter=5000)

    assert torch.autograd.gradcheck(divergence, leaves, atol=1e-7)


def test_second_derivatives():
    x, z, a, b = clouds(3, 2, d=2, seed=2)
    leaves = [leaf(value) for value in (x, z, a, b)]

    def divergence(x, z, a, b):
        return sinkhorn_divergence(SqEuclideanCost(x, z), a, b, reg=0.5, reg_m=0.6, tol=1e-13, max_iter=5000)

    assert torch.autograd.gradgradcheck(divergence, leaves, atol=1e-6)


def test_gradient_to_dense_costs_are_the_plans():
    """Envelope: dS/dC is T between the measures, and -T/2 within each."""
    x, z, a, b = clouds()
    costs = [leaf(torch.cdist(*pair).square()) for pair in ((x, z), (x, x), (z, z))]
    sinkhorn_divergence(tuple(costs), a, b, reg=0.2, reg_m=0.5, **EXACT).backward()
    for cost, left, right, factor in ((costs[0], a, b, 1.0), (costs[1], a, a, -0.5), (costs[2], b, b, -0.5)):
        plan = unbalanced_sinkhorn(cost.detach(), left, right, reg=0.2, reg_m=0.5, **EXACT).plan
        assert_close(cost.grad, factor * plan, 1e-9)


def test_dense_costs_are_those_of_the_features():
    x, z, a, b = clouds()
    dense = tuple(torch.cdist(*pair).square() for pair in ((x, z), (x, x), (z, z)))
    settings = {"reg": 0.2, "reg_m": 0.5, **EXACT}
    assert_close(sinkhorn_divergence(dense, a, b, **settings),
                 sinkhorn_divergence(SqEuclideanCost(x, z), a, b, **settings), RTOL)


def test_a_batch_is_its_items():
    x, z, a, b = clouds(batch=(2, 1))
    reg = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    together = sinkhorn_divergence(SqEuclideanCost(x, z), a, b, reg=reg, reg_m=0.5, **EXACT)
    assert together.shape == (2, 3)
    for i in range(2):
        for k in range(3):
            alone = sinkhorn_divergence(SqEuclideanCost(x[i, 0], z[i, 0]), a[i, 0], b[i, 0], reg=float(reg[k]),
                                        reg_m=0.5, **EXACT)
            assert_close(together[i, k], alone, 1e-10)


def test_masses_default_to_uniform():
    x, z, *_ = clouds()
    a, b = (torch.full((points,), 1 / points, dtype=torch.float64) for points in (7, 9))
    settings = {"reg": 0.2, "reg_m": 0.5, **EXACT}
    assert_close(sinkhorn_divergence(CosineCost(x, z), **settings),
                 sinkhorn_divergence(CosineCost(x, z), a, b, **settings), RTOL)


def test_float32_is_as_exact_as_its_values():
    """A difference of three values: each is rounded at 2^-24 of itself, and solved to a violation of 1e-5."""
    x, z, a, b = clouds(40, 50)
    settings = {"reg": 0.05, "reg_m": 0.5}
    truth = sinkhorn_divergence(SqEuclideanCost(x, z), a, b, **settings, **EXACT)
    found = sinkhorn_divergence(SqEuclideanCost(x.float(), z.float()), a.float(), b.float(), **settings)
    scale = float(unbalanced_sinkhorn(SqEuclideanCost(x, z), a, b, **settings).value)
    assert found.dtype == torch.float32
    assert abs(float(found) - float(truth)) < 1e-5 * scale


def test_mixed_types_are_solved_in_the_larger():
    x, z, *_ = clouds()
    assert sinkhorn_divergence(SqEuclideanCost(x.float(), z), reg=0.2, reg_m=0.5).dtype == torch.float64


def test_bad_arguments_are_named():
    x, z, a, b = clouds()
    dense = tuple(torch.cdist(*pair).square() for pair in ((x, z), (x, x), (z, z)))
    settings = {"reg": 0.2, "reg_m": 0.5}
    with pytest.raises(TypeError, match=r"cost must be a feature cost.*got Tensor"):
        sinkhorn_divergence(dense[0], a, b, **settings)
    with pytest.raises(TypeError, match="got 2 of them"):
        sinkhorn_divergence(dense[:2], a, b, **settings)
    with pytest.raises(ValueError, match=r"cost\[1\] must have shape \(..., 7, 7\).*7 x 9, got 9 x 9"):
        sinkhorn_divergence((dense[0], dense[2], dense[1]), a, b, **settings)
    crooked = dense[1].clone()
    crooked[0, 1] += 0.5
    with pytest.raises(ValueError, match=r"cost\[1\] must be symmetric.*by 0\.5"):
        sinkhorn_divergence((dense[0], crooked, dense[2]), a, b, **settings)
    with pytest.raises(TypeError, match=r"reg_m must be one penalty.*\(0.5, 1.0\)"):
        sinkhorn_divergence(dense, a, b, reg=0.2, reg_m=(0.5, 1.0))
    with pytest.raises(ValueError, match="reg_type must be 'kl', got 'l2'"):
        sinkhorn_divergence(dense, a, b, **settings, reg_type="l2")
    with pytest.raises(ValueError, match="reg must be positive"):
        sinkhorn_divergence(dense, a, b, reg=-1.0, reg_m=0.5)


def test_forbidden_pairs_are_allowed():
    """Two clusters that may not exchange anything are two divergences."""
    x, z, a, b = clouds(6, 6)
    settings = {"reg": 0.2, "reg_m": 0.5, **EXACT}
    pieces = [sinkhorn_divergence(SqEuclideanCost(x[part], z[part]), a[part], b[part], **settings)
              for part in (slice(0, 2), slice(2, 6))]
    apart = torch.zeros(6, 6, dtype=torch.bool)
    apart[:2, 2:], apart[2:, :2] = True, True
    dense = tuple(torch.cdist(*pair).square().masked_fill(apart, INF) for pair in ((x, z), (x, x), (z, z)))
    assert_close(sinkhorn_divergence(dense, a, b, **settings), pieces[0] + pieces[1], 1e-10)


def test_integer_features_are_refused():
    with pytest.raises(TypeError, match=r"cost.x must have a floating-point dtype, got torch.int64"):
        sinkhorn_divergence(SqEuclideanCost(torch.ones(3, 2, dtype=torch.int64), torch.zeros(3, 2)), reg=0.1, reg_m=1.0)


def test_what_a_cost_has_set_on_it_counts():
    """A cost of one's own keeps what was set on the instance in all three solves."""
    class Scaled(SqEuclideanCost):
        weight = 1.0

        def factors(self, x, z):
            alpha, beta, left, right = super().factors(x, z)
            return self.weight * alpha, self.weight * beta, self.weight * left, right

    x, z, *_ = clouds()
    cost = Scaled(x, z)
    cost.weight = 4.0
    expected = sinkhorn_divergence(SqEuclideanCost(2 * x, 2 * z), reg=0.1, reg_m=1.0)
    torch.testing.assert_close(sinkhorn_divergence(cost, reg=0.1, reg_m=1.0), expected)
