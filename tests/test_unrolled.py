"""Gradients of the iterations that were run: those of plain autograd through the textbook loop, whatever it reached."""

from __future__ import annotations

import math

import pytest
import torch
from differentiation import features, saved_sizes
from problems import CONVENTIONS, INF, PENALTIES, Case, draw
from tolerances import assert_close
from torch import Tensor

from uotlib import SolverOptions, SqEuclideanCost, unbalanced_sinkhorn


def torch_loop(case: Case, inputs: list[Tensor], n_iter: int, g: Tensor) -> tuple[Tensor, ...]:
    """f, g, plan and primal of the textbook iteration in plain torch; masses are positive."""
    cost, a, b, reg, tau_a, tau_b = inputs
    product = case.reg_type == "kl"
    alpha, beta = (a.log(), b.log()) if product else (torch.zeros_like(a), torch.zeros_like(b))
    steps = [1 / (1 / tau + 1 / reg) for tau in (tau_a, tau_b)]
    for _ in range(n_iter):
        f = steps[0] * (a.log() - alpha - torch.logsumexp(beta[None, :] + (g[None, :] - cost) / reg, 1))
        g = steps[1] * (b.log() - beta - torch.logsumexp(alpha[:, None] + (f[:, None] - cost) / reg, 0))
    log_plan = alpha[:, None] + beta[None, :] + (f[:, None] + g[None, :] - cost) / reg
    plan = log_plan.exp()

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p * (p / q).log() - p + q).sum()

    entropy = kl(plan, a[:, None] * b) if product else (plan * (log_plan - 1)).sum()
    value = (cost * plan).sum() + reg * entropy
    for tau, p, q in ((tau_a, plan.sum(1), a), (tau_b, plan.sum(0), b)):
        value = value if math.isinf(tau.detach()) else value + tau * kl(p, q)
    return f, g, plan, value


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize("n_iter", [1, 4])
def test_unrolled_is_autograd_through_the_loop(n_iter, reg_m, reg_type, backend):
    case = draw(5, 6, seed=1, reg=0.1, reg_m=reg_m, reg_type=reg_type)
    start, v, w = features(5), features(6, 2), features(5, 2)
    g = features(6, seed=2)

    def loss(f, g, plan, value, transport, rows, cols, applied, average):
        parts = f, g, plan, value, transport, rows, cols, applied, average
        return sum((index + 1) * torch.sin(part + index).sum() for index, part in enumerate(parts))

    def leaves() -> list[Tensor]:
        numbers = [torch.as_tensor(part, dtype=torch.float64).clone() for part in
                   (case.cost, case.a, case.b, case.reg, *reg_m)]
        return [number.requires_grad_(not math.isinf(number.max())) for number in numbers]

    mine, theirs = leaves(), leaves()
    solution = unbalanced_sinkhorn(*mine[:3], reg=mine[3], reg_m=tuple(mine[4:]), reg_type=reg_type, method="sinkhorn",
                                   max_iter=n_iter, tol=0, grad="unrolled", init=(start, g), backend=backend)
    plain = torch_loop(case, theirs, n_iter, g)
    plan = plain[2]
    outputs = (solution.f, solution.g, solution.plan, solution.value, solution.transport_cost, solution.row_mass,
               solution.col_mass, solution.apply(v), solution.barycentric_t(w))
    expected = (*plain, (plan * theirs[0]).sum(), plan.sum(1), plan.sum(0), plan @ v,
                (plan / plan.sum(0)).mT @ w)
    for one, other in zip(outputs, expected, strict=True):
        assert_close(one, other, 1e-11)
    loss(*outputs).backward()
    loss(*expected).backward()
    for one, other in zip(mine, theirs, strict=True):
        if one.requires_grad:
            assert_close(one.grad, other.grad, 1e-9)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, 3.0), (INF, 0.7)])
def test_unrolled_is_implicit_at_convergence(reg_m, reg_type):
    """Zero masses, a forbidden pair and items that need different numbers of iterations included."""
    case = draw(5, 6, seed=3, batch=(2,), reg=0.2, reg_m=reg_m, reg_type=reg_type)
    case.a[0, 1] = case.b[1, 4] = 0.0
    case.cost[1] *= 0.1
    case.cost[0, 2, 3] = INF
    v = features(6, 2)
    gradients = []
    for grad in ("unrolled", "implicit"):
        leaves = [tensor.clone().requires_grad_() for tensor in (case.cost, case.a, case.b)]
        solution = case.but(cost=leaves[0], a=leaves[1], b=leaves[2]).solve(
            method="sinkhorn", tol=1e-13, max_iter=5000, grad=grad, options=SolverOptions(adjoint_tol=1e-13))
        outputs = [solution.value, solution.plan, solution.row_mass, solution.barycentric(v), solution.transport_cost]
        gradients.append(torch.autograd.grad(sum(torch.sin(output).sum() for output in outputs), leaves))
    for unrolled, implicit in zip(*gradients, strict=True):
        assert_close(unrolled, implicit, 1e-8)


def test_unrolled_features_are_streamed():
    x, z, v = features(2, 5, 3), features(4, 3, seed=1), features(4, 2)
    gradients = []
    for options, materialize in ((SolverOptions(block_bytes=4096), False), (None, True)):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, z)]
        solution = unbalanced_sinkhorn(SqEuclideanCost(*leaves, materialize=materialize), reg=0.5, reg_m=1.0,
                                       method="sinkhorn", max_iter=5, tol=0, grad="unrolled", options=options)
        gradients.append(torch.autograd.grad(solution.apply(v).square().sum() + solution.value.sum(), leaves))
    for streamed, built in zip(*gradients, strict=True):
        assert_close(streamed, built, 1e-10)


def test_unrolled_refuses_what_it_cannot_differentiate():
    with pytest.raises(ValueError, match="grad='unrolled' differentiates the iterations of method='sinkhorn'"):
        draw(4, 5).solve(grad="unrolled")


def test_unrolled_keeps_vectors_only():
    """30 iterations on 800 x 700 in float32: 2.2 MB a matrix, and 30 of them would be kept by plain autograd."""
    x, z = features(800, 4).float().requires_grad_(), features(700, 4, seed=1).float()
    with saved_sizes() as sizes:
        solution = unbalanced_sinkhorn(SqEuclideanCost(x, z, materialize=False), reg=1.0, reg_m=1.0, method="sinkhorn",
                                       max_iter=30, tol=0, grad="unrolled")
        total = solution.apply(z).sum() + solution.value
    total.backward()
    assert 0 < max(sizes) <= 800 * 6
    assert torch.isfinite(x.grad).all()
