"""uotlib inside PyTorch: operators, torch.compile, torch.func, autocast, grad modes, memory over many calls."""

from __future__ import annotations

import gc
import math
import warnings

import pytest
import torch
from differentiation import features, leaf
from problems import draw
from torch import Tensor

from uotlib import ConvergenceWarning, CosineCost, DotCost, SqEuclideanCost, cross_masses, unbalanced_sinkhorn
from uotlib.nn import FeatureTransport, UnbalancedSinkhornLoss
from uotlib.primitive import Primitive

EXACT = {"tol": 0, "max_iter": 80}


def outputs(solution, v: Tensor, w: Tensor) -> dict[str, Tensor]:
    """Every differentiable output."""
    named = {name: getattr(solution, name)
             for name in ("value", "transport_cost", "plan", "f", "g", "row_mass", "col_mass")}
    return named | {"apply": solution.apply(v), "apply_t": solution.apply_t(w),
                    "barycentric": solution.barycentric(v), "barycentric_t": solution.barycentric_t(w)}


def loss_of(solution, v: Tensor, w: Tensor) -> Tensor:
    return sum(output.square().sum() for output in outputs(solution, v, w).values())


def dense_loss(cost: Tensor, a: Tensor, b: Tensor, **settings) -> Tensor:
    v, w = (torch.linspace(-1, 2, 2 * points, dtype=cost.dtype).reshape(points, 2) for points in cost.shape[:-3:-1])
    return loss_of(unbalanced_sinkhorn(cost, a, b, reg=0.1, reg_m=(0.5, 1.5), **EXACT | settings), v, w)


class Matching(torch.nn.Module):
    """A layer that learns features' projection through the plan."""

    def __init__(self, kind: type = CosineCost, **settings) -> None:
        super().__init__()
        self.project = torch.nn.Linear(6, 4, dtype=torch.float64)
        self.kind, self.settings = kind, settings

    def forward(self, x: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        x, z = self.project(x), self.project(z)
        a, b = cross_masses(x, z)
        solution = unbalanced_sinkhorn(self.kind(x, z), a, b, reg=0.2, reg_m=0.7, **EXACT | self.settings)
        return solution.barycentric(v), solution.value, solution.row_mass, solution.argmax(), solution.converged


def gradients(function, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(function(*leaves), leaves))


@pytest.fixture
def calls(monkeypatch) -> list[tuple[Primitive, tuple]]:
    """Every call of a primitive, in order."""
    seen = []
    call = Primitive.__call__

    def remember(primitive: Primitive, *arguments):
        seen.append((primitive, arguments))
        return call(primitive, *arguments)

    monkeypatch.setattr(Primitive, "__call__", remember)
    return seen


def check_operators(calls: list[tuple[Primitive, tuple]], expected: set[str]) -> None:
    found = {}
    for primitive, arguments in calls:
        found[primitive.name, arguments[5] if primitive.name == "pull_back" else ""] = primitive, arguments
    assert {name if not of else f"{name} of {of}" for name, of in found} >= expected
    for primitive, arguments in found.values():
        torch.library.opcheck(primitive.operator, [as_leaves(argument, primitive.name) for argument in arguments])


def as_leaves(argument, name: str):
    """The argument away from its graph; gradients themselves have none."""
    if isinstance(argument, list | tuple):
        return [as_leaves(part, name) for part in argument]
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad and name != "pull_back")


def test_operators_of_a_dense_cost(calls):
    leaves = [leaf(tensor) for tensor in (draw(4, 5, batch=(2,)).cost, draw(4, 5).a, draw(4, 5).b)]
    dense_loss(*leaves).backward()
    unbalanced_sinkhorn(leaves[0].detach(), reg=0.1, reg_m=1.0).topk(2, dim=-2)
    check_operators(calls, {"potentials", "value", "product", "marginal", "plan", "transport_cost", "best",
                            "pull_back of potentials", "pull_back of value", "pull_back of product",
                            "pull_back of marginal", "pull_back of plan", "pull_back of transport_cost"})


def test_operators_of_features_unrolled_and_twice(calls):
    x, z = leaf(features(4, 3)), leaf(features(5, 3, seed=1))
    solution = unbalanced_sinkhorn(SqEuclideanCost(x, z), reg=0.5, reg_m=1.0, tol=0, max_iter=3, method="sinkhorn",
                                   grad="unrolled")
    solution.row_mass.square().sum().backward()
    value = unbalanced_sinkhorn(CosineCost(x, z), reg=0.5, reg_m=1.0).value
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    slope.square().sum().backward()
    check_operators(calls, {"cost_matrix", "log_sum_exp", "cost_gradient", "pull_back of log_sum_exp",
                            "pull_back of cost_gradient"})


def test_operator_of_the_solve(calls):
    case = draw(4, 5, batch=(2,))
    torch.func.vmap(dense_loss)(case.cost, case.a, case.b)
    plain = [call for call in calls if call[0].name == "solve"
             and not torch._C._functorch.is_functorch_wrapped_tensor(call[1][0][-1])]
    check_operators(plain, {"solve"})


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_compiled_equals_eager(method, reg_type):
    case = draw(6, 7, batch=(2,))
    leaves = [leaf(tensor) for tensor in (case.cost, case.a, case.b)]

    def loss(*tensors: Tensor) -> Tensor:
        return dense_loss(*tensors, method=method, reg_type=reg_type)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), loss(*leaves))
    torch.testing.assert_close(gradients(compiled, *leaves), gradients(loss, *leaves))


@pytest.mark.parametrize("kind", [CosineCost, SqEuclideanCost, DotCost])
def test_compiled_module_equals_eager(kind):
    torch.manual_seed(0)
    module, arguments = Matching(kind), (features(6, 6), features(5, 6, seed=1), features(5, 2, seed=2))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for here, there in zip(compiled(*arguments), module(*arguments), strict=True):
        torch.testing.assert_close(here, there)
    for output in (0, 1, 2):
        here, there = (torch.autograd.grad(run(*arguments)[output].square().sum(), tuple(module.parameters()))
                       for run in (compiled, module))
        torch.testing.assert_close(here, there)


@pytest.mark.parametrize("masses", ["cross", "softmax", "uniform"])
def test_compiled_matcher_equals_eager(masses):
    torch.manual_seed(1)
    layer = FeatureTransport(masses=masses, mass_projection=None if masses == "uniform" else (6, 4), reg=0.1, **EXACT)
    x, z, v = features(2, 8, 6).float().requires_grad_(), features(2, 9, 6).float(), features(2, 9, 3).float()

    def outputs_of(x: Tensor) -> tuple[Tensor, ...]:
        matching = layer(x, z)
        return matching.warp(v), matching.warp_back(x), matching.kept

    compiled = torch.compile(outputs_of, fullgraph=True, backend="aot_eager")
    here, there = compiled(x), outputs_of(x)
    torch.testing.assert_close(here, there)
    slopes = [torch.autograd.grad(sum(part.square().sum() for part in parts), x) for parts in (here, there)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("debiased", [True, False])
def test_compiled_loss_equals_eager(debiased):
    layer = UnbalancedSinkhornLoss(reg=0.1, reg_m=1.0, debiased=debiased, **EXACT)
    x, z = leaf(features(7, 3)), features(6, 3, seed=1)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, z), layer(x, z))
    torch.testing.assert_close(gradients(lambda x: compiled(x, z), x), gradients(lambda x: layer(x, z), x))


def test_compiled_unrolled_equals_eager():
    cost = leaf(draw(5, 6).cost)

    def loss(cost: Tensor) -> Tensor:
        solution = unbalanced_sinkhorn(cost, reg=0.2, reg_m=1.0, tol=0, max_iter=4, method="sinkhorn", grad="unrolled")
        return solution.plan.square().sum() + solution.value

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, cost), gradients(loss, cost))


def test_compiled_by_inductor(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not what another version of uotlib has left
    cost = draw(5, 6).cost.float().requires_grad_()
    compiled = torch.compile(lambda cost: dense_loss(cost, None, None), fullgraph=True)
    eager = gradients(lambda cost: dense_loss(cost, None, None), cost)
    torch.testing.assert_close(gradients(compiled, cost), eager, rtol=1e-4, atol=1e-4)


def test_func_grad_equals_autograd():
    case = draw(5, 6)
    leaves = [leaf(tensor) for tensor in (case.cost, case.a, case.b)]
    here = torch.func.grad(dense_loss, argnums=(0, 1, 2))(*(tensor.detach() for tensor in leaves))
    torch.testing.assert_close(list(here), gradients(dense_loss, *leaves))


def test_func_hessian_vector_product():
    cost, direction = draw(4, 5).cost, features(4, 5)

    def slope(cost: Tensor) -> Tensor:
        return torch.func.grad(lambda cost: unbalanced_sinkhorn(cost, reg=0.2, reg_m=1.0, **EXACT).value)(cost)

    (here,) = torch.func.vjp(slope, cost)[1](direction)
    step = 1e-5
    there = (slope(cost + step * direction) - slope(cost - step * direction)) / (2 * step)
    torch.testing.assert_close(here, there, atol=1e-7, rtol=1e-5)


def test_vmap_equals_the_batch():
    case = draw(5, 6, batch=(3,))
    here = torch.func.vmap(dense_loss)(case.cost, case.a, case.b)
    there = torch.stack([dense_loss(*item) for item in zip(case.cost, case.a, case.b, strict=True)])
    torch.testing.assert_close(here, there)


def test_vmap_over_one_argument_shares_the_rest():
    """A cost that all share; masses that all share; features of one side."""
    case = draw(5, 6, batch=(3,))
    here = torch.func.vmap(dense_loss, in_dims=(None, 0, None))(case.cost[0], case.a, case.b[0])
    there = torch.stack([dense_loss(case.cost[0], a, case.b[0]) for a in case.a])
    torch.testing.assert_close(here, there)
    x, z = features(3, 5, 4), features(6, 4, seed=1)

    def mass(x: Tensor, z: Tensor) -> Tensor:
        return unbalanced_sinkhorn(CosineCost(x, z), reg=0.1, reg_m=1.0, **EXACT).row_mass

    there = torch.stack([mass(each, z) for each in x])
    torch.testing.assert_close(torch.func.vmap(mass, in_dims=(0, None))(x, z), there)
    turned = torch.func.vmap(mass, in_dims=(1, None), out_dims=1)(x.movedim(0, 1), z)
    torch.testing.assert_close(turned.mT, there)


def test_vmap_inside_a_batch():
    """The flat batch and the new dimension are different things."""
    case = draw(5, 6, batch=(3, 2))
    here = torch.func.vmap(dense_loss)(case.cost, case.a, case.b)
    there = torch.stack([dense_loss(*item) for item in zip(case.cost, case.a, case.b, strict=True)])
    torch.testing.assert_close(here, there)


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_of_samples(shared):
    """vmap of grad: a gradient per problem, also of a cost that the problems share."""
    case = draw(4, 5, batch=(3,))
    dims, cost = (None, case.cost[0]) if shared else (0, case.cost)
    here = torch.func.vmap(torch.func.grad(dense_loss), in_dims=(dims, 0, 0))(cost, case.a, case.b)
    costs = [case.cost[0]] * 3 if shared else list(case.cost)
    there = [gradients(lambda cost, a=a, b=b: dense_loss(cost, a, b), leaf(cost))[0]
             for cost, a, b in zip(costs, case.a, case.b, strict=True)]
    torch.testing.assert_close(here, torch.stack(there))


def test_grad_of_vmap():
    case = draw(4, 5, batch=(3,))
    here = torch.func.grad(lambda cost: torch.func.vmap(dense_loss)(cost, case.a, case.b).sum())(case.cost)
    torch.testing.assert_close(here, gradients(lambda cost: dense_loss(cost, case.a, case.b), leaf(case.cost))[0])


def test_progress_is_refused_where_it_cannot_be():
    from uotlib import SolverOptions

    with pytest.raises(ValueError, match=r"SolverOptions.progress must be False"):
        torch.func.vmap(lambda cost: unbalanced_sinkhorn(
            cost, reg=0.1, reg_m=1.0, options=SolverOptions(progress=True)).value)(draw(4, 5, batch=(2,)).cost)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_solver(dtype):
    """Forward and backward equal those without it, at an eps where half precision would ruin the exponents."""
    x, z, v = (features(*shape, seed=seed).float() for seed, shape in enumerate([(30, 8), (40, 8), (40, 3)]))
    x.requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        warped = unbalanced_sinkhorn(CosineCost(x, z), reg=1e-3, reg_m=1.0, tol=1e-4).barycentric(v)
        return warped, torch.autograd.grad(warped.square().sum(), x)[0]

    plain = run()
    with torch.autocast("cpu", dtype=dtype):
        mixed = run()
    assert mixed[0].dtype == torch.float32
    torch.testing.assert_close(mixed, plain)


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_is_left_as_it_was(enabled):
    cost = draw(4, 5).cost.float().requires_grad_()
    threads = torch.get_num_threads()
    with torch.set_grad_enabled(enabled):
        solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0)
        list(outputs(solution, features(5, 2), features(4, 2)).values())
        assert torch.is_grad_enabled() is enabled
        with pytest.raises(ValueError, match="reg must be positive"):
            unbalanced_sinkhorn(cost, reg=-1.0, reg_m=1.0)
        assert torch.is_grad_enabled() is enabled
    with warnings.catch_warnings(), torch.set_grad_enabled(enabled):
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ConvergenceWarning):
            unbalanced_sinkhorn(cost, reg=1e-3, reg_m=1.0, tol=1e-9, max_iter=2)
        assert torch.is_grad_enabled() is enabled
    assert torch.get_num_threads() == threads


def test_nothing_leaks():
    """Over 1,000 solves with their backward: no object stays, and resident memory grows by less than one cost each ten.

    300 points: a cost of 360 kB, so that one kept a call would be 343 MiB.
    """
    def call(seed: int) -> None:
        x = features(300, 4, seed=seed).float().requires_grad_()
        solution = unbalanced_sinkhorn(CosineCost(x, x.detach()), reg=0.1, reg_m=1.0, tol=1e-2)
        (solution.barycentric(x.detach()).square().sum() + solution.value).backward()

    for seed in range(20):
        call(seed)
    gc.collect()
    objects, memory = len(gc.get_objects()), resident()
    for seed in range(1000):
        call(seed)
    gc.collect()
    assert len(gc.get_objects()) - objects < 500
    assert resident() - memory < 32 * 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    import resource

    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_infinite_penalties_compile():
    cost = draw(4, 4).cost
    mass = torch.full((4,), 0.25, dtype=torch.float64)

    def marginal(cost: Tensor) -> Tensor:
        return unbalanced_sinkhorn(cost, mass, mass, reg=0.2, reg_m=math.inf, **EXACT).row_mass

    torch.testing.assert_close(torch.compile(marginal, fullgraph=True, backend="aot_eager")(cost), mass)
