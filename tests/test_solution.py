"""Every output of a solution against its definition from the dense plan, for dense and for streamed costs."""

from __future__ import annotations

import pytest
import torch
from problems import CONVENTIONS, INF, Case, draw, unit_vectors
from tolerances import assert_close

import uotlib
from uotlib import CosineCost, SolverOptions, SqEuclideanCost, unbalanced_sinkhorn
from uotlib.reference import reference_plan, reference_primal

#: 4096 bytes are a row or two of these problems at a time.
TINY = SolverOptions(block_bytes=4096)
N, M = 23, 31
RTOL = 1e-12


@pytest.fixture(params=["dense", "dense in blocks", "built", "streamed"])
def solved(request, backend):
    """(dense cost, case, solution): the same batch of two problems, in every way a cost can be stored."""
    rng = torch.Generator().manual_seed(0)
    x, z = unit_vectors((2, N, 5), rng), unit_vectors((2, M, 5), rng)
    dense = (1 - x @ z.mT).clamp(0, 2)
    case = draw(N, M, seed=1, batch=(2,), reg=0.05, reg_m=(0.3, 2.0)).but(cost=dense)
    cost = dense if request.param.startswith("dense") else CosineCost(x, z, materialize=request.param == "built")
    options = None if request.param == "dense" else TINY
    return dense, case, case.but(cost=cost).solve(backend=backend, options=options, tol=1e-11)


def test_plan_is_that_of_the_potentials(solved):
    dense, case, solution = solved
    for item in range(2):
        expected = reference_plan(solution.f[item], solution.g[item], dense[item], case.a[item], case.b[item], case.reg)
        assert_close(solution.plan[item], expected, 1e-11)


def test_masses(solved):
    _, _, solution = solved
    assert_close(solution.row_mass, solution.plan.sum(-1), RTOL)
    assert_close(solution.col_mass, solution.plan.sum(-2), RTOL)


def test_products_with_the_plan(solved):
    _, _, solution = solved
    rng = torch.Generator().manual_seed(2)
    plan = solution.plan
    for right, left in (((M, 3), (N, 3)), ((2, M, 1), (2, N, 1)), ((1, M, 4), (1, N, 4))):
        v, w = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in (right, left))
        assert_close(solution.apply(v), plan @ v, RTOL)
        assert_close(solution.apply_t(w), plan.mT @ w, RTOL)
        assert_close(solution.barycentric(v), plan @ v / plan.sum(-1, keepdim=True), 1e-11)
        assert_close(solution.barycentric_t(w), plan.mT @ w / plan.sum(-2)[..., None], 1e-11)
    vector = torch.randn(M, generator=rng, dtype=torch.float64)
    assert_close(solution.apply(vector), plan @ vector, RTOL)
    assert solution.barycentric(vector).shape == (2, N)
    assert_close(solution.barycentric(torch.ones(M)), torch.ones(2, N, dtype=torch.float64), 1e-11)


def test_matches(solved):
    _, _, solution = solved
    plan = solution.plan
    assert torch.equal(solution.argmax(), plan.argmax(-1))
    assert torch.equal(solution.argmax(dim=-2), plan.argmax(-2))
    for dim, transposed in ((-1, plan), (-2, plan.mT)):
        for k in (1, 5, transposed.shape[-1]):
            expected = transposed.topk(k, dim=-1)
            mass, index = solution.topk(k, dim)
            assert_close(mass, expected.values, 1e-11)
            assert_close(transposed.gather(-1, index), mass, 1e-11)
            assert (index.sort(-1).values.diff(dim=-1) > 0).all(), "no entry twice"


def test_scalars(solved):
    dense, case, solution = solved
    assert_close(solution.transport_cost, (solution.plan * dense).sum((-1, -2)), RTOL)
    for item in range(2):
        expected = reference_primal(solution.plan[item], *case.item(item).but(cost=dense[item]).definition)
        assert_close(solution.value[item], expected, 1e-11)


def test_shapes_follow_the_batch():
    case = draw(4, 5, seed=3, batch=(2, 3))
    solution = case.solve()
    assert solution.plan.shape == (2, 3, 4, 5)
    assert solution.f.shape == solution.row_mass.shape == (2, 3, 4)
    assert solution.g.shape == solution.col_mass.shape == (2, 3, 5)
    for scalar in (solution.value, solution.transport_cost, solution.gap, solution.violation, solution.n_iter,
                   solution.converged):
        assert scalar.shape == (2, 3)
    assert solution.n_iter.dtype == torch.int64
    assert solution.converged.dtype == torch.bool
    assert solution.apply(torch.ones(2, 3, 5, 7)).shape == (2, 3, 4, 7)
    assert solution.apply(torch.ones(3, 5, 7)).shape == (2, 3, 4, 7)
    assert solution.topk(2)[1].shape == (2, 3, 4, 2)
    assert solution.argmax(dim=-2).shape == (2, 3, 5)
    assert "2, 3" in repr(solution)
    assert "converged=True" in repr(draw(4, 5).solve())


@pytest.mark.parametrize("cost", ["dense", "features"])
def test_a_batch_of_nothing(cost):
    argument = torch.zeros(0, 4, 5) if cost == "dense" else SqEuclideanCost(torch.zeros(0, 4, 2), torch.zeros(5, 2))
    solution = unbalanced_sinkhorn(argument, reg=0.1, reg_m=1.0)
    assert solution.plan.shape == (0, 4, 5)
    assert solution.value.shape == solution.transport_cost.shape == (0,)
    assert solution.apply(torch.ones(5, 2)).shape == (0, 4, 2)
    assert solution.apply_t(torch.ones(4, 2)).shape == (0, 5, 2)
    assert solution.argmax().shape == (0, 4)
    assert solution.topk(2, -2)[0].shape == (0, 5, 2)
    assert "(0,)" in repr(solution)


def test_a_batch_of_nothing_still_has_a_gradient():
    cost = torch.zeros(0, 4, 5, requires_grad=True)
    unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0).value.sum().backward()
    assert cost.grad.shape == (0, 4, 5)


def test_a_batch_of_one_is_the_item():
    case = draw(4, 5, seed=4)
    alone = case.solve(tol=1e-11)
    batch = case.but(cost=case.cost[None], a=case.a[None], b=case.b[None]).solve(tol=1e-11)
    assert batch.plan.shape == (1, 4, 5)
    assert torch.equal(batch.plan[0], alone.plan)
    assert torch.equal(batch.n_iter[0], alone.n_iter)


def test_matches_that_do_not_exist_are_minus_one():
    case = draw(4, 5, seed=5)
    cost = case.cost.clone()
    cost[1, :] = INF
    cost[2, 1:] = INF
    solution = case.but(cost=cost).solve()
    assert int(solution.argmax()[1]) == -1
    assert int(solution.argmax()[2]) == 0
    mass, index = solution.topk(2)
    assert index[2].tolist() == [0, -1]
    assert float(mass[2, 1]) == 0.0
    assert not solution.barycentric(torch.ones(5, 1))[1].any()


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_barycentre_of_a_row_without_mass_is_what_a_little_mass_would_get(reg_type):
    case = draw(4, 5, seed=6, reg_type=reg_type)
    v = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    empty, little = case.a.clone(), case.a.clone()
    empty[2], little[2] = 0.0, 1e-13
    without, with_little = (case.but(a=a).solve(tol=1e-12) for a in (empty, little))
    assert_close(without.barycentric(v), with_little.barycentric(v), 1e-9)
    assert not without.apply(v)[2].any()


BAD_OPERANDS = {
    "type": ([[1.0]], TypeError, r"apply: v must be a torch\.Tensor, got list"),
    "size": (torch.ones(4, 2), ValueError, r"apply: v must have shape \(\.\.\., 5, k\) or \(5,\), got \(4, 2\)"),
    "scalar": (torch.tensor(1.0), ValueError, "apply: v must have shape"),
    "batch": (torch.ones(3, 5, 2), ValueError, r"apply: batch dimensions of v \(3,\) do not broadcast"),
    "device": (torch.ones(5, 2, device="meta"), ValueError, "apply: v is on meta but the plan is on cpu"),
}


@pytest.mark.parametrize("name", BAD_OPERANDS)
def test_bad_operand(name):
    operand, error, message = BAD_OPERANDS[name]
    with pytest.raises(error, match=message):
        draw(4, 5, batch=(2,)).solve().apply(operand)


def test_bad_match_arguments():
    solution = draw(4, 5).solve()
    with pytest.raises(ValueError, match="k must be between 1 and 5, got 6"):
        solution.topk(6)
    with pytest.raises(ValueError, match="k must be between 1 and 4, got 0"):
        solution.topk(0, -2)
    with pytest.raises(ValueError, match=r"dim must be -1 .* or -2 .*, got 0"):
        solution.argmax(dim=0)


def _attached(**settings) -> uotlib.Solution:
    case = draw(4, 5)
    return case.but(cost=case.cost.requires_grad_()).solve(**settings)


OUTPUTS = {
    "f": lambda s: s.f, "g": lambda s: s.g, "plan": lambda s: s.plan, "row_mass": lambda s: s.row_mass,
    "col_mass": lambda s: s.col_mass, "transport_cost": lambda s: s.transport_cost,
    "apply": lambda s: s.apply(torch.ones(5)), "apply_t": lambda s: s.apply_t(torch.ones(4)),
    "barycentric": lambda s: s.barycentric(torch.ones(5)), "barycentric_t": lambda s: s.barycentric_t(torch.ones(4)),
    "topk": lambda s: s.topk(2),
}


@pytest.mark.parametrize(("name", "grad"), [*((name, "envelope") for name in OUTPUTS), ("topk", "implicit")])
def test_no_gradient_is_lost_in_silence(name, grad):
    """By the envelope theorem only the value is differentiable; an output that would be a constant says so instead."""
    with pytest.raises(RuntimeError, match=rf"an input requires grad and Solution\.{name} is not differentiable"):
        OUTPUTS[name](_attached(grad=grad))


@pytest.mark.parametrize("name", OUTPUTS)
def test_constants_are_there_for_the_asking(name):
    OUTPUTS[name](_attached(grad="none"))
    assert not _attached(grad="none").value.requires_grad
    with torch.no_grad():
        solution = _attached()
    OUTPUTS[name](solution)
    assert not solution.value.requires_grad, "grad mode is that of the solve"


def test_indices_and_certificates_need_no_gradient():
    solution = _attached()
    assert solution.argmax().dtype == torch.int64
    assert not any(part.requires_grad for part in (solution.gap, solution.violation))
    with torch.no_grad():
        assert solution.value.requires_grad, "grad mode is that of the solve"


@pytest.mark.parametrize("name", ["cost", "a", "b", "reg", r"reg_m\[1\]", r"cost\.x"])
def test_inputs_changed_in_place_are_noticed(name):
    case = draw(4, 5)
    x = torch.randn(4, 2)
    cost = SqEuclideanCost(x, torch.randn(5, 2)) if name == r"cost\.x" else case.cost
    tensors = {"cost": case.cost, "a": case.a, "b": case.b, "reg": torch.tensor(0.1), r"reg_m\[1\]": torch.tensor(2.0),
               r"cost\.x": x}
    solution = unbalanced_sinkhorn(cost, case.a, case.b, reg=tensors["reg"], reg_m=(1.0, tensors[r"reg_m\[1\]"]))
    tensors[name].mul_(1.5)
    for output in ("value", "plan", "transport_cost", "f"):
        with pytest.raises(RuntimeError, match=f"{name} was modified in place after the solve"):
            getattr(solution, output)
    with pytest.raises(RuntimeError, match="was modified in place"):
        solution.argmax()


def test_inputs_changed_before_the_backward_are_noticed():
    """The backward reads the cost again; autograd's own check of saved tensors would have said so."""
    cost = draw(4, 5).cost.requires_grad_()
    value = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0).value
    with torch.no_grad():
        cost.mul_(3.0)
    with pytest.raises(RuntimeError, match="modified"):
        value.backward()


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_changes_the_grad_mode_of_the_process(enabled):
    """Streaming is done by generators: a context manager held open across a yield would leak."""
    rng = torch.Generator().manual_seed(0)
    x, z = torch.randn(64, 3, generator=rng), torch.randn(64, 3, generator=rng)
    solution = unbalanced_sinkhorn(CosineCost(x, z, materialize=False), reg=0.5, reg_m=1.0, options=TINY)
    with torch.set_grad_enabled(enabled):
        for read in (lambda: solution.transport_cost, lambda: solution.value, lambda: solution.plan, solution.argmax,
                     lambda: solution.argmax(-2), lambda: solution.apply(z), lambda: solution.barycentric_t(x)):
            read()
            assert torch.is_grad_enabled() is enabled
    assert torch.is_grad_enabled()


def test_answers_do_not_share_memory_with_the_inputs_or_the_solution():
    case: Case = draw(4, 5)
    solution = case.solve()
    expected = solution.f.clone(), solution.plan.clone(), solution.violation.clone()
    solution.f.fill_(torch.nan)
    solution.plan.fill_(torch.nan)
    solution.row_mass.fill_(torch.nan)
    assert torch.equal(solution.f, expected[0])
    assert torch.equal(solution.plan, expected[1])
    assert torch.isfinite(case.a).all()
