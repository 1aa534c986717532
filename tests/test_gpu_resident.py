"""The resident kernel on a GPU: its launch, its barrier and its memory, which test_cuda_host.py cannot show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from uotlib import Solution, unbalanced_sinkhorn
from uotlib.backends import BACKENDS

DEVICE = torch.device("cuda")
REASON = BACKENDS["cuda"].why_not(DEVICE, torch.float32) if torch.cuda.is_available() else "torch sees no GPU here"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"needs an NVIDIA GPU: {REASON}")]

SIZES = [(1, 1), (41, 130), (300, 777), (1000, 2049), (133, 8192), (4096, 4096)]


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


def test_a_queue_of_problems_is_each_of_them_every_time():
    cost, a, b = problem(257, 300, batch=40)
    first, again = (solve((cost, a, b), reg=1e-2, reg_m=0.5, tol=1e-4) for _ in range(2))
    assert torch.equal(first.f, again.f)
    assert torch.equal(first.g, again.g)
    for item in (0, 17, 39):
        alone = solve((cost[item], a[item], b[item]), reg=1e-2, reg_m=0.5, tol=1e-4)
        assert torch.equal(first.f[item], alone.f)
        assert int(first.n_iter[item]) == int(alone.n_iter)


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
