"""The resident kernel on a GPU: its launch, its barrier and its memory, which the processor cannot show."""

from __future__ import annotations

import pytest
import torch
from capturing import captured
from torch import Tensor

from uotlib import Solution, unbalanced_sinkhorn
from uotlib.backends import BACKENDS

DEVICE = torch.device("cuda")
REASON = BACKENDS["cuda"].why_not(DEVICE, torch.float32) if torch.cuda.is_available() else "torch sees no GPU here"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"needs an NVIDIA GPU: {REASON}")]

SIZES = [(1, 1), (41, 130), (300, 777), (1000, 2049), (133, 8192), (8000, 2048), (4096, 4096),
         (5000, 8191), (300, 20_000)]


def problem(n: int, m: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Cost and masses of unequal totals."""
    rng = torch.Generator().manual_seed(n + m)
    cost, a, b = (torch.rand(batch, *shape, generator=rng) for shape in ((n, m), (n,), (m,)))
    return cost.to(DEVICE), ((0.2 + a) / n).to(DEVICE), ((0.3 + b) / m).to(DEVICE)


def solve(case: tuple[Tensor, Tensor, Tensor], backend: str = "cuda", **settings) -> Solution:
    dtype = torch.float64 if backend == "reference" else torch.float32
    return unbalanced_sinkhorn(*(part.to(dtype) for part in case), backend=backend, **settings)


@pytest.mark.parametrize("reg", [1e-1, 1e-3])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_iterates_are_the_textbooks(n, m, reg):
    how = {"reg": reg, "reg_m": (0.5, 2.0), "method": "sinkhorn", "tol": 0, "max_iter": 5}
    found, wanted = (solve(problem(n, m), backend, **how) for backend in ("cuda", "reference"))
    for name in ("f", "g"):
        error = float((getattr(found, name).double() - getattr(wanted, name)).abs().max())
        assert error <= 5 * (0.02 * reg + 1e-6)


@pytest.mark.parametrize("reg", [1e-1, 1e-2])
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_solves_reach_their_violation(n, m, reg):
    found = solve(problem(n, m), reg=reg, reg_m=1.0, tol=1e-4)
    wanted = solve(problem(n, m), "reference", reg=reg, reg_m=1.0, tol=1e-6)
    assert bool(found.converged.all())
    torch.testing.assert_close(found.value.double(), wanted.value, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.row_mass.double().sum(-1), wanted.row_mass.sum(-1), rtol=1e-3, atol=0)


@pytest.mark.parametrize(("batch", "n", "m"), [(400, 60, 50), (300, 200, 200), (40, 257, 300), (64, 512, 512),
                                                (140, 64, 1100)])
def test_a_queue_of_problems_is_each_of_them_every_time(batch, n, m):
    """One block a problem, or a group: whichever takes it, and whatever it solved before, the bits are the same."""
    cost, a, b = problem(n, m, batch)
    how = {"reg": 1e-2, "reg_m": 0.5, "tol": 1e-4}
    first, again = (solve((cost, a, b), **how) for _ in range(2))
    turned = solve((cost.flip(0), a.flip(0), b.flip(0)), **how)
    for name in ("f", "g", "n_iter"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert torch.equal(getattr(first, name), getattr(turned, name).flip(0))
    for item in (0, 17, batch - 1):  # alone, a problem has more blocks, whose sums are rounded otherwise
        alone = solve((cost[item], a[item], b[item]), **how)
        torch.testing.assert_close(first.f[item], alone.f, rtol=0, atol=1e-4)
        assert bool(alone.converged)
    assert bool(first.converged.all())


@pytest.mark.parametrize(("n", "m", "offset"), [(20_000, 4096, 0), (20_000, 2047, 0), (30_000, 1000, 1),
                                                (12_000, 8192, 0)])
def test_costs_beyond_the_cache_come_through_the_ring(n, m, offset):
    """Aligned or not; the same bits every time."""
    cost, a, b = problem(n, m + offset)
    case = cost[..., offset:], a, b[..., offset:]
    how = {"reg": 5e-2, "reg_m": 1.0, "method": "sinkhorn", "tol": 0, "max_iter": 4}
    found, again, wanted = solve(case, **how), solve(case, **how), solve(case, "reference", **how)
    for name in ("f", "g"):
        assert torch.equal(getattr(found, name), getattr(again, name))
        torch.testing.assert_close(getattr(found, name).double(), getattr(wanted, name), rtol=0, atol=1e-5)


def test_gradients_are_those_of_triton():
    gradients = []
    for backend in ("cuda", "triton"):
        cost, a, b = problem(200, 300)
        solution = solve((cost.requires_grad_(), a, b), backend, reg=5e-2, reg_m=1.0, tol=1e-6)
        gradients.append(torch.autograd.grad(solution.barycentric(torch.eye(300, 3, device=DEVICE)).square().sum(),
                                             cost)[0])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[1].abs().max()))


def test_solves_on_a_stream_of_their_own():
    case = problem(500, 600)
    expected = solve(case, reg=1e-2, reg_m=1.0, tol=0, max_iter=10)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = solve(case, reg=1e-2, reg_m=1.0, tol=0, max_iter=10)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found.g, expected.g)


@pytest.mark.parametrize("method", ["sinkhorn", "auto"])
@pytest.mark.parametrize(("batch", "n", "m"), [(1, 500, 600), (200, 60, 50)])
def test_a_graph_holds_a_whole_solve(batch, n, m, method):
    """With tol=0 nothing waits for the device: the launch is captured, and replayed on another cost."""
    cost, a, b = problem(n, m, batch)
    how = {"reg": 2e-2, "reg_m": 0.5, "method": method, "tol": 0, "max_iter": 12, "grad": "none"}
    held = cost.clone()

    def parts(cost: Tensor) -> tuple[Tensor, ...]:
        solution = solve((cost, a, b), **how)
        return solution.f, solution.g, solution.violation

    graph, replayed = captured(lambda: parts(held))
    other = cost.flip(1) + 0.1
    held.copy_(other)
    for _ in range(2):  # the second replay clears the barriers of the first
        graph.replay()
        for part, wanted in zip(replayed, parts(other), strict=True):
            assert torch.equal(part, wanted)


@pytest.mark.parametrize(("shape", "others"), [((64, 512, 512), "ring"), ((1, 4096, 4096), "ahead"),
                                               ((1, 16_384, 16_384), "panels")])
def test_the_device_says_how_it_divides_a_batch(shape, others):
    """Rows in shared memory unless they go by panels; bulk copies where there is a ring and a device has them."""
    found = BACKENDS["cuda"].division(shape, DEVICE)
    assert found["groups"] * found["blocks"] <= torch.cuda.get_device_properties(DEVICE).multi_processor_count
    assert found["others"] == others
    assert (found["resident_rows"] > 0) == (others != "panels")
    assert found["bulk"] == (found["stages"] > 0 and torch.cuda.get_device_capability(DEVICE) >= (9, 0))
