"""The library on a GPU: answers and gradients, PyTorch's operators and compiler, CUDA graphs, streams, addresses.

The kernels one by one are in test_triton.py, which runs on a GPU too, and without one under Triton's interpreter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from capturing import captured
from problems import draw
from torch import Tensor

from uotlib import ConvergenceWarning, CosineCost, DotCost, Solution, SqEuclideanCost, unbalanced_sinkhorn
from uotlib.backends import BACKENDS
from uotlib.primitive import Primitive

REASON = BACKENDS["triton"].why_not(torch.device("cuda"), torch.float32) if torch.cuda.is_available() else (
    "torch sees no GPU here")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"needs a GPU and Triton: {REASON}")]

DEVICE = torch.device("cuda")
COSTS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "dense": lambda x, z: 1 - torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(z, dim=-1).mT,
    "cosine, built": lambda x, z: CosineCost(x, z, materialize=True),
    "cosine": lambda x, z: CosineCost(x, z, materialize=False),
    "squared Euclidean": lambda x, z: SqEuclideanCost(x, z, materialize=False),
    "inner product": lambda x, z: DotCost(x, z, materialize=False),
}


def features(batch: int, n: int, m: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x, z of length about one, masses a, b of unequal totals."""
    rng = torch.Generator().manual_seed(n * m + d)

    def normal(points: int) -> Tensor:
        return (torch.randn(batch, points, d, generator=rng, dtype=torch.float64) / d**0.5).to(DEVICE, dtype)

    a, b = (0.2 + torch.rand(batch, points, generator=rng, dtype=torch.float64) for points in (n, m))
    return normal(n), normal(m), (a / n).to(DEVICE, dtype), (1.4 * b / m).to(DEVICE, dtype)


def dense(n: int, m: int, batch: int = 1, seed: int = 0) -> Tensor:
    rng = torch.Generator(DEVICE).manual_seed(seed)
    return torch.rand((batch, n, m), generator=rng, device=DEVICE)


def textbook(cost: Tensor, a: Tensor, b: Tensor, **settings) -> Solution:
    """The float64 answer after as many iterations, on the same device, by plain torch."""
    return unbalanced_sinkhorn(cost.double(), a.double(), b.double(), backend="reference", **settings)


def off(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("reg", [1e-1, 1e-2, 1e-4])
@pytest.mark.parametrize("kind", ["dense", "cosine, built", "cosine"])
def test_iterates_are_the_textbooks(kind, reg, reg_type):
    """Potentials after five iterations, in units of eps; streamed costs are known to 0.01 eps."""
    x, z, a, b = features(3, 65, 130, 16)
    how = {"reg": reg, "reg_m": (0.5, 2.0), "reg_type": reg_type, "method": "sinkhorn", "tol": 0, "max_iter": 5}
    found = unbalanced_sinkhorn(COSTS[kind](x, z), a, b, backend="triton", **how)
    exact = COSTS["dense"](x, z) if kind == "dense" else COSTS["dense"](x.double(), z.double())
    wanted = textbook(exact, a, b, **how)
    bound = 5 * (0.02 + (1e-6 if kind == "dense" else 2.0**-22) / reg)
    for name in ("f", "g"):
        assert float((getattr(found, name).double() - getattr(wanted, name)).abs().max()) <= bound * reg


@pytest.mark.parametrize("kind", list(COSTS))
@pytest.mark.parametrize("reg_m", [0.5, (0.3, 2.0), (math.inf, 0.7)])
def test_answers_and_gradients_are_the_references(kind, reg_m):
    """A loss of several outputs: values to 1e-4, gradients to 1e-3 of the float64 ones."""
    def run(dtype: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [leaf.requires_grad_() for leaf in features(2, 33, 50, 8, dtype)]
        x, z, a, b = leaves
        solution = unbalanced_sinkhorn(COSTS[kind](x, z), a, b, reg=0.05, reg_m=reg_m, tol=1e-6, max_iter=500,
                                       backend=backend)
        weight = torch.linspace(0, 1, 50, device=DEVICE, dtype=dtype)
        moved = solution.barycentric(z.detach())
        loss = moved.square().sum() + (solution.col_mass * weight).sum() + solution.value.sum()
        return [loss.detach(), moved.detach(), *torch.autograd.grad(loss, leaves)]

    found, wanted = run(torch.float32, "triton"), run(torch.float64, "reference")
    for part, exact, bound in zip(found, wanted, [1e-4] * 2 + [1e-3] * 4, strict=True):
        assert off(part, exact) <= bound


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
def test_same_bits_every_time(method):
    cost = dense(300, 500, batch=2)
    first, second = (unbalanced_sinkhorn(cost, reg=1e-3, reg_m=0.3, method=method, tol=0, max_iter=20)
                     for _ in range(2))
    assert torch.equal(first.f, second.f)
    assert torch.equal(first.g, second.g)
    assert torch.equal(first.plan, second.plan)


def test_a_nan_shows_in_its_item_alone():
    cost = dense(40, 50, batch=3)
    cost[1, 2, 3] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0)
    assert solution.converged.tolist() == [True, False, True]
    assert torch.isnan(solution.violation).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_solver(dtype):
    x, z, a, b = features(1, 60, 70, 8)

    def run() -> Tensor:
        return unbalanced_sinkhorn(CosineCost(x, z), a, b, reg=1e-3, reg_m=1.0, tol=0, max_iter=40).barycentric(z)

    plain = run()
    with torch.autocast("cuda", dtype=dtype):
        mixed = run()
    torch.testing.assert_close(mixed, plain)


def test_operators_keep_their_contract(monkeypatch):
    """torch.library.opcheck of every operator of a dense cost and of features, with those of their gradients."""
    seen: dict[tuple[str, str], tuple[Primitive, tuple]] = {}
    call = Primitive.__call__

    def remember(primitive: Primitive, *arguments):
        seen[primitive.name, arguments[5] if primitive.name == "pull_back" else ""] = primitive, arguments
        return call(primitive, *arguments)

    def leaves(argument, name: str):
        if isinstance(argument, list | tuple):
            return [leaves(part, name) for part in argument]
        if not isinstance(argument, Tensor):
            return argument
        return argument.detach().clone().requires_grad_(argument.requires_grad and name != "pull_back")

    monkeypatch.setattr(Primitive, "__call__", remember)
    x, z, a, b = (leaf.double().requires_grad_() for leaf in features(2, 4, 5, 3))
    for cost in (COSTS["dense"](x.detach(), z.detach()).requires_grad_(), CosineCost(x, z, materialize=True)):
        solution = unbalanced_sinkhorn(cost, a, b, reg=0.1, reg_m=1.0, tol=0, max_iter=20)
        (solution.value.sum() + solution.barycentric(z.detach()).square().sum() + solution.plan.sum()).backward()
    assert {"cost_matrix", "value", "product", "plan"} <= {name for name, _ in seen}
    for primitive, arguments in list(seen.values()):
        torch.library.opcheck(primitive.operator, [leaves(argument, primitive.name) for argument in arguments])


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
def test_compiled_as_one_graph(method, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not what another version of uotlib has left
    x, z, a, b = features(2, 20, 30, 8)

    def loss(x: Tensor) -> Tensor:
        solution = unbalanced_sinkhorn(CosineCost(x, z), a, b, reg=0.1, reg_m=1.0, method=method, tol=0, max_iter=30)
        return solution.barycentric(z).square().sum() + solution.value.sum()

    leaf = x.requires_grad_()
    found, wanted = torch.compile(loss, fullgraph=True)(leaf), loss(leaf)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, leaf), torch.autograd.grad(wanted, leaf), rtol=1e-3,
                               atol=1e-4)


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
@pytest.mark.parametrize("kind", ["dense", "cosine"])
@pytest.mark.parametrize("shape", [(1, 300, 520), (5, 60, 70)])
def test_a_captured_solve_is_the_eager_one(kind, method, shape):
    """Replayed on other numbers than those that were there at the capture."""
    x, z, a, b = features(*shape, 16)

    def solve(x: Tensor) -> tuple[Tensor, ...]:
        solution = unbalanced_sinkhorn(COSTS[kind](x, z), a, b, reg=0.02, reg_m=0.5, method=method, tol=0, max_iter=12,
                                       backend="triton", grad="none")
        return solution.f, solution.g, solution.violation, solution.barycentric(z)

    held = x.clone()
    graph, replayed = captured(lambda: solve(held))
    other = x.flip(1) + 0.1
    held.copy_(other)
    graph.replay()
    eager = solve(other)
    if kind == "dense":  # products of libraries may choose other kernels inside a graph
        assert torch.equal(replayed[0], eager[0])
        assert torch.equal(replayed[1], eager[1])
    for found, wanted in zip(replayed, eager, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
def test_a_captured_solve_decides_anew_what_to_leave_out(method):
    """The device looks whether eps is small beside the cost: at the capture it is, and then for one of two replays."""
    order = torch.linspace(0, 1, 4096, device=DEVICE)
    near = (order[:, None] - order).abs() + 0.01 * dense(4096, 4096)[0]  # most of it is far beyond eps
    masses = torch.full((2, 4096), 1 / 4096, device=DEVICE)

    def solve(cost: Tensor) -> tuple[Tensor, ...]:
        solution = unbalanced_sinkhorn(cost, *masses, reg=1e-3, reg_m=0.5, method=method, tol=0, max_iter=15,
                                       backend="triton", grad="none")
        return solution.f, solution.g, solution.violation

    held = near.clone()
    graph, replayed = captured(lambda: solve(held))
    for other in (near.flip(0), 1e-2 * near):
        held.copy_(other)
        graph.replay()
        for found, wanted in zip(replayed, solve(other), strict=True):
            assert torch.equal(found, wanted)
        exact = textbook(other, *masses, reg=1e-3, reg_m=0.5, method=method, tol=0, max_iter=15)
        assert float((replayed[0].double() - exact.f).abs().max()) <= 5e-6


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
@pytest.mark.parametrize("kind", ["dense", "cosine"])
def test_without_a_tolerance_nothing_waits_for_the_device(kind, method):
    x, z, a, b = features(3, 60, 70, 16)
    cost = COSTS[kind](x, z)

    def solve() -> tuple[Tensor, ...]:
        solution = unbalanced_sinkhorn(cost, a, b, reg=0.02, reg_m=0.5, method=method, tol=0, max_iter=6,
                                       backend="triton", grad="none")
        return solution.f, solution.value, solution.barycentric(z)

    solve()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve()
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
def test_runs_on_the_current_stream(method):
    """The cost is there only after the stream has been busy for a while: launches elsewhere would read what is not."""
    cost = dense(400, 600, batch=2)

    def solve(cost: Tensor) -> Tensor:
        return unbalanced_sinkhorn(cost, reg=0.05, reg_m=0.5, method=method, tol=0, max_iter=10).f

    wanted = solve(cost)
    late = torch.full_like(cost, 7.0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        late.copy_(cost)
        found = solve(late)
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"needs two GPUs, torch sees {torch.cuda.device_count()}")
def test_runs_on_the_device_of_its_input():
    cost = dense(100, 130, batch=2)
    wanted = unbalanced_sinkhorn(cost, reg=0.05, reg_m=0.5, tol=0, max_iter=10)
    found = unbalanced_sinkhorn(cost.to("cuda:1"), reg=0.05, reg_m=0.5, tol=0, max_iter=10)
    assert torch.cuda.current_device() == 0
    assert found.f.device == torch.device("cuda:1")
    torch.testing.assert_close(found.f.cpu(), wanted.f.cpu(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.plan.cpu(), wanted.plan.cpu(), rtol=1e-4, atol=1e-9)


def need_memory(count: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < count:
        pytest.skip(f"needs {count / 2**30:.0f} GiB of free device memory, there are {free / 2**30:.0f}")


@pytest.mark.parametrize("shape", [(1, 46_500, 46_500), (1, 1_100_000, 2_048), (530, 2_048, 2_048)],
                         ids=["wide rows", "many rows", "many items"])
def test_addresses_past_two_to_the_31(shape):
    """The last rows, and the last columns, of more entries than an int32 counts."""
    batch, n, m = shape
    need_memory(30 << 30)
    assert math.prod(shape) > 2**31
    cost = torch.rand(shape, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))
    backend, reference = BACKENDS["triton"], BACKENDS["reference"]
    log_v = torch.rand(batch, m, device=DEVICE, dtype=torch.float64)
    reg = torch.full((batch,), 0.1, device=DEVICE, dtype=torch.float64)
    nothing, one = torch.zeros_like(reg), torch.ones_like(reg)
    mass = torch.zeros_like(log_v)
    lse = backend.sweep(cost, log_v, torch.zeros(batch, n, device=DEVICE, dtype=torch.float64), one, reg, nothing, mass)
    last, rows, cols = slice(batch - 1, batch), slice(n - 8, n), slice(m - 8, m)
    assert float((lse[last, rows] - reference.row_lse(cost[last, rows], log_v[last], reg[last])).abs().max()) < 4e-6
    column = log_v[last, cols] + reference.col_lse(cost[last, :, cols], -lse[last], reg[last])
    assert float((mass[last, cols].log() - column).abs().max()) < 2e-5
    exact = backend.col_lse(cost, -lse, reg)[last, cols]
    assert float((exact - column + log_v[last, cols]).abs().max()) < 2e-5
    panel = backend.panel(cost, -lse, log_v, reg)
    part = reference.panel(cost[last, rows], -lse[last, rows], log_v[last], reg[last])
    assert off(panel[last, rows], part) < 4e-6


def test_a_streamed_cost_is_never_stored():
    """Forward and backward of 24576 x 24576 streamed points take far less than the 2.25 GiB of their cost."""
    n = 24_576
    x, z, a, b = features(1, n, n, 64)
    x.requires_grad_()

    def run() -> None:
        solution = unbalanced_sinkhorn(CosineCost(x, z, materialize=False), a, b, reg=0.1, reg_m=1.0, tol=1e-2)
        solution.barycentric(z).square().sum().backward()

    run()  # compiles
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    assert torch.cuda.max_memory_allocated() - before < 0.25 * 4 * n * n


def test_masses_and_forbidden_pairs():
    """A batch with points of no mass and pairs that are forbidden equals the reference's on the CPU."""
    case = draw(21, 34, batch=(4,), reg=0.05, reg_m=(0.4, 2.0))
    a, b, cost = case.a.clone(), case.b.clone(), case.cost.clone()
    a[:, 3] = b[:, 5] = 0
    cost[:, 7, :20] = math.inf
    how = {"reg": case.reg, "reg_m": case.reg_m, "tol": 1e-6}
    found = unbalanced_sinkhorn(*(part.float().to(DEVICE) for part in (cost, a, b)), backend="triton", **how)
    wanted = unbalanced_sinkhorn(cost, a, b, backend="reference", **how)
    assert bool(found.converged.all())
    assert off(found.plan.cpu(), wanted.plan) < 1e-4
    assert float(found.plan[:, 3].abs().max()) == 0
    assert float(found.plan[:, 7, :20].abs().max()) == 0
