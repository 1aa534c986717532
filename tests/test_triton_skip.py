"""Sweeps that leave out what the last one shows not to matter: the same answer from less of the cost."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from synchronising import Synchronisations
from test_triton import DEVICE, ON_GPU, REFERENCE
from torch import Tensor

import uotlib
from uotlib.backends import BACKENDS, triton, triton_skip, triton_step
from uotlib.backends.base import log_scaling
from uotlib.backends.triton import TritonBackend
from uotlib.backends.triton_skip import Last
from uotlib.kernels.tiles import Tile, TileTable

pytest.importorskip("triton", reason="needs triton: pip install triton")

if ON_GPU:
    pytestmark = pytest.mark.gpu

N, M, EPS = 64, 96, 1e-3
#: Two slabs of tiles of 4 rows.
TILES = (Tile(4, 128, 1, per_sm=1),)
TABLE = TileTable(small=(), sweep=TILES, sweep_float64=TILES, column=Tile(32, 128, 1, per_sm=1), slab_rows=32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of 4 x 16 of a cost of any size may be left out."""
    monkeypatch.setattr(triton_skip, "SEGMENT", 16)
    monkeypatch.setattr(triton, "SKIP_ENTRIES", 0)


def clustered(batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Four clusters in order, each of neighbours in rows and in columns."""
    rng = torch.Generator().manual_seed(seed)
    near = torch.arange(N)[:, None] * 4 // N == torch.arange(M) * 4 // M
    cost = 0.02 * torch.rand(batch, N, M, generator=rng) + torch.where(near, 0.0, 0.5)
    return cost.to(DEVICE, dtype)


def half_steps(cost: Tensor, seed: int = 1) -> dict[str, Tensor]:
    """A sweep's arguments whose plan has rows and columns of mass near 1, whatever the cost."""
    rng = torch.Generator().manual_seed(seed)
    batch, n, m = cost.shape
    reg = torch.full((batch,), EPS, dtype=torch.float64, device=DEVICE)
    damping = torch.full_like(reg, 0.99)
    offset = torch.randn(batch, n, generator=rng, dtype=torch.float64).to(DEVICE)
    log_v = torch.zeros(batch, m, dtype=torch.float64, device=DEVICE)
    for _ in range(6):
        log_u = log_scaling(offset, damping, REFERENCE.row_lse(cost, log_v, reg))
        lse = REFERENCE.col_lse(cost, log_u, reg)
        log_v = torch.where(lse > -math.inf, -0.99 * lse, -math.inf)
    return {"cost": cost, "log_v": log_v, "offset": offset, "damping": damping, "reg": reg,
            "shift": torch.zeros_like(reg)}


def swept(case: dict[str, Tensor], table: Tensor | None = None, last: Last | None = None,
          items: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows' log-sum-exps and columns' sums; with both, parts that cannot matter are left out."""
    backend, log_v = TritonBackend(TABLE), case["log_v"]
    if table is None:
        col_mass = torch.zeros_like(log_v)
        return backend.sweep(**case, col_mass=col_mass, items=items), col_mass
    cut = backend._sweep_cut(case["cost"], len(log_v), skips=True)
    skip = words(backend, case, table, last, items)
    lse, col_mass = torch.empty_like(case["offset"]), torch.zeros_like(log_v)
    partial = torch.full((len(log_v), cut.slabs, M), math.nan, dtype=case["cost"].dtype, device=DEVICE)
    backend._launch_sweep(case["cost"], items, cut, log_v, case["offset"], case["damping"], case["reg"], case["shift"],
                          lse, partial, skip)
    backend._merge(partial, log_v, col_mass)
    return lse, col_mass


def words(backend: TritonBackend, case: dict[str, Tensor], table: Tensor, last: Last, items: Tensor | None) -> Tensor:
    cut = backend._sweep_cut(case["cost"], len(case["log_v"]), skips=True)
    return triton_skip.words(backend, table, case["log_v"], case["offset"], case["damping"], case["reg"], last, cut,
                             items)


def last_of(case: dict[str, Tensor]) -> Last:
    lse = REFERENCE.row_lse(case["cost"], case["log_v"], case["reg"])
    log_u = log_scaling(case["offset"], case["damping"], lse)
    return Last(case["log_v"], REFERENCE.col_lse(case["cost"], log_u, case["reg"]), case["reg"], lse)


def share_left_out(case: dict[str, Tensor], last: Last) -> float:
    """Of the segments inside the cost, those whose bit is set in the words that the sweep goes by."""
    backend = TritonBackend(TABLE)
    cost = case["cost"]
    cut = backend._sweep_cut(cost, len(cost), skips=True)
    found = words(backend, case, backend.sweep_table(cost), last, None)
    bits = (found[..., None] >> torch.arange(cut.rows // cut.tile.rows, device=DEVICE)) & 1
    return float(bits[:, :, : M // 16].double().mean())


def assert_same(case: dict[str, Tensor], last: Last) -> None:
    """Every row's and every column's sum to 2^-20 of itself, the smallest included."""
    table = TritonBackend(TABLE).sweep_table(case["cost"])
    (lse, mass), (whole_lse, whole_mass) = swept(case, table=table, last=last), swept(case)
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=2.0**-20)
    torch.testing.assert_close(mass, whole_mass, rtol=2.0**-20, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_most_of_a_clustered_cost_is_left_out(dtype):
    case = half_steps(clustered(2, dtype=dtype))
    last = last_of(case)
    moved = {**case, "log_v": case["log_v"] + 3 * torch.rand_like(case["log_v"])}
    assert share_left_out(moved, last) > 0.5
    assert_same(moved, last)


def test_outliers_are_exact():
    """A row and a column far from everything live on entries that are tiny beside all others; a shuffled cost too."""
    cost = clustered()
    cost[0, 5] += 1.0
    cost[0, :, 17] += 1.0
    cost[0, 40, 70:] += 2.0
    case = half_steps(cost)
    assert 0.3 < share_left_out(case, last_of(case)) < 0.75
    assert_same(case, last_of(case))
    rng = torch.Generator().manual_seed(2)
    shuffled = half_steps(cost[:, torch.randperm(N, generator=rng)][:, :, torch.randperm(M, generator=rng)])
    assert_same(shuffled, last_of(shuffled))


def test_nothing_is_left_out_on_a_guess():
    """Another eps, columns that come or go, potentials that moved by more than any cost, a NaN."""
    case = half_steps(clustered())
    last = last_of(case)
    assert share_left_out({**case, "reg": case["reg"] * 0.999}, last) == 0
    for before, after in ((0.0, -math.inf), (-math.inf, 0.0), (0.0, math.nan), (0.0, 2e3), (0.0, -2e3)):
        old, new = case["log_v"].clone(), case["log_v"].clone()
        old[0, 3] += before
        new[0, 3] += after
        assert share_left_out({**case, "log_v": new}, last._replace(log_v=old)) == 0
    last = last_of(case)
    case["cost"][0, 2, 90] = math.nan
    (lse, mass) = swept(case, table=TritonBackend(TABLE).sweep_table(case["cost"]), last=last)
    assert torch.isnan(lse[0]).tolist() == [row == 2 for row in range(N)]
    assert torch.isnan(mass[0, 90])


def test_points_without_mass_and_forbidden_pairs():
    cost = clustered(2)
    cost[0, :, 40:72] = math.inf
    cost[1, 6] = math.inf
    case = half_steps(cost)
    case["log_v"][:, 4:30] = -math.inf
    case["offset"][0, ::5] = -math.inf
    last = last_of(case)
    assert share_left_out(case, last) > 0.5
    assert_same(case, last)


def test_items_keep_their_tables():
    case = half_steps(clustered(3))
    items = torch.tensor([2, 0], device=DEVICE)
    chosen = {name: value if name == "cost" else value[items] for name, value in case.items()}
    table, last = TritonBackend(TABLE).sweep_table(case["cost"]), Last(*(part[items] for part in last_of(case)))
    for actual, expected in zip(swept(chosen, items=items, table=table, last=last), swept(chosen, items=items),
                                strict=True):
        torch.testing.assert_close(actual, expected, rtol=2.0**-20, atol=2.0**-20)


@pytest.mark.parametrize("tol", [1e-12, 0.0])
def test_solves_read_less(tol, monkeypatch):
    """A few textbook iterations leave out a good part of the cost, and are those of the reference."""
    monkeypatch.setattr(triton_step, "UNSEEN_ENTRIES", 0)
    monkeypatch.setitem(BACKENDS, "triton", TritonBackend(TABLE))
    left_out, words = [], triton_skip.words

    def counted(*arguments: object) -> Tensor:
        left_out.append(words(*arguments))
        return left_out[-1]

    monkeypatch.setattr(triton_skip, "words", counted)
    settings = {"reg": EPS, "reg_m": 0.1, "method": "sinkhorn", "max_iter": 5}
    with contextlib.nullcontext() if tol == 0 else pytest.warns(uotlib.ConvergenceWarning):
        actual = uotlib.unbalanced_sinkhorn(clustered()[0], backend="triton", tol=tol, **settings)
    expected = uotlib.unbalanced_sinkhorn(clustered()[0], backend="reference", tol=0.0, **settings)
    torch.testing.assert_close(actual.f, expected.f, rtol=0, atol=1e-6)
    bits = (left_out[-1][..., None] >> torch.arange(8, device=DEVICE)) & 1
    assert float(bits[:, :, : M // 16].double().mean()) > 0.3


@pytest.mark.parametrize("regs", [(EPS, 1.0), (1.0, 1.0)])
def test_the_device_knows_where_eps_is_small(regs, monkeypatch):
    """With tol = 0: problems of a large eps leave nothing out, their table may be missing, and nothing waits."""
    monkeypatch.setattr(triton_step, "UNSEEN_ENTRIES", 0)
    monkeypatch.setitem(BACKENDS, "triton", TritonBackend(TABLE))
    new_empty, left_out, words = Tensor.new_empty, [], triton_skip.words
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(math.nan)
                        if k.get("dtype", self.dtype).is_floating_point else new_empty(self, *a, **k))
    monkeypatch.setattr(triton_skip, "words", lambda *a: left_out.append(words(*a)) or left_out[-1])
    reg = torch.tensor(regs, dtype=torch.float64, device=DEVICE)
    settings = {"reg": reg, "reg_m": 0.1, "method": "sinkhorn", "tol": 0.0, "max_iter": 5}
    with Synchronisations() as waiting:
        actual = uotlib.unbalanced_sinkhorn(clustered(2), backend="triton", **settings)
    assert waiting.count == 0
    expected = uotlib.unbalanced_sinkhorn(clustered(2), backend="reference", **settings)
    torch.testing.assert_close(actual.f, expected.f, rtol=0, atol=1e-6)
    assert [bool(found.any()) for found in left_out[-1]] == [eps == EPS for eps in regs]
