"""Gradients of every output to every input, by the adjoint of the optimality equations.

Solved to a violation of 1e-13 and with the adjoint to 1e-13, differences over 1e-6 are good to about 1e-7.
"""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from differentiation import features, leaf, saved_sizes, with_an_empty_item
from problems import CONVENTIONS, INF, PENALTIES, Case, draw
from tolerances import assert_close
from torch import Tensor
from torch.autograd import gradcheck

import uotlib
from uotlib import CosineCost, DotCost, SolverOptions, SqEuclideanCost, unbalanced_sinkhorn
from uotlib.gradients import adjoint

EXACTLY = SolverOptions(adjoint_tol=1e-13)
SETTINGS = {"tol": 1e-13, "max_iter": 5000, "options": EXACTLY}
pytestmark = pytest.mark.filterwarnings("ignore:.*rounding floor:uotlib.ConvergenceWarning")


def check(function, inputs, **settings) -> None:
    assert gradcheck(function, tuple(inputs), eps=1e-6, atol=3e-6, rtol=1e-5, **settings)


def every_output(solution: uotlib.Solution, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """Of a solution n x m, with v (m, k) and w (n, k)."""
    return (solution.value, solution.transport_cost, solution.plan, solution.f, solution.g, solution.row_mass,
            solution.col_mass, solution.apply(v), solution.apply_t(w), solution.barycentric(v),
            solution.barycentric_t(w))


def one_loss(solution: uotlib.Solution, v: Tensor, w: Tensor) -> Tensor:
    """One number, (), of all outputs, each in a way of its own."""
    outputs = every_output(solution, v, w)
    finite = [torch.where(torch.isfinite(output), output, 0.0) for output in outputs]
    return sum((index + 1) * torch.sin(output + index).sum() for index, output in enumerate(finite))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", PENALTIES[:-1])
@pytest.mark.parametrize("shape", [(4, 5), (1, 3), (6, 2)])
def test_every_output_to_every_input(shape, reg_m, reg_type, backend):
    n, m = shape
    case = draw(n, m, seed=1, reg=0.2, reg_m=reg_m, reg_type=reg_type)

    def outputs(cost, a, b, reg, tau_a, tau_b, v, w):
        solution = unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=(tau_a, tau_b), reg_type=reg_type, backend=backend,
                                       **SETTINGS)
        return every_output(solution, v, w)

    check(outputs, map(leaf, (case.cost, case.a, case.b, case.reg, *reg_m, features(m, 2), features(n, 2, seed=1))),
          fast_mode=backend == "reference")


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_both_marginals_exact(reg_type, backend):
    """Masses may then only move along equal totals, and potentials are known up to a constant."""
    case = draw(4, 5, seed=2, reg=0.2, reg_m=INF)

    def outputs(cost, log_a, log_b, reg, v, w):
        solution = unbalanced_sinkhorn(cost, log_a.softmax(0), log_b.softmax(0), reg=reg, reg_m=INF, reg_type=reg_type,
                                       backend=backend, **SETTINGS)
        value, cost, plan, f, g, *others = every_output(solution, v, w)
        return value, cost, plan, f[:, None] + g[None, :], *others

    check(outputs, map(leaf, (case.cost, case.a.log(), case.b.log(), case.reg, features(5, 2), features(4, 2))))


@pytest.mark.parametrize("materialize", [True, False])
@pytest.mark.parametrize("cost", [CosineCost, SqEuclideanCost, DotCost])
def test_features(cost, materialize):
    """Streamed in blocks of few rows or built once."""
    x, z, v, w = features(2, 5, 3), features(4, 3, seed=1), features(4, 2), features(5, 2)

    def loss(x, z, a):
        options = SolverOptions(adjoint_tol=1e-13, block_bytes=4096)
        solution = unbalanced_sinkhorn(cost(x, z, materialize=materialize), a, reg=0.5, reg_m=(0.5, 2.0), tol=1e-13,
                                       max_iter=5000, options=options)
        return one_loss(solution, v, w)

    a = draw(5, 4).a
    check(loss, map(leaf, (x, z, a)))
    check(loss, map(leaf, (x[0], z, a)))


def test_shared_cost_gets_the_sum_over_the_batch():
    """One cost, a grid of parameters, many masses; broadcasting is what expanding by hand would be."""
    case, many = draw(4, 5, seed=4), draw(4, 5, seed=5, batch=(3,))
    v, w = features(3, 5, 2), features(4, 2)
    reg, tau = torch.tensor([[0.2], [0.5]]), torch.tensor([0.3, 1.0, 2.0])

    def loss(cost, a, b, reg, tau_a, tau_b, v):
        return one_loss(unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=(tau_a, tau_b), **SETTINGS), v, w)

    check(loss, map(leaf, (case.cost, many.a, case.b, reg, tau, 0.7, v)))
    check(loss, map(leaf, (many.cost, case.a, case.b, reg, torch.tensor([INF, 1.0, 2.0]), 0.7, v[0])))


def gradients_of(case: Case, v: Tensor, w: Tensor, **settings) -> list[Tensor]:
    leaves = [leaf(tensor) for tensor in (case.cost, case.a, case.b, v, w)]
    solution = case.but(cost=leaves[0], a=leaves[1], b=leaves[2]).solve(**(SETTINGS | settings))
    return list(torch.autograd.grad(one_loss(solution, *leaves[3:]), leaves))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_a_batch_is_its_items(reg_type, backend):
    """Items that need different numbers of steps: each stops on its own."""
    case = draw(6, 7, seed=7, batch=(3,), reg_type=reg_type)
    case = case.but(cost=case.cost * torch.tensor([0.01, 1.0, 5.0])[:, None, None].double())
    v, w = features(3, 7, 2), features(3, 6, 2)
    together = gradients_of(case, v, w, backend=backend)
    for item in range(3):
        alone = gradients_of(case.item(item), v[item], w[item], backend=backend)
        for batched, single in zip(together, alone, strict=True):
            assert_close(batched[item], single, 1e-9)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_padding_changes_no_other_gradient(reg_type, backend):
    case = draw(5, 6, seed=9, reg_type=reg_type)
    v, w = features(6, 2), features(5, 2)
    plain = gradients_of(case, v, w, backend=backend)
    pad = torch.nn.functional.pad
    for fill in (0.4, 1e4, INF):
        padded_case = case.but(cost=pad(case.cost, (0, 3, 0, 2), value=fill), a=pad(case.a, (0, 2)),
                               b=pad(case.b, (0, 3)))
        leaves = [leaf(tensor) for tensor in (padded_case.cost, padded_case.a, padded_case.b)]
        leaves[0].requires_grad_()
        vw = [leaf(pad(tensor, (0, 0, 0, extra))) for tensor, extra in ((v, 3), (w, 2))]
        solution = padded_case.but(cost=leaves[0], a=leaves[1], b=leaves[2]).solve(backend=backend, **SETTINGS)
        outputs = every_output(solution, *vw)
        real = [output[tuple(slice(size) for size in expected.shape)] for output, expected in zip(
            outputs, every_output(case.solve(backend=backend, **SETTINGS), v, w), strict=True)]
        loss = sum((index + 1) * torch.sin(output + index).sum() for index, output in enumerate(real))
        for with_padding, without in zip(torch.autograd.grad(loss, leaves + vw), plain, strict=True):
            assert torch.isfinite(with_padding).all()
            assert_close(with_padding[tuple(slice(size) for size in without.shape)], without, 1e-9)


@pytest.mark.parametrize("reg_m", [(0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF)])
def test_gradient_at_zero_mass_is_the_one_sided_derivative(reg_m, backend):
    """In the kl convention: finite, and what a little mass would change (to the second order of the difference)."""
    v, w = features(6, 2), features(5, 2)

    def loss(case: Case) -> Tensor:
        return one_loss(case.solve(backend=backend, **SETTINGS), v, w)

    for name, empty in (("a", 1), ("b", 4)):
        case = draw(5, 6, seed=8, reg=0.2, reg_m=reg_m)
        mass = getattr(case, name)
        mass[empty] = 0.0
        attached = leaf(mass)
        here = loss(case.but(**{name: attached}))
        here.backward()
        slopes = []
        for step in (1e-5, 2e-5):
            moved = mass.clone()
            moved[empty] += step
            slopes.append(float(loss(case.but(**{name: moved})) - here.detach()) / step)
        assert float(attached.grad[empty]) == pytest.approx(2 * slopes[0] - slopes[1], rel=1e-6, abs=1e-6)


def test_potentials_of_points_without_mass_have_gradients():
    """They are updates that the other side asks for, so that every input moves them."""
    case = draw(4, 5, seed=10, reg=0.2, reg_m=(0.4, 2.0))
    case.a[1], case.b[3] = 0.0, 0.0
    some = case.a > 0, case.b > 0

    def potentials(cost, a, b, reg, tau_a, tau_b):
        a, b = torch.where(some[0], a, 0.0), torch.where(some[1], b, 0.0)
        solution = unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=(tau_a, tau_b), **SETTINGS)
        return solution.f, solution.g, solution.barycentric(features(5, 2)), solution.barycentric_t(features(4, 2))

    check(potentials, map(leaf, (case.cost, case.a, case.b, 0.2, 0.4, 2.0)))


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_forbidden_pairs_and_isolated_points(reg_type):
    case = draw(5, 6, seed=11, reg_type=reg_type)
    forbidden = torch.zeros(5, 6, dtype=torch.bool)
    forbidden[0, 1:] = forbidden[2, 3] = forbidden[4] = forbidden[:, 2] = True
    v, w = features(6, 2), features(5, 2)

    def loss(cost, a, b):
        return one_loss(case.but(cost=torch.where(forbidden, INF, cost), a=a, b=b).solve(**SETTINGS), v, w)

    check(loss, map(leaf, (case.cost, case.a, case.b)))
    cost = case.cost.masked_fill(forbidden, INF).requires_grad_()
    one_loss(case.but(cost=cost).solve(**SETTINGS), v, w).backward()
    assert torch.isfinite(cost.grad).all()
    assert not cost.grad[forbidden].any()


def test_mass_gradient_at_zero_is_zero_in_the_entropy_convention():
    """The limit diverges (like log a); 0 is what padding needs."""
    case = draw(5, 6, seed=12, reg_type="entropy")
    case.a[1] = 0.0
    a = leaf(case.a)
    one_loss(case.but(a=a).solve(**SETTINGS), features(6, 2), features(5, 2)).backward()
    assert torch.isfinite(a.grad).all()
    assert float(a.grad[1]) == 0.0


def test_one_adjoint_solve_for_all_outputs(monkeypatch):
    calls = []
    solve = adjoint._conjugate_gradients
    monkeypatch.setattr(adjoint, "_conjugate_gradients", lambda *args: calls.append(1) or solve(*args))
    case = draw(5, 6, seed=13)
    cost = leaf(case.cost)
    solution = case.but(cost=cost).solve()
    one_loss(solution, features(6, 2), features(5, 2)).backward()
    assert len(calls) == 1
    case.but(cost=cost).solve().value.backward()
    assert len(calls) == 1, "the value alone needs none"


def test_incoming_gradients_scale_the_answer():
    case = draw(5, 6, seed=14)
    cost = leaf(case.cost)
    for name in ("plan", "f", "transport_cost"):
        output = getattr(case.but(cost=cost).solve(**SETTINGS), name)
        (one,) = torch.autograd.grad(output.sum(), cost, retain_graph=True)
        (three,) = torch.autograd.grad(output, cost, torch.full_like(output, -3.0))
        assert_close(three, -3 * one, 1e-9)


def test_plan_is_balanced_where_marginals_are_exact():
    """Row and column sums are given, so that no cost can move them: the gradient of a sum over rows vanishes."""
    case = draw(5, 6, seed=15, reg_m=INF)
    cost = leaf(case.cost)
    solution = case.but(cost=cost).solve(**SETTINGS)
    (gradient,) = torch.autograd.grad((solution.apply(torch.ones(6).double()) * features(5)).sum(), cost)
    assert float(gradient.abs().max()) < 1e-10


@pytest.mark.parametrize("reg_m", [(0.1, 0.1), (1.0, 1.0), (INF, 1.0)])
@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_float32_at_tiny_eps(reg_m, reg_type, backend):
    """eps 1e-4, at the default tolerance: finite, and within 1e-2 of float64 solved to 1e-9."""
    case = draw(60, 71, seed=16, kind="clustered", reg=1e-4, reg_m=reg_m, reg_type=reg_type)
    v, w = features(71, 2), features(60, 2)
    gradients = []
    for dtype, tol in ((torch.float32, None), (torch.float64, 1e-9)):
        leaves = [tensor.float().to(dtype).requires_grad_() for tensor in (case.cost, case.a, case.b)]
        solution = case.but(cost=leaves[0], a=leaves[1], b=leaves[2]).solve(backend=backend, tol=tol, max_iter=20000)
        loss = (solution.barycentric(v.to(dtype)) * w.to(dtype)).sum() + solution.row_mass.square().sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for single, double in zip(*gradients, strict=True):
        assert torch.isfinite(single).all()
        assert float((single - double).norm()) <= 1e-2 * float(double.norm())


def test_points_whose_mass_underflows_have_gradients():
    """Outliers of mass e^(-C/tau), nothing in float32, but a barycentre: it depends on costs as any other does."""
    case = draw(6, 7, seed=17, reg=0.05, reg_m=(0.01, 0.01))
    cost = case.cost.clone()
    cost[3:] += 6.0
    cost[:, 4:] += 6.0
    v = features(7, 2)

    def gradient(dtype):
        leaves = cost.to(dtype).requires_grad_()
        solution = case.but(cost=leaves, a=case.a.to(dtype), b=case.b.to(dtype)).solve(max_iter=20000)
        assert float(solution.row_mass[3:].detach().max()) < 1e-38
        return torch.autograd.grad(solution.barycentric(v.to(dtype)).sum() + solution.f.sum(), leaves)[0]

    assert_close(gradient(torch.float32), gradient(torch.float64), 1e-3)


def test_half_precision_inputs_get_gradients_of_their_type():
    case = draw(5, 6, seed=18)
    leaves = [tensor.to(torch.bfloat16).requires_grad_() for tensor in (case.cost, case.a, case.b)]
    unbalanced_sinkhorn(*leaves, reg=0.1, reg_m=1.0).barycentric(features(6, 2)).sum().backward()
    assert all(tensor.grad.dtype == torch.bfloat16 and torch.isfinite(tensor.grad).all() for tensor in leaves)


def test_adjoint_that_does_not_arrive_warns_once():
    case = draw(30, 31, seed=19, reg=1e-3)
    cost = leaf(case.cost)
    solution = case.but(cost=cost).solve(options=SolverOptions(adjoint_tol=1e-12, adjoint_max_iter=3))
    with pytest.warns(uotlib.ConvergenceWarning, match=r"adjoint_tol=1e-12 within adjoint_max_iter=3") as caught:
        solution.plan.square().sum().backward()
    assert len(caught) == 1


@pytest.mark.parametrize("output", ["f", "g", "plan", "row_mass", "col_mass", "transport_cost"])
def test_no_second_derivative_in_silence(output):
    cost = leaf(draw(4, 5, seed=20).cost)
    read = getattr(unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0), output)
    (gradient,) = torch.autograd.grad(read.square().sum(), cost, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice"):
        gradient.sum().backward()


def test_inputs_changed_before_the_backward_are_noticed():
    for output in ("f", "plan", "col_mass", "transport_cost"):
        cost = draw(4, 5).cost.requires_grad_()
        read = getattr(unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0), output)
        with torch.no_grad():
            cost.mul_(3.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            read.sum().backward()


def test_operand_changed_before_the_backward_is_noticed():
    case, v = draw(4, 5), features(5, 2)
    product = case.but(cost=leaf(case.cost)).solve().apply(v)
    v.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_gradient_to_the_operand_of_a_constant_plan():
    case, v = draw(4, 5), features(5, 2).requires_grad_()
    for grad in ("implicit", "none"):
        solution = case.solve(grad=grad)
        solution.apply(v).sum().backward()
        assert_close(v.grad, solution.col_mass[:, None].expand(5, 2), 1e-12)
        v.grad = None
        with torch.no_grad():
            assert not solution.apply(v).requires_grad


def test_grad_mode_is_that_of_the_solve():
    case = draw(4, 5)
    attached = case.but(cost=leaf(case.cost)).solve()
    with torch.no_grad():
        assert all(output.requires_grad for output in every_output(attached, features(5, 2), features(4, 2)))
        constant = case.but(cost=leaf(case.cost)).solve()
    assert not any(output.requires_grad for output in every_output(constant, features(5, 2), features(4, 2)))


def test_backward_under_autocast_is_the_backward():
    case = draw(20, 21, seed=21)
    cost = case.cost.float().requires_grad_()
    loss = case.but(cost=cost, a=case.a.float(), b=case.b.float()).solve().barycentric(features(21, 4).float()).sum()
    (plain,) = torch.autograd.grad(loss, cost, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = torch.autograd.grad(loss, cost)
    assert torch.equal(plain, inside)


def test_memory_of_a_batch_of_nothing():
    cost = torch.zeros(0, 4, 5, requires_grad=True)
    solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0)
    (solution.plan.sum() + solution.f.sum() + solution.apply(torch.ones(5, 2)).sum()).backward()
    assert cost.grad.shape == (0, 4, 5)


def test_items_without_mass_do_not_spoil_the_others(backend):
    case, leaves = with_an_empty_item(seed=22)
    solution = case.solve(backend=backend, **SETTINGS)
    v, w = features(5, 2), features(4, 2)
    outputs = every_output(solution, v, w)
    loss = sum(torch.sin(output[[0, 2]]).sum() for output in outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients = torch.autograd.grad(loss, leaves)
    assert all(torch.isfinite(gradient).all() and not gradient[1].any() for gradient in gradients)


@pytest.mark.parametrize("read", ["apply", "barycentric_t", "row_mass", "transport_cost"])
def test_nothing_of_the_size_of_the_plan_is_kept(read):
    """Between forward and backward, for features of d = 4: vectors and the operand."""
    x, z = features(300, 4).requires_grad_(), features(250, 4, seed=1)
    with saved_sizes() as sizes:
        solution = unbalanced_sinkhorn(SqEuclideanCost(x, z, materialize=False), reg=1.0, reg_m=1.0)
        output = getattr(solution, read)
        output = output(features(250 if read == "apply" else 300, 4)) if callable(output) else output
    output.square().sum().backward()
    assert 0 < max(sizes) <= 300 * 6
    assert torch.isfinite(x.grad).all()


def test_solutions_are_freed_without_the_garbage_collector():
    """A cycle through the graph would keep a cost matrix a call."""
    cost = leaf(draw(4, 5).cost)
    gc.collect()
    gc.disable()
    try:
        solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0)
        one_loss(solution, features(5, 2), features(4, 2)).backward()
        gone = weakref.ref(solution), weakref.ref(solution._state)
        del solution
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_empty_problem_of_a_batch_has_finite_gradients(backend):
    """A problem without mass beside an ordinary one, and a product whose gradient is 0: nothing is NaN."""
    cost, a = draw(5, 6, seed=31, batch=(2,)).cost.clone().requires_grad_(), torch.full((2, 5), 0.2).double()
    a[1] = 0
    solution = unbalanced_sinkhorn(cost, a, reg=0.1, reg_m=1.0, backend=backend)
    for product in (solution.apply(features(6, 2)), solution.apply(torch.zeros(6, 2).double())):
        (gradient,) = torch.autograd.grad(product.square().sum(), cost, retain_graph=True)
        assert gradient.isfinite().all()
