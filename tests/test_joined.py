"""A product that is asked for first shares its backward with the potentials: the gradients are those of two."""

from __future__ import annotations

import pytest
import torch
from differentiation import features, leaf
from problems import CONVENTIONS, draw
from tolerances import assert_close
from torch import Tensor

import uotlib
from uotlib import CosineCost, SolverOptions, SqEuclideanCost

SETTINGS = {"tol": 1e-12, "max_iter": 3000, "options": SolverOptions(adjoint_tol=1e-12)}
PRODUCTS = ("apply", "apply_t", "barycentric", "barycentric_t")
pytestmark = pytest.mark.filterwarnings("ignore::uotlib.ConvergenceWarning")


def gradients(name: str, first: bool, cost, leaves: list[Tensor], v: Tensor, weight: Tensor, **given) -> list[Tensor]:
    """To the leaves, of a loss of a product, which is the ``first`` output or not, and of f."""
    solution = uotlib.unbalanced_sinkhorn(cost, **SETTINGS | given)
    outputs = [getattr(solution, name)(v)] if first else [solution.g, getattr(solution, name)(v)]
    loss = (outputs[-1] * weight).sum() + 0.1 * torch.nan_to_num(solution.f, posinf=0.0).sin().sum()
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("kind", ["dense", "wide", "shared", "features", "streamed"])
@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_first_or_not(name, reg_type, kind, backend):
    n, m, batch = 9, 11, (2,)
    case = draw(n, m, batch=batch, seed=5)
    case.a[..., 2], case.b[..., 3] = 0.0, 0.0
    inner, outer = (n, m) if name.endswith("_t") else (m, n)
    columns = 40 if kind == "wide" else 3
    v, weight = (torch.randn(*batch, points, columns, dtype=torch.float64) for points in (inner, outer))
    a, b = leaf(case.a), leaf(case.b)
    if kind in ("dense", "wide", "shared"):
        of_cost = [leaf(case.cost[0] if kind == "shared" else case.cost)]
        cost = of_cost[0]
    else:
        of_cost = [leaf(features(n, 4)), leaf(features(m, 4, seed=1))]
        cost = CosineCost(*of_cost) if kind == "features" else SqEuclideanCost(*of_cost, materialize=False)
    given = {"a": a, "b": b, "reg": 0.2, "reg_m": (0.6, 1.4), "reg_type": reg_type, "backend": backend}
    leaves = [*of_cost, a, b]
    one, two = (gradients(name, first, cost, leaves, v, weight, **given) for first in (True, False))
    for joined, apart in zip(one, two, strict=True):
        assert float(apart.abs().max()) > 0
        assert_close(joined, apart, 1e-9)


def test_with_a_gradient_to_reg(backend):
    case = draw(6, 7, seed=6)
    cost, reg = leaf(case.cost), leaf(torch.tensor(0.2, dtype=torch.float64))
    given = {"reg": reg, "reg_m": 0.7, "backend": backend}
    v, weight = features(7, 2), features(6, 2)
    one, two = (gradients("apply", first, cost, [cost, reg], v, weight, **given) for first in (True, False))
    for joined, apart in zip(one, two, strict=True):
        assert_close(joined, apart, 1e-9)


def test_marginals_of_very_different_size():
    """A row whose mass is e^-200 of the others' has an average as they have; in float32 neither's gradient is lost."""
    answers = []
    for dtype in (torch.float32, torch.float64):
        cost = torch.rand(8, 9, generator=torch.Generator().manual_seed(2)).to(dtype)
        cost[3] += 120
        cost.requires_grad_()
        v, weight = (features(points, 2, seed=points).to(dtype) for points in (9, 8))
        solution = uotlib.unbalanced_sinkhorn(cost, reg=0.3, reg_m=0.3, tol=1e-6, backend="native")
        (solution.barycentric(v) * weight).sum().backward()
        answers.append(cost.grad.double())
    torch.testing.assert_close(*answers, rtol=0, atol=1e-4 * float(answers[1].abs().max()))


def test_what_is_applied_has_a_life_of_its_own():
    """The potentials, which every later output is made of, depend on nothing that a product was asked for with."""
    cost = leaf(draw(6, 7, seed=7).cost)
    fresh = uotlib.unbalanced_sinkhorn(cost, reg=0.2, reg_m=0.7, **SETTINGS)
    expected = torch.autograd.grad(fresh.f.sum(), cost)[0]

    solution = uotlib.unbalanced_sinkhorn(cost, reg=0.2, reg_m=0.7, **SETTINGS)
    rows = torch.func.vmap(solution.apply)(features(3, 7, 2))
    assert rows.shape == (3, 6, 2)
    assert_close(torch.autograd.grad(solution.f.sum(), cost)[0], expected, 1e-9)

    solution, v = uotlib.unbalanced_sinkhorn(cost, reg=0.2, reg_m=0.7, **SETTINGS), leaf(features(7, 2))
    solution.apply(v)
    with torch.no_grad():
        v.mul_(2)
    (found,) = torch.autograd.grad(solution.f.sum(), cost)
    assert_close(found, expected, 1e-9)
    assert v.grad is None

    solution = uotlib.unbalanced_sinkhorn(cost, reg=0.2, reg_m=0.7, **SETTINGS)
    solution.apply(torch.full((7, 1), torch.inf, dtype=torch.float64))
    assert_close(torch.autograd.grad(solution.f.sum(), cost)[0], expected, 1e-9)
