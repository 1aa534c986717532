"""Whole solves inside one program against the loop in Python, as tests/test_triton.py is run: GPU or interpreter."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from capturing import captured
from problems import INF, Case, draw, generator, masses, with_outliers
from synchronising import Synchronisations
from torch import Tensor
from triton_loops import DEVICE, FIELDS, ON_GPU, OPTIONS, assert_same_way, by, with_idle_points

import uotlib
from uotlib import SolverOptions
from uotlib.backends import BACKENDS
from uotlib.backends.triton import TritonBackend
from uotlib.backends.triton_small import DEFAULT_TOL, MAX_PASSES, bits_of, tile_for
from uotlib.kernels import tune
from uotlib.kernels.tiles import TileTable
from uotlib.operators import GibbsKernel
from uotlib.options import GPU_CHECK_EVERY
from uotlib.problem import build_problem
from uotlib.reference import reference_sinkhorn
from uotlib.settings import Settings, kernel_of
from uotlib.solver import solve

pytest.importorskip("triton", reason="needs triton: pip install triton")

if ON_GPU:
    pytestmark = pytest.mark.gpu

def single(case: Case) -> Case:
    return case.but(cost=case.cost.float(), a=case.a.float(), b=case.b.float())


@pytest.mark.parametrize(("reg_type", "reg_m"), [("kl", (0.5, 0.5)), ("entropy", (0.3, 2.0)), ("kl", (0.5, INF)),
                                                 ("entropy", (INF, INF)), ("entropy", (INF, 0.5))])
def test_goes_the_same_way(reg_m, reg_type):
    assert bool(assert_same_way(draw(19, 23, reg=0.12, reg_m=reg_m, reg_type=reg_type), tol=1e-5).converged)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_means_the_same(options):
    case = draw(11, 9, seed=3, kind="clustered", reg=0.03, reg_m=(1.0, 0.4))
    assert_same_way(case, tol=1e-4, max_iter=16, options=SolverOptions(**options))


@pytest.mark.parametrize(("reg_type", "reg_m"), [("kl", (0.5, INF)), ("entropy", (0.3, 2.0))])
def test_textbook_iterates_are_the_textbooks(reg_m, reg_type):
    case = draw(9, 12, seed=1, reg=0.05, reg_m=reg_m, reg_type=reg_type)
    case.b[3] = 0
    small = by("triton", case, method="sinkhorn", tol=0, max_iter=5)
    expected = reference_sinkhorn(*case.definition, n_iter=5)
    assert int(small.n_iter) == 5
    torch.testing.assert_close(small.f.cpu(), expected.f, rtol=0, atol=1e-13)
    torch.testing.assert_close(small.plan.cpu(), expected.plan, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize("max_iter", [1, 2, 4])
def test_tol_zero_runs_every_pass(method, max_iter):
    case = draw(9, 11, seed=4, reg=0.01, reg_m=(0.5, INF))
    assert int(assert_same_way(case, method=method, max_iter=max_iter, tol=0).n_iter) == max_iter


@pytest.mark.parametrize("shape", [(20, 31), (37, 12)])
def test_float32_costs(shape):
    """Several tiles of rows; certificate and potentials are those of float64 to what float32 costs allow."""
    case = draw(*shape, seed=2, kind="clustered", reg=0.05, reg_m=(0.5, 1.0))
    small, exact = by("triton", single(case)), by("reference", case, tol=1e-9)
    assert bool(small.converged)
    assert small.f.dtype == torch.float32
    torch.testing.assert_close(small.f.double(), exact.f, rtol=0, atol=1e-5)
    torch.testing.assert_close(small.g.double(), exact.g, rtol=0, atol=1e-5)
    assert violation(case, small) == pytest.approx(float(small.violation), rel=0.2, abs=2e-6)


def violation(case: Case, solution: uotlib.Solution) -> float:
    """Of the plan of the solver's own potentials, all in float64 ("kl")."""
    f, g = solution._pair.f[0].cpu(), solution._pair.g[0].cpu()
    plan = case.a[:, None] * case.b * torch.exp((f[:, None] + g - case.cost) / case.reg)
    rows, cols = case.a * torch.exp(-f / case.reg_m[0]), case.b * torch.exp(-g / case.reg_m[1])
    return float(((plan.sum(1) - rows).abs().sum() + (plan.sum(0) - cols).abs().sum()) / plan.sum())


@pytest.mark.parametrize(("reg_type", "method"), [("kl", "auto"), ("entropy", "sinkhorn")])
def test_points_that_take_no_part(reg_type, method):
    case = with_idle_points(draw(12, 15, seed=5, reg=0.2, reg_m=(0.5, 0.8), reg_type=reg_type))
    assert_same_way(case, method=method, tol=1e-4)


def test_nothing_reaches_anything():
    case = Case(cost=torch.full((2, 3), INF, dtype=torch.float64), a=torch.ones(2).double(),
                b=torch.ones(3).double() / 3, reg=0.3, reg_m=(1.0, INF), reg_type="entropy")
    assert_same_way(case, max_iter=5)


def test_columns_that_underflow_are_done_again():
    rng = generator(8)
    case = Case(cost=with_outliers(24, seed=7), a=masses((24,), rng), b=masses((24,), rng), reg=2e-3,
                reg_m=(0.01, 0.01), reg_type="kl")
    small, exact = by("triton", single(case)), by("reference", case, tol=1e-10, max_iter=5000)
    assert bool(small.converged)
    assert float(exact.col_mass.min()) < 1e-35
    torch.testing.assert_close(small.g.double(), exact.g, rtol=0, atol=1e-5)


def test_lost_numbers_and_nan_show():
    lost = by("triton", single(draw(6, 5, reg=1e-12, reg_m=1.0)), tol=1e-4, method="sinkhorn", max_iter=20)
    assert math.isnan(float(lost.violation))
    assert not bool(lost.converged)
    case = single(draw(6, 5))
    problem = posed(case)
    case.cost[2, 3] = math.nan  # behind the checks, which a GPU has none of
    outcome = run(problem, case, tol=1e-4)
    assert math.isnan(float(outcome.violation))
    assert int(outcome.n_iter) <= 2


def test_stops_at_the_floor_of_the_type():
    small = by("triton", single(draw(6, 7, reg=1.0)), tol=1e-12, max_iter=400)
    assert bool(small._outcome.at_floor)
    assert not bool(small.converged)
    assert float(small.violation) < 1e-5


def test_a_batch_is_its_items(monkeypatch):
    """Costs shared, eps and penalties of their own; unwritten outputs would show as NaN."""
    rng = generator(11)
    cost = torch.rand(2, 1, 6, 9, generator=rng, dtype=torch.float64).to(DEVICE)
    a, b = masses((2, 2, 6), rng).to(DEVICE), masses((2, 9), rng).to(DEVICE)
    reg = torch.tensor([0.3, 0.1], dtype=torch.float64, device=DEVICE)
    tau = torch.tensor([[0.5], [INF]], dtype=torch.float64, device=DEVICE)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **how: empty(*size, **how).fill_(math.nan))
    together = uotlib.unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=(tau, 0.7), backend="triton")
    assert bool(together.converged.all())
    for i, j in ((0, 1), (1, 0)):
        alone = uotlib.unbalanced_sinkhorn(cost[i, 0], a[i, j], b[j], reg=float(reg[j]),
                                           reg_m=(float(tau[i, 0]), 0.7), backend="triton")
        for name in (*FIELDS, "n_iter"):
            assert torch.equal(getattr(together, name)[i, j], getattr(alone, name)), name


def test_warm_start():
    case = draw(14, 10, seed=12, reg=0.05)
    first = by("reference", case, tol=1e-9)
    again = assert_same_way(case, tol=1e-7, init=(first.f, first.g))
    assert int(again.n_iter) <= 3


def posed(case: Case) -> uotlib.problem.Problem:
    return build_problem(case.cost.to(DEVICE), case.a.to(DEVICE), case.b.to(DEVICE), case.reg, case.reg_m, "kl")


def run(problem: uotlib.problem.Problem, case: Case, **settings) -> uotlib.outcome.Outcome:
    how = Settings("dense", "kl", problem.dtype, "triton", 1 << 26, 1e-6, 100)
    cost = case.cost.to(DEVICE)[None]
    order = {"method": "auto", "max_iter": 50, "tol": None, "init": None, "options": SolverOptions()} | settings
    return solve(problem, kernel_of(problem, (cost,), None, how), **order)


@pytest.mark.parametrize("tol", [None, 0])
def test_reads_nothing_back(tol):
    case = draw(6, 5)
    problem = posed(case)
    with Synchronisations() as seen:
        outcome = run(problem, case, tol=tol, max_iter=3)
    assert seen.count == 0
    assert int(outcome.n_iter) == 3


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize(("tol", "every"), [(0, None), (None, None), (1e-3, 2)])
def test_the_loop_waits_once_a_look(method, tol, every):
    """Where no kernel has the whole solve: at most one number read back every few passes, none with tol = 0."""
    case = draw(4, 5, batch=(3,)).but(reg=torch.tensor([1.0, 0.3, 0.2], dtype=torch.float64))
    problem = posed(case)
    cost = case.cost.to(DEVICE)
    kernel = GibbsKernel(problem.cost, (cost,), cost, None, (3, 4, 5), cost.dtype,
                         TritonBackend(TileTable(small=(), small_float64=())), 1 << 26)
    with Synchronisations() as seen:
        outcome = solve(problem, kernel, method, 13, tol, None, SolverOptions(check_every=every))
    looks = int(outcome.n_iter.max()) // (every or GPU_CHECK_EVERY)
    assert seen.count <= looks
    assert (seen.count > 0) == (tol != 0)
    assert tol == 0 or bool(outcome.converged[0])


def test_what_goes_pass_by_pass():
    table, cost = TileTable(), torch.zeros(2, 200, 256)
    usual = {"batch": 2, "max_iter": 1000, "tol": None, "options": SolverOptions()}
    assert tile_for(table, cost, **usual).cols == 256
    assert tile_for(table, cost[:, :30, :20].double(), **usual).cols == 32
    reports = SolverOptions(progress=True)
    assert tile_for(table, cost, **usual | {"options": reports, "tol": 0}) is not None
    for change in ({"batch": 0}, {"max_iter": MAX_PASSES + 1}, {"options": reports},
                   {"options": SolverOptions(anderson_depth=16)}, {"options": SolverOptions(anneal_order=8)}):
        assert tile_for(table, cost, **usual | change) is None
    assert tile_for(table, torch.zeros(2, 257, 3), **usual) is None


@pytest.mark.parametrize("kind", tune.KINDS)
def test_what_is_tuned_has_one_answer(kind, monkeypatch):
    """Every operation runs, and another tile gives the same answers but for rounding."""
    for name, value in (("ENTRIES", 1), ("ROWS", 24), ("PASSES", 2)):
        monkeypatch.setattr(tune, name, value)
    tiles = getattr(TileTable(), kind)
    tile = tiles[0] if isinstance(tiles, tuple) else tiles
    other = dataclasses.replace(tile, rows=2 * tile.rows)
    table = dataclasses.replace(TileTable(), **{kind: (other,) if isinstance(tiles, tuple) else other})
    found = tune.operation(kind, 24, torch.float32, DEVICE, table)()
    expected = tune.operation(kind, 24, torch.float32, DEVICE, TileTable())()
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
        assert bool(torch.isfinite(actual).all())


def test_bits_of_a_tolerance():
    bits = torch.tensor([bits_of(1e-5), bits_of(DEFAULT_TOL)])
    assert bits.view(torch.float64).tolist() == [1e-5, DEFAULT_TOL]
    assert (bits.abs() > 2**31).all(), "both compile for 64 bits"


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("tol", [None, 0])
def test_captured_in_a_graph(tol):
    case = single(draw(200, 150, kind="clustered", reg=0.01, batch=(5,)))
    problem = build_problem(case.cost.to(DEVICE), case.a.to(DEVICE), case.b.to(DEVICE), case.reg, case.reg_m, "kl")
    kernel = kernel_of(problem, (case.cost.to(DEVICE),), None,
                       Settings("dense", "kl", problem.dtype, "triton", 1 << 26, 1e-6, 100))

    def step() -> Tensor:
        return BACKENDS["triton"].solve(problem, kernel.matrix, "auto", 100, tol, None, SolverOptions()).pair.g

    expected = step().clone()
    graph, found = captured(step)
    graph.replay()
    assert torch.equal(found, expected)
