"""The gradient of the value, against finite differences in float64.

The envelope theorem makes the error of the gradient the violation and of the value its square, so that differences over
1e-6 of values solved to 1e-12 are good to about 1e-7.
"""

from __future__ import annotations

import pytest
import torch
from differentiation import leaf, value_of_equal_totals, value_of_everything, with_an_empty_item
from problems import CONVENTIONS, INF, draw
from tolerances import assert_close
from torch.autograd import gradcheck

from uotlib import CosineCost, DotCost, SolverOptions, SqEuclideanCost, unbalanced_sinkhorn

SETTINGS = {"tol": 1e-12, "max_iter": 3000}
FINITE_OR_ONE_EXACT = [(0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF)]
pytestmark = pytest.mark.filterwarnings("ignore:.*rounding floor:uotlib.ConvergenceWarning")


def check(function, inputs) -> None:
    assert gradcheck(function, tuple(inputs), eps=1e-6, atol=2e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", FINITE_OR_ONE_EXACT)
def test_gradient_to_everything(reg_m, reg_type, backend):
    case = draw(4, 5, seed=1, reg=0.2, reg_m=reg_m, reg_type=reg_type)
    check(value_of_everything(reg_type, backend=backend, **SETTINGS),
          map(leaf, (case.cost, case.a, case.b, case.reg, *reg_m)))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_gradient_with_both_marginals_exact(reg_type):
    case = draw(4, 5, seed=2, reg=0.2, reg_m=INF)
    check(value_of_equal_totals(reg_type, tol=1e-13, max_iter=3000),
          map(leaf, (case.cost, case.a.log(), case.b.log(), case.reg)))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_gradient_to_one_penalty_for_both_sides(reg_type):
    case = draw(4, 5, seed=3, reg=0.2, reg_type=reg_type)
    check(lambda tau: case.solve(reg_m=tau, **SETTINGS).value, [leaf(0.6)])


def test_gradient_over_broadcast_batches():
    """One cost, five sets of masses, a grid of parameters; and a gradient coming in that is not 1."""
    case, many = draw(4, 5, seed=4), draw(4, 5, seed=5, batch=(3,))
    weight = torch.tensor([[0.3], [-2.0]], dtype=torch.float64)

    def value(cost, a, b, reg, tau_a, tau_b):
        solution = unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=(tau_a, tau_b), **SETTINGS)
        assert solution.value.shape == (2, 3)
        return weight * solution.value

    reg = torch.tensor([[0.2], [0.5]])
    check(value, map(leaf, (case.cost, many.a, case.b, reg, torch.tensor([0.3, 1.0, 2.0]), 0.7)))
    check(value, map(leaf, (many.cost, case.a, case.b, reg, torch.tensor([INF, 1.0, 2.0]), 0.7)))


@pytest.mark.parametrize("materialize", [True, False])
@pytest.mark.parametrize("cost", [CosineCost, SqEuclideanCost, DotCost])
def test_gradient_to_features(cost, materialize):
    rng = torch.Generator().manual_seed(6)
    x, z = (torch.randn(2, points, 3, generator=rng, dtype=torch.float64) for points in (5, 4))
    options = SolverOptions(block_bytes=4096)

    def value(x, z):
        return unbalanced_sinkhorn(cost(x, z, materialize=materialize), reg=0.5, reg_m=(0.5, 2.0), options=options,
                                   **SETTINGS).value

    check(value, [leaf(x), leaf(z)])
    check(value, [leaf(x[:1]), leaf(z)])  # one set of features against a batch of them
    check(value, [leaf(x[0]), leaf(z)])


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_cost_gradient_is_the_plan(reg_type, backend):
    case = draw(6, 7, seed=7, batch=(2,), reg_type=reg_type)
    cost = leaf(case.cost)
    case.but(cost=cost).solve(backend=backend, **SETTINGS).value.sum().backward()
    assert_close(cost.grad, case.solve(backend=backend, **SETTINGS).plan, 1e-12)


@pytest.mark.parametrize("reg_m", FINITE_OR_ONE_EXACT)
def test_gradient_at_zero_mass_is_the_one_sided_derivative(reg_m):
    """In the kl convention it is finite: the point's potential is what its update would be if it had mass."""
    case = draw(5, 6, seed=8, reg=0.2, reg_m=reg_m)
    case.a[1], case.b[4] = 0.0, 0.0
    a, b = leaf(case.a), leaf(case.b)
    here = case.but(a=a, b=b).solve(**SETTINGS).value
    here.backward()
    for mass, gradient, name in ((case.a, a.grad, "a"), (case.b, b.grad, "b")):
        empty = int((mass == 0).nonzero()[0])
        moved = mass.clone()
        moved[empty] += 1e-6
        slope = (case.but(**{name: moved}).solve(**SETTINGS).value - here.detach()) / 1e-6
        assert float(gradient[empty]) == pytest.approx(float(slope), rel=1e-4, abs=1e-4)


def test_padding_gets_finite_gradients_and_changes_no_others(backend):
    for reg_type in CONVENTIONS:
        case = draw(5, 6, seed=9, reg_type=reg_type)
        cost = torch.nn.functional.pad(case.cost, (0, 3, 0, 2), value=0.4)
        a, b = torch.nn.functional.pad(case.a, (0, 2)), torch.nn.functional.pad(case.b, (0, 3))
        padded = [leaf(tensor) for tensor in (cost, a, b)]
        plain = [leaf(tensor) for tensor in (case.cost, case.a, case.b)]
        for cost, a, b in (padded, plain):
            case.but(cost=cost, a=a, b=b).solve(backend=backend, **SETTINGS).value.backward()
        for with_padding, without in zip(padded, plain, strict=True):
            assert torch.isfinite(with_padding.grad).all(), reg_type
            inside = tuple(slice(size) for size in without.shape)
            assert_close(with_padding.grad[inside], without.grad, 1e-9)
        assert not padded[0].grad[5:].any(), "forbidden to everything: no plan, no gradient"


def test_empty_items_of_a_batch_do_not_spoil_the_others(backend):
    """A problem without any mass is what a fully padded item is: no NaN anywhere."""
    case, leaves = with_an_empty_item(seed=10)
    solution = case.solve(backend=backend, **SETTINGS)
    solution.value[[0, 2]].sum().backward()
    assert float(solution.value[1].detach()) == 0.0
    for tensor in leaves:
        assert torch.isfinite(tensor.grad).all()
        assert not tensor.grad[1].any()


def test_forbidden_pairs_get_no_gradient():
    case = draw(5, 6, seed=11)
    forbidden = torch.zeros(5, 6, dtype=torch.bool)
    forbidden[0, 1:] = forbidden[2, 3] = True
    cost = case.cost.masked_fill(forbidden, INF).requires_grad_()
    a, b = leaf(case.a), leaf(case.b)
    case.but(cost=cost, a=a, b=b).solve(**SETTINGS).value.backward()
    assert not cost.grad[forbidden].any()
    assert (cost.grad[~forbidden] > 0).all()
    check(lambda a, b: case.but(cost=cost.detach(), a=a, b=b).solve(**SETTINGS).value, [leaf(case.a), leaf(case.b)])


def test_a_row_that_reaches_nothing_costs_its_penalty():
    r"""All pairs of the row forbidden: T = 0 there, and dV/da_i = tau_a + eps sum b, the price of losing the mass."""
    case = draw(4, 5, seed=12, reg=0.2, reg_m=(0.5, 2.0))
    cost = case.cost.clone()
    cost[2] = INF
    a, reg, tau = leaf(case.a), leaf(0.2), leaf(0.5)
    case.but(cost=cost, a=a).solve(reg=reg, reg_m=(tau, 2.0), **SETTINGS).value.backward()
    assert float(a.grad[2]) == pytest.approx(0.5 + 0.2 * float(case.b.sum()), rel=1e-9)
    check(lambda a, reg, tau: case.but(cost=cost, a=a).solve(reg=reg, reg_m=(tau, 2.0), **SETTINGS).value,
          [leaf(case.a), leaf(0.2), leaf(0.5)])


@pytest.mark.parametrize("reg", [0.1, 1e-3])
def test_float32_gradients_are_those_of_float64(reg, backend):
    case = draw(30, 41, seed=13, kind="clustered", reg=reg)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        # The same float32 numbers in both, so that only arithmetic differs.
        leaves = [tensor.float().to(dtype).requires_grad_() for tensor in (case.cost, case.a, case.b)]
        solution = unbalanced_sinkhorn(*leaves, reg=reg, reg_m=(0.5, 0.5), backend=backend)
        solution.value.backward()
        assert all(tensor.grad.dtype == dtype for tensor in leaves)
        gradients.append([tensor.grad for tensor in leaves])
    for single, double in zip(*gradients, strict=True):
        # One rounding of C / eps, u / eps relative to an entry of the plan, and the tolerance on the violation.
        assert_close(single, double, 1e-4 + 16 * 2.0**-24 / reg)


def test_half_precision_inputs_get_gradients_of_their_type():
    case = draw(5, 6, seed=14)
    leaves = [tensor.to(torch.bfloat16).requires_grad_() for tensor in (case.cost, case.a, case.b)]
    unbalanced_sinkhorn(*leaves, reg=0.1, reg_m=1.0).value.backward()
    assert all(tensor.grad.dtype == torch.bfloat16 and torch.isfinite(tensor.grad).all() for tensor in leaves)


@pytest.mark.parametrize("grad", ["implicit", "envelope"])
def test_gradient_arrives_whenever_the_backward_runs(grad):
    """Twice over one graph, and after other outputs of the value's graph were made."""
    case = draw(5, 6, seed=15)
    cost = leaf(case.cost)
    value = case.but(cost=cost).solve(grad=grad, **SETTINGS).value
    (first,) = torch.autograd.grad(value, cost, retain_graph=True)
    (second,) = torch.autograd.grad(3 * value, cost)
    assert_close(second, 3 * first, 1e-14)
