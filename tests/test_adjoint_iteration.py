"""The adjoint's iteration: compiled, in torch, and as dense linear algebra in float64."""

from __future__ import annotations

import os

import pytest
import torch
from instruction_sets import passes_at_lower_levels
from interrupting import interrupted
from problems import INF, draw, unit_vectors
from torch import Tensor

import uotlib
from uotlib._extension import extension, missing
from uotlib.backends.base import Backend
from uotlib.backends.native import NativeBackend
from uotlib.gradients import adjoint
from uotlib.gradients.adjoint import Scaled

pytestmark = pytest.mark.skipif(extension is None, reason=str(missing))

NATIVE = NativeBackend()
DTYPES = [torch.float32, torch.float64]
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def captured(monkeypatch, solution: uotlib.Solution, loss: Tensor) -> tuple[Scaled, Tensor, Tensor, Tensor]:
    """The system that a backward solves, its right-hand side, and what the compiled iteration makes of it."""
    seen: list[tuple[Scaled, Tensor, Tensor, Tensor]] = []
    solve = adjoint._conjugate_gradients

    def watch(system: Scaled, rhs: Tensor, start: Tensor, tol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        answer, residual, through = solve(system, rhs, start, tol, max_iter)
        seen.append((system, rhs, answer, residual))
        return answer, residual, through

    with monkeypatch.context() as patch:
        patch.setattr(adjoint, "_conjugate_gradients", watch)
        loss.backward(retain_graph=True)
    ((system, rhs, answer, residual),) = seen
    return system, rhs, answer, residual


def system_of(monkeypatch, *, dtype: torch.dtype = torch.float64, tol: float = 1e-10, forbid: bool = False,
              order: str = "random", **settings) -> tuple[Scaled, Tensor, Tensor, Tensor]:
    case = draw(**({"n": 45, "m": 71, "seed": 3} | settings))
    cost = case.cost.to(dtype)
    if order == "band":
        place, other = torch.linspace(0, 1, cost.shape[-2])[:, None], torch.linspace(0, 1, cost.shape[-1])
        cost = (4 * (place - other).square()).to(dtype).expand_as(cost).clone()
    if forbid:
        cost[..., ::3, 1::4] = INF
        case.a[..., 4] = case.b[..., :2] = 0.0
    case = case.but(cost=cost.requires_grad_(), a=case.a.to(dtype), b=case.b.to(dtype))
    solution = case.solve(backend="native", tol=1e-6 if dtype == torch.float64 else 1e-4,
                          options=uotlib.SolverOptions(adjoint_tol=tol))
    return captured(monkeypatch, solution, (solution.f.sin() * solution.f.isfinite()).sum()
                    if forbid else solution.f.sin().sum() + solution.g.cos().sum())


def dense_schur(system: Scaled) -> Tensor:
    problem, kernel = system.solved.problem, system.solved.kernel
    cost = kernel.matrix.double() if kernel.cost_items is None else kernel.matrix.double()[kernel.cost_items]
    matrix = torch.exp(system.log_x[:, :, None] + system.log_y[:, None] - cost / problem.reg[:, None, None])
    return torch.diag_embed(system.col_diagonal) - matrix.mT @ (matrix / system.row_diagonal[:, :, None])


SYSTEMS = [{}, {"batch": (5,)}, {"batch": (2,), "forbid": True}, {"reg": 1e-2, "kind": "clustered"},
           {"reg_m": (INF, 0.7)}, {"reg_m": (0.3, INF), "reg_type": "entropy"}]


def nothing(rhs: Tensor) -> Tensor:
    """To start from, for each item."""
    return torch.zeros_like(rhs[:, 0])


@pytest.mark.parametrize("settings", SYSTEMS)
def test_iteration_solves_the_system(settings, monkeypatch):
    """Against dense linear algebra in float64; the residual is the one that it says."""
    system, rhs, answer, residual = system_of(monkeypatch, **settings)
    schur = dense_schur(system)
    torch.testing.assert_close(answer, torch.linalg.solve(schur, rhs), rtol=0, atol=1e-6 * float(answer.abs().max()))
    left = rhs - (schur @ answer[:, :, None])[:, :, 0]
    norm = lambda vector: (vector.square() / system.preconditioner).sum(1).sqrt()  # noqa: E731
    assert (residual <= 1e-10).all()
    assert (norm(left) <= 2e-10 * norm(rhs)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [*SYSTEMS, {"reg_m": (INF, INF), "batch": (3,)}])
def test_iteration_is_that_of_the_loop_in_torch(settings, dtype, monkeypatch):
    """Same algorithm, same stop: the two are apart by the rounding of the products at most."""
    tol = 1e-10 if dtype == torch.float64 else 1e-4
    system, rhs, answer, residual = system_of(monkeypatch, dtype=dtype, tol=tol, **settings)
    expected, left = adjoint._iterate(system, rhs, nothing(rhs), tol, 1000, 1)
    assert (left <= tol).all()
    assert (residual <= tol).all()
    atol = (1e-7 if dtype == torch.float64 else 1e-2) * float(expected.abs().max())
    torch.testing.assert_close(answer, expected, rtol=0, atol=atol)


def test_what_both_marginals_leave_open_is_chosen(monkeypatch):
    """Both exact: the right-hand side's part along the null vector is gone, and of the answer nothing is lost."""
    system, rhs, answer, _ = system_of(monkeypatch, reg_m=(INF, INF))
    schur, null = dense_schur(system)[0].detach(), system.root_c[0]
    assert float((schur @ null).abs().max()) < 1e-5 * float(null.abs().max())  # as exact as the solve
    weight = system.col_diagonal[0] * null
    projected = rhs[0] - (null @ rhs[0]) / (null @ weight) * weight
    assert float((schur @ answer[0] - projected).abs().max()) < 1e-5 * float(rhs.abs().max())


@pytest.mark.parametrize("native", [True, False])
def test_start_takes_a_known_part_of_the_error_away(native, monkeypatch):
    """A right-hand side along what the root gives is solved before the first step, with the product kept."""
    system, rhs, *_ = system_of(monkeypatch)
    along = (dense_schur(system) @ system.root_c[:, :, None])[:, :, 0].detach()
    torch.testing.assert_close(along, system.along[:, None] * system.col_diagonal * system.root_c, rtol=1e-6, atol=0)
    if not native:
        monkeypatch.setattr(NativeBackend, "conjugate_gradients", Backend.conjugate_gradients)
    answer, residual, through = adjoint._conjugate_gradients(system, 2.5 * along, nothing(rhs) + 2.5, 1e-5, 0)
    torch.testing.assert_close(answer, 2.5 * system.root_c, rtol=1e-12, atol=0)
    torch.testing.assert_close(through, 2.5 * system.image, rtol=1e-6, atol=0)
    assert float(residual.max()) <= 1e-5


@pytest.mark.parametrize("reg", [1e-3, 1e-2])
def test_steps_leave_out_what_the_start_took_away(reg, monkeypatch):
    """Conjugate to the root, a tenth fewer of them lead to the same answer: the slowest direction is not theirs."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.rand(2, 300, 2, generator=generator, dtype=torch.float64)
    solution = uotlib.unbalanced_sinkhorn(torch.cdist(x, y).square().requires_grad_(), reg=reg, reg_m=1.0, tol=1e-8,
                                          max_iter=20000, backend="native")
    v = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    steps, starts = [], []
    product, start = adjoint._schur_product, Scaled.start
    monkeypatch.setattr(adjoint, "_schur_product", lambda *given: steps.append(1) or product(*given))
    monkeypatch.setattr(Scaled, "start", lambda *given: starts.append(start(*given)) or starts[0])
    system, rhs, *_ = captured(monkeypatch, solution, solution.apply(v).square().sum())
    answers, counts = [], []
    for begin in (starts[0], nothing(rhs)):
        steps.clear()
        answers.append(adjoint._iterate(system, rhs, begin, 1e-6, 1000, 1)[0])
        counts.append(len(steps))
    assert counts[0] <= 0.9 * counts[1]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-3 * float(answers[1].abs().max()))


@pytest.mark.parametrize(("reg", "before"), [(1.0, True), (1e-3, False)])
def test_diagonal_that_preconditions(reg, before, monkeypatch):
    """That from before the rows are eliminated where they hardly move it, else that of the Schur complement."""
    system, *_ = system_of(monkeypatch, reg=reg)
    expected = system.col_diagonal if before else dense_schur(system).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(system.preconditioner, expected.detach(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("reg", "reg_m"), [(1e-2, 1e5), (1e-1, 1e6)])
def test_start_does_not_magnify_rounding(reg, reg_m):
    """A loss of averages has no part along the root: what rounding leaves of it would be divided by eps / tau."""
    rng = torch.Generator().manual_seed(0)
    cost, w = (torch.rand(60, 60, generator=rng) for _ in range(2))
    gradients = []
    for dtype, tol in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        a = torch.full((60,), 1 / 60, dtype=dtype, requires_grad=True)
        solution = uotlib.unbalanced_sinkhorn(cost.to(dtype), a, reg=reg, reg_m=reg_m, tol=tol, max_iter=5000)
        averages = solution.plan / solution.plan.sum(1, keepdim=True)
        gradients.append(torch.autograd.grad((averages * w).sum(), a)[0].double())
    single, double = gradients
    assert float((single - double).abs().max()) < 3e-3 * float(double.abs().max())


def test_steps_are_counted(monkeypatch):
    system, rhs, answer, _ = system_of(monkeypatch)
    start = 0.3 * float(answer.abs().max()) + nothing(rhs)
    for steps in (0, 1, 3):
        ours, left, _ = NATIVE.conjugate_gradients(system, system.solved.kernel.matrix, rhs, start, 1e-12, steps)
        assert (left > 1e-12).all()
        with monkeypatch.context() as patch:
            patch.setattr(NativeBackend, "conjugate_gradients", Backend.conjugate_gradients)
            theirs, their_left, _ = adjoint._conjugate_gradients(system, rhs, start, 1e-12, steps)
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * float(answer.abs().max()))
        torch.testing.assert_close(left, their_left, rtol=1e-6, atol=0)


@pytest.mark.parametrize("settings", [{}, {"batch": (3,)}, {"reg_m": (INF, INF)}])
def test_product_with_the_answer_is_kept(settings, monkeypatch):
    """The sum of the steps' products is the product of their sum."""
    system, rhs, *_ = system_of(monkeypatch, **settings)
    answer, _, through = NATIVE.conjugate_gradients(system, system.solved.kernel.matrix, rhs, nothing(rhs), 1e-10, 1000)
    torch.testing.assert_close(through, adjoint.system_product(system, answer, side=0), rtol=1e-9,
                               atol=1e-11 * float(through.abs().max()))


def test_nothing_asked_is_answered_by_nothing(monkeypatch):
    system, rhs, *_ = system_of(monkeypatch, batch=(2,))
    rhs = torch.stack([rhs[0], torch.zeros_like(rhs[1])])
    answer, residual, _ = NATIVE.conjugate_gradients(system, system.solved.kernel.matrix, rhs, nothing(rhs), 1e-8, 1000)
    assert float(answer[0].abs().max()) > 0
    assert not answer[1].any()
    assert residual[1] == 0


@pytest.mark.parametrize("settings", [{"n": 450, "m": 600}, {"batch": (7,)}])
def test_iteration_does_not_depend_on_threads(settings, threads, monkeypatch):
    system, rhs, *_ = system_of(monkeypatch, dtype=torch.float32, tol=1e-4, **settings)
    answers = []
    for count in (1, 2, 3):
        threads(count)
        answers.append(NATIVE.conjugate_gradients(system, system.solved.kernel.matrix, rhs, nothing(rhs), 1e-5, 100))
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_skipped_blocks_change_nothing_that_rounding_does_not(dtype, monkeypatch):
    tol = 1e-5 if dtype == torch.float32 else 1e-11
    system, rhs, answer, residual = system_of(monkeypatch, dtype=dtype, tol=tol, order="band", n=300, m=400, reg=2e-3)
    assert 0.3 < float(system.empty.double().mean()) < 1
    assert (residual <= tol).all()
    system.empty = None
    whole, _, _ = NATIVE.conjugate_gradients(system, system.solved.kernel.matrix, rhs, nothing(rhs), tol, 1000)
    # The smallest eigenvalue is about eps / tau.
    atol = 1e3 * max(tol, UNIT[dtype]) * float(whole.abs().max())
    torch.testing.assert_close(answer, whole, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", [uotlib.CosineCost, uotlib.SqEuclideanCost])
def test_streamed_cost_has_the_gradients_of_one_in_memory(kind, threads):
    """Block by block through the same passes, and torch's threads are put back."""
    threads(2)
    rng = torch.Generator().manual_seed(0)
    x, z = (unit_vectors((2, points, 6), rng).requires_grad_() for points in (40, 55))
    gradients = []
    for materialize in (True, False):
        solution = uotlib.unbalanced_sinkhorn(kind(x, z, materialize=materialize), reg=0.05, reg_m=1.0, tol=1e-8,
                                              backend="native", options=uotlib.SolverOptions(
                                                  adjoint_tol=1e-11, block_bytes=4096 * 8))
        gradients.append(torch.autograd.grad(solution.f.sin().sum() + solution.barycentric(z).square().sum(), (x, z)))
    for streamed, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(streamed, whole, rtol=1e-6, atol=1e-7 * float(whole.abs().max()))
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_can_be_interrupted():
    """An adjoint solve that would take hours ends soon after ctrl-C."""
    code = """
        import torch, uotlib
        cost = torch.rand(300, 300, requires_grad=True)
        options = uotlib.SolverOptions(adjoint_tol=0.0, adjoint_max_iter=10**9)
        solution = uotlib.unbalanced_sinkhorn(cost, reg=0.01, reg_m=1.0, backend="native", options=options)
        from uotlib.gradients import adjoint
        iterate = adjoint._conjugate_gradients
        def announced(*args):
            print("ready", flush=True)
            return iterate(*args)
        adjoint._conjugate_gradients = announced
        while True:
            solution.f.sin().sum().backward(retain_graph=True)
    """
    assert "KeyboardInterrupt" in interrupted(code)


def test_lower_instruction_sets():
    passes_at_lower_levels(__file__, "iteration and solves")
