"""The loop whose work on vectors is kernels, against the loop in Python: on a GPU, or under the interpreter."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
import triton_loops
from problems import INF, Case, draw, generator
from synchronising import Synchronisations
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton_loops import DEVICE, FIELDS, ON_GPU, OPTIONS, assert_same, with_idle_points

import uotlib
from uotlib import CosineCost, SolverOptions
from uotlib.backends import BACKENDS, triton_step
from uotlib.backends.triton import TritonBackend
from uotlib.backends.triton_small import MAX_PASSES
from uotlib.costs import Cost
from uotlib.kernels.tiles import STEP_CHUNKS, Tile, TileTable
from uotlib.operators import GibbsKernel
from uotlib.problem import build_problem
from uotlib.solver import solve

pytest.importorskip("triton", reason="needs triton: pip install triton")

if ON_GPU:
    pytestmark = pytest.mark.gpu

TILE = Tile(2, 16, warps=1, stages=1, per_sm=1)
#: No whole solves; chunks of 16 points, and two partial results added at a time, send small problems through all loops.
TABLE = TileTable(small=(), small_float64=(), step=(TILE,), merge=Tile(2, 32, warps=1), feature_lse_float64=TILE,
                  sweep_float64=(Tile(8, 64, 1, per_sm=1),), column_float64=Tile(16, 64, 1, per_sm=1), slab_rows=16)
#: Rows that do not fit on chip.
WIDE = TileTable(small=(), small_float64=(), step=(TILE,), sweep=(), sweep_float64=())
EVERY = SolverOptions(check_every=1)


@pytest.fixture(autouse=True)
def pass_by_pass(monkeypatch):
    monkeypatch.setitem(BACKENDS, "triton", TritonBackend(TABLE))


def by(backend: str, case: Case, **settings) -> uotlib.Solution:
    return triton_loops.by(backend, case, **{"options": EVERY} | settings)


def assert_same_way(case: Case, atol: float = 1e-9, **settings) -> uotlib.Solution:
    return triton_loops.assert_same_way(case, atol, **{"options": EVERY} | settings)


@pytest.mark.parametrize(("method", "reg_type", "reg_m"), [
    ("auto", "kl", (0.5, 0.5)), ("auto", "entropy", (0.4, INF)), ("auto", "kl", (INF, INF)),
    ("sinkhorn", "entropy", (0.3, 2.0)), ("sinkhorn", "kl", (INF, 0.7))])
def test_goes_the_same_way(method, reg_type, reg_m):
    case = draw(13, 19, reg=0.15, reg_m=reg_m, reg_type=reg_type)
    assert bool(assert_same_way(case, method=method, tol=1e-2).converged)


@pytest.mark.parametrize(("reg", "reg_m"), [(1e-2, (0.5, INF)), (1e-4, (0.3, 0.3))])
def test_small_eps(reg, reg_m):
    """Annealing with its predictions, acceleration and its rejections; more rows than columns."""
    case = draw(21, 14, seed=1, kind="clustered", reg=reg, reg_m=reg_m)
    assert int(assert_same_way(case, tol=0, max_iter=13, options=SolverOptions()).n_iter) == 13


@pytest.mark.parametrize(("method", "batch"), [("auto", (4,)), ("sinkhorn", ())])
def test_every_problem_of_a_batch_ends_by_itself(method, batch):
    """Those that have ended are dropped from the launches, and the others go on as before; one cost for all, too."""
    case = draw(9, 18, seed=2, batch=batch)
    reg = torch.tensor([0.2, 1.0, 0.1, 0.4], dtype=torch.float64, device=DEVICE)
    found = assert_same_way(case, method=method, reg=reg, tol=3e-3, max_iter=9)
    assert len(set(found.n_iter.tolist())) > 2


@pytest.mark.parametrize("method", ["auto", "sinkhorn"])
@pytest.mark.parametrize("max_iter", [1, 4])
def test_tol_zero_runs_every_pass(method, max_iter):
    case = draw(9, 11, seed=4, reg=0.01, reg_m=(0.5, INF), reg_type="entropy")
    case.b[3] = 0
    assert int(assert_same_way(case, method=method, max_iter=max_iter, tol=0).n_iter) == max_iter


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_means_the_same(options):
    case = draw(11, 17, seed=3, kind="clustered", reg=0.03, reg_m=(1.0, 0.4))
    assert_same_way(case, tol=1e-4, max_iter=8, options=SolverOptions(**options))


@pytest.mark.parametrize(("reg_type", "method"), [("kl", "auto"), ("entropy", "sinkhorn")])
def test_points_that_take_no_part(reg_type, method):
    case = with_idle_points(draw(12, 18, seed=5, reg=0.2, reg_m=(0.5, 0.8), reg_type=reg_type))
    assert_same_way(case, method=method, tol=1e-3)


def test_columns_that_may_have_underflowed():
    """At eps 1e-3 a column farther from everything than others by 0.2 has lost its sum in float32 units."""
    case = draw(12, 18, seed=7, reg=1e-3, reg_m=(0.5, 0.5))
    case.cost[:, 4] += 1.0
    assert_same_way(case, method="sinkhorn", tol=0, max_iter=3)


def test_a_nan_ends_its_problem_alone():
    case = draw(7, 9, seed=8, batch=(2,), reg=0.3)
    problem, kernel = gibbs(case.cost, case, TABLE)
    kernel.matrix[1, 2, 3] = math.nan  # behind the check of the input, as on a GPU, where nobody looks
    outcome = solve(problem, kernel, "auto", 30, 1e-3, None, EVERY)
    assert outcome.converged.tolist() == [True, False]
    assert torch.isnan(outcome.violation).tolist() == [False, True]
    assert int(outcome.n_iter[1]) == 1
    assert bool(torch.isfinite(outcome.pair.f[0]).all())


@pytest.mark.parametrize("table", [TABLE, WIDE], ids=["sweep", "wide"])
@pytest.mark.parametrize("storage", [None, "bfloat16"])
def test_other_ways_to_read_the_cost(table, storage, monkeypatch):
    """Two reads of rows that do not fit on chip, and costs kept in 16 bits: float32 arithmetic, the same solution."""
    monkeypatch.setitem(BACKENDS, "triton", TritonBackend(table))
    case = draw(13, 18, seed=9, reg=0.2)
    kept = case.but(cost=case.cost.bfloat16().double()) if storage else case
    single = case.but(cost=case.cost.float(), a=case.a.float(), b=case.b.float())
    found = by("triton", single, tol=0, max_iter=5, options=SolverOptions(storage=storage))
    expected = by("reference", kept, tol=0, max_iter=5)
    torch.testing.assert_close(found.f.double(), expected.f, rtol=0, atol=2e-6)
    torch.testing.assert_close(found.g.double(), expected.g, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("method", "tol", "max_iter"), [("auto", 1e-2, 100), ("sinkhorn", 0, 4)])
def test_streamed_features(method, tol, max_iter):
    """alpha and beta of the cost go into the log-scalings on the device; a batch shares the features of one side."""
    x, z = (torch.randn(*shape, 3, generator=generator(shape[-1]), dtype=torch.float64).to(DEVICE)
            for shape in ((2, 10), (18,)))
    cost = CosineCost(x, z, materialize=False)
    settings = {"reg": torch.tensor([0.4, 0.8], dtype=torch.float64, device=DEVICE), "reg_m": (0.5, 2.0),
                "method": method, "tol": tol, "max_iter": max_iter, "options": EVERY}
    assert_same(*(uotlib.unbalanced_sinkhorn(cost, backend=backend, **settings) for backend in ("triton", "reference")))


class Manhattan(Cost):
    """sum_k |x_ik - z_jk|: no inner product."""

    def __init__(self, x: Tensor, z: Tensor) -> None:
        self.x, self.z, self.materialize = x, z, False

    @property
    def tensors(self):
        return ("x", self.x), ("z", self.z)

    @property
    def shape(self):
        return self.x.shape[:-2], self.x.shape[-2], self.z.shape[-2]

    def prepare(self, dtype, smallest_reg):
        return self.x.to(dtype)[None], self.z.to(dtype)[None]

    @classmethod
    def block(cls, prepared, rows, dtype):
        x, z = prepared
        return (x[:, rows, None] - z[:, None]).abs().sum(-1).to(dtype)


def test_costs_that_come_in_blocks():
    x, z = (torch.rand(points, 2, generator=generator(points), dtype=torch.float64).to(DEVICE) for points in (9, 17))
    settings = {"reg": 0.2, "reg_m": 1.0, "tol": 0, "max_iter": 4, "options": SolverOptions(block_bytes=4096)}
    assert_same(*(uotlib.unbalanced_sinkhorn(Manhattan(x, z), backend=backend, **settings)
                  for backend in ("triton", "reference")))


def test_what_is_written_is_all_that_is_read(monkeypatch):
    """Memory that torch hands out without values holds NaN here."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", lambda *size, **how: poisoned(empty(*size, **how)))
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *size, **how: poisoned(new_empty(self, *size, **how)))
    monkeypatch.setattr(torch, "empty_like", lambda like, **how: poisoned(new_empty(like, like.shape, **how)))
    case = draw(9, 18, seed=10, batch=(2,), reg=0.2, reg_type="entropy", reg_m=(0.5, INF))
    reg = torch.tensor([0.3, 0.9], dtype=torch.float64, device=DEVICE)
    for method in ("auto", "sinkhorn"):
        found = by("triton", case, method=method, reg=reg, tol=1e-2)
        assert bool(found.converged.all())
        for name in FIELDS:
            assert bool(torch.isfinite(getattr(found, name)).all()), name


def test_a_start_and_reports():
    case = draw(10, 18, seed=11, reg=0.1)
    first = by("reference", case, tol=1e-8)
    seen: dict[str, list] = {"triton": [], "reference": []}
    for backend, states in seen.items():
        by(backend, case, tol=1e-7, init=(first.f, first.g),
           options=SolverOptions(progress=states.append, check_every=1))
    assert 1 <= len(seen["triton"]) <= 3
    for ours, python in zip(*seen.values(), strict=True):
        assert (ours.n_iter, ours.running, ours.reg) == (python.n_iter, python.running, python.reg)
        assert ours.violation == pytest.approx(python.violation, abs=1e-12)


def gibbs(cost: Tensor | Cost, case: Case, table: TileTable) -> tuple[uotlib.problem.Problem, GibbsKernel]:
    streamed = isinstance(cost, Cost)
    given = cost if streamed else cost.to(DEVICE)
    problem = build_problem(given, case.a.to(DEVICE), case.b.to(DEVICE), case.reg, case.reg_m, case.reg_type)
    prepared = problem.cost.prepare(problem.dtype, case.reg)
    n, m = case.a.shape[-1], case.b.shape[-1]
    matrix = None if streamed else given.reshape(-1, n, m).clone()
    return problem, GibbsKernel(problem.cost, prepared, matrix, None, (problem.batch, n, m), problem.dtype,
                                TritonBackend(table), 1 << 26, "float64")


class Counted(TorchDispatchMode):
    """While active, the launches of every kernel, and the operations of torch outside of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.operations, self.launches = 0, Counter()
        from uotlib.kernels import launchable

        for name in launchable.__all__:
            monkeypatch.setattr(launchable, name, self._counting(name, getattr(launchable, name)))

    def _counting(self, name: str, kernel):
        mode = self

        class Counting:
            def __getitem__(self, grid):
                def launch(*arguments, **constants):
                    mode.launches[name] += 1
                    with _disable_current_modes():  # the interpreter has operations of its own
                        kernel[grid](*arguments, **constants)
                return launch

        return Counting()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


SWEEP = ("sweep_kernel", "marginals_kernel", "col_lse_kernel")
STREAM = ("feature_lse_kernel", "log_u_kernel", "feature_lse_kernel")
STEP = ("measure_kernel", "decide_kernel", "move_kernel")


@pytest.mark.parametrize(("kind", "method", "launches"), [
    ("dense", "auto", SWEEP + STEP), ("dense", "sinkhorn", (*SWEEP, "measure_kernel")),
    ("wide", "auto", ("row_lse_kernel", "log_u_kernel", "col_lse_kernel", *STEP)),
    ("features", "auto", STREAM + STEP), ("features", "sinkhorn", (*STREAM, "measure_kernel"))])
def test_a_pass_is_launches_alone(kind, method, launches, monkeypatch):
    """With tol = 0: so many launches a pass, no operation of torch, and nothing waits for the device."""
    case = draw(5, 6, seed=12)
    cost = case.cost
    if kind == "features":
        x, z = (torch.randn(points, 3, generator=generator(points), dtype=torch.float64).to(DEVICE)
                for points in (5, 6))
        cost = CosineCost(x, z, materialize=False)
    counts = []
    for passes in (4, 6):
        problem, kernel = gibbs(cost, case, WIDE if kind == "wide" else TABLE)
        with monkeypatch.context() as patch, Counted(patch) as seen, Synchronisations() as waits:
            solve(problem, kernel, method, passes, 0, None, SolverOptions())
        assert waits.count == 0
        counts.append(seen)
    assert counts[1].operations == counts[0].operations
    assert counts[1].launches - counts[0].launches == Counter({name: 2 * launches.count(name) for name in launches})


def test_what_goes_by_the_loop_in_python():
    usual = {"batch": 2, "max_iter": 1000, "options": SolverOptions()}
    assert triton_step.why_not(**usual) is None
    for change, words in (({"batch": 0}, "empty"), ({"max_iter": MAX_PASSES + 1}, "max_iter"),
                          ({"options": SolverOptions(anderson_depth=16)}, "anderson_depth"),
                          ({"options": SolverOptions(anneal_order=8)}, "anneal_order")):
        assert words in triton_step.why_not(**usual | change)
    case = draw(5, 6, seed=13, reg=0.2)
    assert_same_way(case, tol=0, max_iter=3, options=SolverOptions(anderson_depth=16))


def test_chunks_of_long_vectors():
    table = TileTable()
    short, long = table.step
    assert table.step_tile(1) == short
    assert table.step_tile(STEP_CHUNKS * short.cols) == short
    assert table.step_tile(STEP_CHUNKS * short.cols + 1) == long
    assert table.step_tile(1 << 20) == long


def test_launches_on_any_plane_are_one_compiled_kernel(monkeypatch):
    """Triton compiles anew for a pointer that is no multiple of 16 bytes: none is, with odd numbers of everything."""
    seen = []
    monkeypatch.setattr(triton_step, "reading_of", lambda *given, of=triton_step.reading_of: (
        seen.append(given[-1]), of(*given))[1])
    case = draw(5, 7, batch=(5,), reg=torch.tensor([0.5, 0.4, 0.3, 0.1, 0.02], dtype=torch.float64))
    by("triton", case, tol=1e-3)
    counts = [state.count for state in seen]
    assert counts[0] == 5
    assert {1, 3} & set(counts)
    for state in seen:
        for of in (state.rows, state.cols, state.numbers):
            assert all(plane.data_ptr() % 16 == 0 for plane in of)
