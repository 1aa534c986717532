"""Hessian-vector products of the value, against differences of its gradient in float64."""

from __future__ import annotations

import pytest
import torch
from differentiation import features, leaf, value_of_equal_totals, value_of_everything
from problems import CONVENTIONS, INF, draw
from tolerances import assert_close
from torch import Tensor
from torch.autograd import gradgradcheck

from uotlib import CosineCost, DotCost, SolverOptions, SqEuclideanCost, unbalanced_sinkhorn

SETTINGS = {"tol": 1e-13, "max_iter": 5000, "options": SolverOptions(adjoint_tol=1e-13)}
pytestmark = pytest.mark.filterwarnings("ignore:.*rounding floor:uotlib.ConvergenceWarning")


def check(function, inputs) -> None:
    assert gradgradcheck(function, tuple(inputs), eps=1e-6, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF)])
def test_hessian_in_everything(reg_m, reg_type, backend):
    case = draw(3, 4, seed=1, reg=0.2, reg_m=reg_m, reg_type=reg_type)
    check(value_of_everything(reg_type, backend=backend, **SETTINGS),
          map(leaf, (case.cost, case.a, case.b, case.reg, *reg_m)))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_hessian_with_both_marginals_exact(reg_type):
    case = draw(3, 4, seed=2, reg=0.2, reg_m=INF)
    check(value_of_equal_totals(reg_type, **SETTINGS), map(leaf, (case.cost, case.a.log(), case.b.log(), case.reg)))


@pytest.mark.parametrize("materialize", [True, False])
@pytest.mark.parametrize("cost", [CosineCost, SqEuclideanCost, DotCost])
def test_hessian_in_features_and_masses(cost, materialize):
    """One set of features shared by a batch of others; the cost's own second derivative is part of it."""
    case = draw(4, 3, seed=3)

    def value(x, z, a):
        return unbalanced_sinkhorn(cost(x, z, materialize=materialize), a, reg=0.5, reg_m=(0.5, 2.0), **SETTINGS).value

    check(value, map(leaf, (features(2, 4, 2), features(3, 2, seed=1), case.a)))


def test_hessian_of_a_cost_shared_by_a_batch():
    case, many = draw(3, 4, seed=4), draw(3, 4, seed=5, batch=(2,))
    check(lambda cost, a, tau: unbalanced_sinkhorn(cost, a, case.b, reg=0.2, reg_m=tau, **SETTINGS).value,
          map(leaf, (case.cost, many.a, torch.tensor([0.3, 2.0]))))


def test_hessian_is_symmetric_at_zero_masses_and_forbidden_pairs():
    case = draw(4, 5, seed=6, reg=0.2)
    case.a[1] = 0.0
    case.cost[2, 3] = case.cost[3] = INF
    leaves = [leaf(tensor) for tensor in (case.a, case.b)] + [leaf(0.2)]
    cost = case.cost.clone().requires_grad_()

    def gradient() -> tuple[Tensor, ...]:
        value = unbalanced_sinkhorn(cost, *leaves[:2], reg=leaves[2], reg_m=0.5, **SETTINGS).value
        return torch.autograd.grad(value, [*leaves, cost], create_graph=True)

    def product(direction: list[Tensor]) -> tuple[Tensor, ...]:
        along = sum((part * way).sum() for part, way in zip(gradient(), direction, strict=True))
        return torch.autograd.grad(along, [*leaves, cost])

    ways = [[features(*part.shape, seed=seed) for part in (*leaves, cost)] for seed in (1, 2)]
    images = [product(way) for way in ways]
    assert all(torch.isfinite(part).all() for image in images for part in image)
    sides = [sum(float((part * way).sum()) for part, way in zip(image, ways[1 - index], strict=True))
             for index, image in enumerate(images)]
    assert sides[0] == pytest.approx(sides[1], rel=1e-8)


def test_gradient_is_the_same_with_and_without_its_graph():
    case = draw(5, 6, seed=7)
    x, z = leaf(features(5, 3)), leaf(features(6, 3, seed=1))
    value = unbalanced_sinkhorn(SqEuclideanCost(x, z), case.a, case.b, reg=0.3, reg_m=1.0, **SETTINGS).value
    plain = torch.autograd.grad(value, (x, z), retain_graph=True)
    for one, other in zip(plain, torch.autograd.grad(value, (x, z), create_graph=True), strict=True):
        assert other.requires_grad
        assert_close(other, one, 1e-12)


def test_envelope_has_no_second_derivative():
    cost = leaf(draw(4, 5).cost)
    value = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0, grad="envelope").value
    (slope,) = torch.autograd.grad(value, cost, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice.*with grad='implicit'"):
        slope.square().sum().backward()
