"""Where PyTorch's machinery meets uotlib's own: what must not be lost, and what must be refused in words."""

from __future__ import annotations

import copy
import functools
import math
import pickle
import threading
import warnings
from pathlib import Path

import pytest
import torch
from differentiation import features, leaf
from problems import draw
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import uotlib
from uotlib import CosineCost, InnerProductCost, SqEuclideanCost, sinkhorn_divergence, unbalanced_sinkhorn
from uotlib.nn import FeatureTransport

EXACT = {"tol": 0, "max_iter": 40}


def value(cost: Tensor, reg: float | Tensor = 0.3, **settings) -> Tensor:
    return unbalanced_sinkhorn(cost, reg=reg, reg_m=1.0, **EXACT | settings).value


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_compiled_transforms_are_refused(transform):
    """The operators' gradients would not be seen there: zeros in place of a gradient."""
    compiled = torch.compile(transform(lambda cost: value(cost).sum()), backend="aot_eager", fullgraph=True)
    cost = draw(4, 5, batch=(2,)).cost
    with pytest.raises(Exception, match="would lose gradients"):
        compiled(cost if transform is torch.func.vmap else cost[0])


def test_a_compiled_function_is_differentiated_as_the_plain_one():
    compiled = torch.compile(value, backend="aot_eager", fullgraph=True)
    cost = leaf(draw(4, 5).cost)
    found, expected = (torch.autograd.grad(function(cost), cost) for function in (compiled, value))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("changed", ["reg", "max_iter"])
def test_settings_may_change_under_compile(changed):
    cost = draw(4, 5).cost
    compiled = torch.compile(lambda cost, setting: value(cost, **{changed: setting}), backend="aot_eager",
                             fullgraph=True)
    for setting in (0.2, 0.3, 0.4) if changed == "reg" else (5, 6, 7):
        torch.testing.assert_close(compiled(cost, setting), value(cost, **{changed: setting}))


def test_annealed_matcher_under_compile():
    x, z, v = features(5, 4), features(6, 4, seed=1), features(6, 2, seed=2)
    layer = FeatureTransport(**EXACT)
    compiled = torch.compile(lambda x, z: layer(x, z).warp(v), backend="aot_eager", fullgraph=True)
    for reg in (0.5, 0.4, 0.3):
        layer.reg = reg
        torch.testing.assert_close(compiled(x, z), layer(x, z).warp(v))


def test_tensor_reg_under_compile_is_compiled_once():
    cost, compiled = draw(4, 5).cost, torch.compile(value, backend="aot_eager", fullgraph=True)
    with torch.compiler.set_stance("default"):
        compiled(cost, torch.tensor(0.2, dtype=torch.float64))
    with torch.compiler.set_stance("fail_on_recompile"):
        for reg in torch.linspace(0.3, 0.9, 12, dtype=torch.float64):
            torch.testing.assert_close(compiled(cost, reg), value(cost, reg))


def test_sizes_may_change_under_compile():
    compiled = torch.compile(value, backend="aot_eager", fullgraph=True)
    for n, m in ((4, 5), (6, 5), (7, 9)):
        torch.testing.assert_close(compiled(draw(n, m).cost), value(draw(n, m).cost))


def test_outputs_without_gradients_under_vmap():
    costs = draw(4, 5, batch=(3,)).cost
    index = torch.func.vmap(lambda cost: unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0, **EXACT).topk(2)[1])(costs)
    mass = torch.func.vmap(lambda cost: unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0, grad="envelope",
                                                            **EXACT).row_mass)(costs)
    there = unbalanced_sinkhorn(costs, reg=0.3, reg_m=1.0, **EXACT)
    assert torch.equal(index, there.topk(2)[1])
    torch.testing.assert_close(mass, there.row_mass)


def test_vmap_over_a_start():
    cost, starts = draw(4, 5).cost, (torch.zeros(3, 4, dtype=torch.float64), features(3, 5))

    def first(f: Tensor, g: Tensor) -> Tensor:
        return unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0, tol=0, max_iter=2, init=(f, g)).f

    found = torch.func.vmap(first)(*starts)
    torch.testing.assert_close(found, torch.stack([first(f, g) for f, g in zip(*starts, strict=True)]))


def test_unrolled_without_a_fixed_count_is_refused():
    with pytest.raises(ValueError, match=r"grad='unrolled' needs tol=0 under"):
        torch.func.grad(lambda cost: unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0, method="sinkhorn",
                                                         grad="unrolled").plan.sum())(draw(4, 5).cost)


def test_forward_mode_is_refused():
    cost = draw(4, 5).cost
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="cost has a forward-mode tangent"):
        value(forward_ad.make_dual(cost, torch.ones_like(cost)))
    with pytest.raises(RuntimeError, match=r"no forward mode|forward-mode tangent"):
        torch.func.jvp(value, (cost,), (torch.ones_like(cost),))
    hessian = torch.func.jacrev(torch.func.jacrev(value))(cost)
    torch.testing.assert_close(hessian, hessian.permute(2, 3, 0, 1), atol=1e-6, rtol=1e-4)


def test_answers_do_not_change_with_what_is_done_to_them():
    solution = unbalanced_sinkhorn(leaf(draw(4, 5).cost), reg=0.3, reg_m=1.0)
    for name in ("value", "transport_cost", "f", "g", "row_mass", "plan", "violation", "gap", "n_iter"):
        before = getattr(solution, name).detach().clone()
        with torch.no_grad():
            getattr(solution, name).add_(3)
        assert torch.equal(getattr(solution, name).detach(), before), name
    cost = leaf(draw(4, 5).cost)
    solution = unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0)
    loss = solution.value
    loss += solution.transport_cost
    (alone,) = torch.autograd.grad(solution.value, cost)
    torch.testing.assert_close(alone, solution.plan.detach())


def test_a_look_in_inference_mode_costs_no_gradient():
    cost = leaf(draw(4, 5).cost)
    expected = torch.autograd.grad(value(cost), cost)
    for name in ("value", "plan", "f", "transport_cost"):
        solution = unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0, **EXACT)
        with torch.inference_mode():
            getattr(solution, name).sum()
        torch.testing.assert_close(torch.autograd.grad(solution.value, cost), expected)
        assert getattr(solution, name).requires_grad


def test_copies_of_a_solution_work():
    solution = unbalanced_sinkhorn(draw(4, 5).cost.clone(), reg=0.3, reg_m=1.0)
    for other in (copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))):
        torch.testing.assert_close(other.plan, solution.plan)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_does_not_reach_the_kernels(device):
    cost = draw(5, 6).cost.requires_grad_()
    expected = unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0)
    gradient = torch.autograd.grad(expected.plan.square().sum() + expected.value, cost)
    try:
        torch.set_default_device(device)
        found = unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0)
        slopes = torch.autograd.grad(found.plan.square().sum() + found.value, cost)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(found.f, expected.f)
    torch.testing.assert_close(slopes, gradient)


def test_native_arrays_name_their_device():
    """Addresses go to the kernels: nothing there may follow a default."""
    for name in ("native.py", "native_solve.py"):
        text = (Path(uotlib.__file__).parent / "backends" / name).read_text()
        for made in ("torch.empty(", "torch.zeros(", "torch.ones(", "torch.full("):
            for part in text.split(made)[1:]:
                assert 'device="cpu"' in part[:200], f"{name}: {made}{part[:60]}"


def test_traced_graphs_solve_again():
    """The solve is in the graph, not its answer."""
    plan = functools.partial(unbalanced_sinkhorn, reg=0.3, reg_m=1.0, **EXACT)
    one, other = draw(4, 5).cost, draw(4, 5, seed=1).cost
    graph = make_fx(lambda cost: plan(cost).plan)(one)
    torch.testing.assert_close(graph(other), plan(other).plan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns of Python's numbers, and of itself
        traced = torch.jit.trace(lambda cost: plan(cost).plan, (one,))
    torch.testing.assert_close(traced(other), plan(other).plan)


def test_fake_tensors_have_shapes():
    with FakeTensorMode():
        solution = unbalanced_sinkhorn(torch.rand(3, 4, 5), reg=0.1, reg_m=1.0, tol=0)
        assert solution.f.shape == (3, 4)
        assert solution.plan.shape == (3, 4, 5)


@pytest.mark.parametrize("grad", ["implicit", "envelope", "unrolled", "twice"])
@pytest.mark.parametrize("reg_m", [(math.inf, 0.5), math.inf])
def test_padding_with_forbidden_rows_has_finite_gradients(grad, reg_m):
    """A massless point that reaches no other, of an exact marginal: its slope is infinite, and 0 is given."""
    cost = draw(4, 5, seed=2).cost.clone()
    cost[3] = math.inf
    weight = leaf(features(4))
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    settings = {"method": "sinkhorn", "grad": "unrolled", "max_iter": 400} if grad == "unrolled" else {
        "grad": "envelope" if grad == "envelope" else "implicit"}
    a = weight.softmax(0) * mask
    a = a / a.sum()
    kept = unbalanced_sinkhorn(cost, a, reg=0.2, reg_m=reg_m, **settings).value
    (slope,) = torch.autograd.grad(kept, a, create_graph=grad == "twice")
    assert bool(torch.isfinite(slope).all())
    assert slope[3] == 0


def test_threads_leave_the_process_as_it_was():
    """Number of threads and precision of products, after several solved and differentiated at once."""
    precision, count = torch.backends.mkldnn.matmul.fp32_precision, torch.get_num_threads()
    torch.set_num_threads(2)

    def work(seed: int) -> None:
        for turn in range(10):
            x = features(20, 3, seed=10 * seed + turn).float().requires_grad_()
            cost = SqEuclideanCost(x, x.detach(), materialize=False)
            unbalanced_sinkhorn(cost, reg=0.3, reg_m=1.0, tol=0, max_iter=5).barycentric(x).square().sum().backward()

    try:
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seen: list[int] = []
        late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        late.start()
        late.join()
        assert torch.backends.mkldnn.matmul.fp32_precision == precision
        assert torch.get_num_threads() == 2
        assert seen == [2]
    finally:
        torch.set_num_threads(count)


class Weighted(InnerProductCost):
    """Squared distance of features times a weight that only the instance knows."""

    scale = 2.0

    def __init__(self, x: Tensor, z: Tensor, weight: float) -> None:
        super().__init__(x, z)
        self.weight = weight

    def factors(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, z = self.weight * x, self.weight * z
        return x.square().sum(-1), z.square().sum(-1), x, z


def test_divergence_keeps_what_a_cost_was_made_with():
    x, z = features(5, 2), features(6, 2, seed=1)
    found = sinkhorn_divergence(Weighted(x, z, 3.0), reg=0.3, reg_m=1.0, tol=1e-9)
    expected = sinkhorn_divergence(SqEuclideanCost(3 * x, 3 * z), reg=0.3, reg_m=1.0, tol=1e-9)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)


def test_products_with_nothing():
    solution = unbalanced_sinkhorn(CosineCost(features(4, 2), features(5, 2, seed=1)), reg=0.3, reg_m=1.0)
    for name, points, others in (("apply", 5, 4), ("barycentric", 5, 4), ("apply_t", 4, 5), ("barycentric_t", 4, 5)):
        assert getattr(solution, name)(torch.zeros(points, 0, dtype=torch.float64)).shape == (others, 0)
