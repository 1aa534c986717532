"""The compiled loop against the one in Python, which the reference backend runs on the same problems."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch
from interrupting import interrupted
from problems import Case, draw, generator, masses, with_outliers
from torch import Tensor

import uotlib
from uotlib import ConvergenceWarning, SolverOptions
from uotlib._extension import extension, missing
from uotlib.backends import BACKENDS
from uotlib.backends.native import NativeBackend
from uotlib.costs import DenseCost
from uotlib.operators import GibbsKernel

pytestmark = pytest.mark.skipif(extension is None, reason=str(missing))

INF = math.inf
PENALTIES = [(0.5, 0.5), (0.3, 2.0), (INF, 0.5), (0.5, INF), (INF, INF)]
STATE = ("f", "g", "row_mass", "col_mass", "violation", "gap", "n_iter", "converged")


def both(case: Case, **settings) -> tuple[uotlib.Solution, uotlib.Solution]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return case.solve(backend="native", **settings), case.solve(backend="reference", **settings)


def assert_same_way(native: uotlib.Solution, python: uotlib.Solution, atol: float = 1e-9) -> None:
    assert torch.equal(native.n_iter, python.n_iter)
    assert torch.equal(native.converged, python.converged)
    for name in ("f", "g", "row_mass", "col_mass", "violation", "gap"):
        torch.testing.assert_close(getattr(native, name), getattr(python, name), rtol=1e-6, atol=atol, equal_nan=True)


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_goes_the_same_way(method, reg_m, reg_type):
    for seed, kind, reg in ((0, "random", 0.1), (1, "clustered", 0.02), (2, "random", 0.005)):
        case = draw(19, 23, seed=seed, kind=kind, reg=reg, reg_m=reg_m, reg_type=reg_type, batch=(2,))
        assert_same_way(*both(case, method=method, tol=1e-7, max_iter=300))


@pytest.mark.parametrize("settings", [
    {"anderson_depth": 0}, {"anderson_depth": 1, "anderson_start": 3}, {"anneal_order": 0}, {"anneal_order": 4},
    {"anneal_passes": 2}, {"anneal_start": 1e-9}, {"anneal_factor": 0.9}, {"anneal_violation": 1e-6},
    {"trust_region": 0.05}, {"safeguard": 1.0, "backtrack": 0.9}, {"check_every": 7}], ids=str)
def test_every_option_means_the_same(settings):
    case = draw(21, 16, seed=3, kind="clustered", reg=2e-3, reg_m=(1.0, 0.4))
    assert_same_way(*both(case, tol=1e-6, max_iter=400, options=SolverOptions(**settings)))


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize("max_iter", [1, 2, 3, 10])
@pytest.mark.parametrize("tol", [0, 1e-12])
def test_ends_where_it_is_told(method, max_iter, tol):
    for reg_m in ((0.5, 0.5), (0.5, INF)):
        native, python = both(draw(9, 11, seed=4, reg=0.01, reg_m=reg_m), method=method, max_iter=max_iter, tol=tol)
        assert int(native.n_iter) == max_iter
        assert_same_way(native, python)


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
def test_points_that_take_no_part(method, reg_type):
    """Zero masses, forbidden pairs, and rows and columns that reach nothing."""
    case = draw(12, 15, seed=5, reg=0.05, reg_m=(0.5, 0.8), reg_type=reg_type)
    cost, a, b = case.cost.clone(), case.a.clone(), case.b.clone()
    cost[torch.rand(12, 15, generator=generator(6)) < 0.3] = INF
    cost[3], cost[:, 7] = INF, INF
    a[[0, 5]], b[[2, 11, 14]] = 0, 0
    native, python = both(case.but(cost=cost, a=a, b=b), method=method, tol=1e-8)
    assert_same_way(native, python)
    torch.testing.assert_close(native.plan, python.plan, rtol=1e-7, atol=1e-14)


def test_outliers_of_a_small_penalty():
    """Columns whose mass underflows float32 are redone: their potentials are float64's."""
    cost, rng = with_outliers(128, seed=7), generator(8)
    case = Case(cost=cost, a=masses((128,), rng), b=masses((128,), rng), reg=1e-4, reg_m=(0.01, 0.01), reg_type="kl")
    exact = case.solve(backend="reference", tol=1e-10, max_iter=5000)
    single = case.but(cost=cost.float(), a=case.a.float(), b=case.b.float()).solve(
        backend="native", tol=1e-5, max_iter=5000)
    assert bool(single.converged)
    torch.testing.assert_close(single.f.double(), exact.f, rtol=0, atol=1e-5)
    torch.testing.assert_close(single.g.double(), exact.g, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ordered", [False, True])
def test_skipped_blocks_are_not_missed(dtype, ordered):
    """Large and clustered enough for blocks to be skipped, in random and in cluster order, with outliers."""
    rng = generator(9)
    centres = torch.nn.functional.normalize(torch.randn(6, 16, generator=rng, dtype=torch.float64), dim=1)
    label = [torch.randint(6, (count,), generator=rng) for count in (256, 320)]
    label = [part.sort().values if ordered else part for part in label]
    x, z = (centres[part] + 0.02 * torch.randn(len(part), 16, generator=rng, dtype=torch.float64) for part in label)
    cost = 1 - torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(z, dim=1).T
    cost[17] += 0.7
    cost[:, 200] += 0.9
    case = Case(cost=cost, a=masses((256,), rng), b=masses((320,), rng), reg=1e-3, reg_m=(0.1, 0.1), reg_type="kl")
    exact = case.solve(backend="reference", tol=1e-9)
    native = case.but(cost=cost.to(dtype), a=case.a.to(dtype), b=case.b.to(dtype)).solve(
        backend="native", tol=1e-9 if dtype == torch.float64 else 1e-5)
    atol = 1e-9 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(native.f.double(), exact.f, rtol=0, atol=atol)
    torch.testing.assert_close(native.g.double(), exact.g, rtol=0, atol=atol)


def test_padding_does_not_undo_skipping():
    """Tiles of rows without mass and blocks of forbidden pairs: what skipping may have missed stays a small number."""
    position = torch.linspace(0, 1, 256, dtype=torch.float64)
    cost = (position[:, None] - position).square()
    cost[64:128, 128:192] = INF
    backend, eps, one = NativeBackend(), torch.full((1,), 1e-3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    log_a = torch.full((1, 256), -math.log(256.0), dtype=torch.float64)
    log_a[:, 8:16] = log_a[:, 200:] = -INF
    cost = cost[None].float()
    row = backend.row_lse(cost, log_a, eps)
    col = backend.col_lse(cost, log_a - row, eps)
    table = backend.block_min(cost)
    plain, mass, missed = torch.zeros(1, 256, dtype=torch.float64), torch.zeros(1, 256, dtype=torch.float64), \
        torch.zeros(1, table.shape[2], dtype=torch.float64)
    backend.sweep(cost, log_a, log_a, one, eps, 0 * one, plain)
    backend.sweep(cost, log_a, log_a, one, eps, 0 * one, mass, row_hint=row, col_hint=col, block_min=table,
                  missed=missed)
    assert bool((missed < 1e-10).all())
    assert bool((missed > 0).any())  # something was skipped
    torch.testing.assert_close(mass, plain, rtol=1e-6, atol=0)


def test_nothing_reaches_anything():
    """No allowed pair and one exact marginal: infinite potentials on either way, and no NaN."""
    cost = torch.full((2, 3), INF, dtype=torch.float64)
    case = Case(cost=cost, a=torch.ones(2).double(), b=torch.ones(3).double() / 3, reg=0.3, reg_m=(1.0, INF),
                reg_type="entropy")
    native, python = both(case, max_iter=30)
    assert torch.equal(native.f, python.f)
    assert torch.equal(native.violation, python.violation)
    assert int(native.n_iter) == int(python.n_iter)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_light_columns_beside_heavy_rows(backend):
    """Column sums far below the heaviest row's, which drops terms that they need, though far above any fixed limit."""
    rng = generator(14)
    cost = 9 + 3 * torch.rand(1, 40, 30, generator=rng)
    cost[0, :20, 1:] = 22.1 + 0.1 * torch.rand(20, 29, generator=rng)  # each term less than 2^-126 of its row's sum ...
    cost[0, 20, 1:] = 21.5  # ... beside one that is more than that
    cost[0, :21, 0] = 0
    offset = torch.zeros(1, 40, dtype=torch.float64)
    offset[0, :21] = 80
    kernel = GibbsKernel(DenseCost(cost), (cost,), cost, None, (1, 40, 30), cost.dtype, BACKENDS[backend], 1 << 20)
    one = torch.ones(1, dtype=torch.float64)
    swept = kernel.sweep(torch.zeros(1, 30, dtype=torch.float64), offset, 0.1 * one, 0.25 * one, 0 * one)
    exact = torch.logsumexp(swept.log_u[:, :, None] - cost.double() / 0.25, 1)
    torch.testing.assert_close(swept.col_lse, exact, rtol=0, atol=1e-4)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 300, 310), (3, 260, 257), (40, 33, 20)])
def test_neither_batch_nor_threads_change_an_answer(shape, threads):
    batch, n, m = shape
    case = draw(n, m, seed=10, kind="clustered", reg=3e-3, reg_m=(0.5, 0.5), batch=(batch,))
    case = case.but(cost=case.cost.float(), a=case.a.float(), b=case.b.float())
    answers = []
    for count in (1, 2, 3):
        threads(count)
        answers.append(case.solve(backend="native"))
    for other in answers[1:]:
        assert all(torch.equal(getattr(answers[0], name), getattr(other, name)) for name in STATE)
    last = case.but(cost=case.cost[-1], a=case.a[-1], b=case.b[-1]).solve(backend="native")
    assert all(torch.equal(getattr(answers[0], name)[-1], getattr(last, name)) for name in STATE)


def test_many_small_problems_of_their_own(threads):
    """Each with its own eps and penalties, costs shared by some: every one as if alone."""
    threads(2)
    rng = generator(11)
    cost = torch.rand(7, 1, 6, 9, generator=rng, dtype=torch.float64)
    a, b = masses((7, 5, 6), rng), masses((5, 9), rng)
    reg = 0.01 + 0.2 * torch.rand(5, generator=rng, dtype=torch.float64)
    reg_m = (0.1 + torch.rand(7, 1, generator=rng, dtype=torch.float64), 0.7)
    together = uotlib.unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=reg_m, tol=1e-9, backend="native")
    for i in range(7):
        for j in range(5):
            alone = uotlib.unbalanced_sinkhorn(cost[i, 0], a[i, j], b[j], reg=float(reg[j]), tol=1e-9,
                                               reg_m=(float(reg_m[0][i, 0]), 0.7), backend="reference")
            assert int(together.n_iter[i, j]) == int(alone.n_iter)
            torch.testing.assert_close(together.f[i, j], alone.f, rtol=0, atol=1e-10)


def test_warm_start_in_the_compiled_loop():
    case = draw(30, 30, seed=12, reg=0.02)
    first = case.solve(backend="native", tol=1e-9)
    native, python = both(case, tol=1e-7, init=(first.f, first.g))
    assert int(native.n_iter) <= 3
    assert_same_way(native, python)


def test_solves_from_several_threads(threads):
    threads(2)
    cases = [draw(90, 80, seed=seed, kind="clustered", reg=0.01, batch=(3,)) for seed in range(4)]
    alone = [case.solve(backend="native") for case in cases]
    found: dict[int, Tensor] = {}

    def work(k: int) -> None:
        found[k] = cases[k].solve(backend="native").g

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(found[k], alone[k].g) for k in range(4))


def test_an_error_in_the_progress_callable_ends_the_solve():
    def fail(state: uotlib.Progress) -> None:
        raise RuntimeError(f"stopped at pass {state.n_iter}")

    case = draw(40, 40, seed=13, batch=(4,))
    with pytest.raises(RuntimeError, match=r"^stopped at pass 1$"):
        case.solve(backend="native", options=SolverOptions(progress=fail))
    assert bool(case.solve(backend="native").converged.all())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_can_be_interrupted():
    """A solve that would take hours ends soon after ctrl-C."""
    code = """
        import torch, uotlib
        print("ready", flush=True)
        uotlib.unbalanced_sinkhorn(torch.rand(300, 300), reg=0.01, reg_m=1.0, tol=0, max_iter=10**9, backend="native")
    """
    assert "KeyboardInterrupt" in interrupted(code, busy_for=1)


def test_memory_stays_below_a_tenth_of_the_cost():
    """Everything that a solve of 2048 x 2048 takes beside its inputs, as the system counts it."""
    code = """
        import resource, torch, uotlib
        torch.set_num_threads(2)
        cost = torch.rand(2048, 2048)
        a = torch.full((2048,), 1 / 2048)
        uotlib.unbalanced_sinkhorn(cost[:64, :64].contiguous(), reg=0.01, reg_m=1.0, backend="native")
        cost.sum(), cost.aminmax()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        uotlib.unbalanced_sinkhorn(cost, a, a, reg=0.001, reg_m=0.1, tol=1e-2, backend="native")
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * cost.numel()))
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert float(shown.stdout) <= 0.1
