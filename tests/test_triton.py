"""The Triton kernels against the reference backend: on a GPU where there is one, else under Triton's interpreter.

The interpreter has to be chosen before the kernels are imported, so without a GPU test_triton_interpreter.py runs this
file in a process of its own, with TRITON_INTERPRET=1, and conftest.py keeps it out of the others.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from capturing import captured
from torch import Tensor

from uotlib.backends import triton as launches
from uotlib.backends.base import Backend, log_scaling
from uotlib.backends.reference import ReferenceBackend
from uotlib.backends.triton import TritonBackend
from uotlib.kernels.tiles import Tile, TileTable

pytest.importorskip("triton", reason="needs triton: pip install triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
if ON_GPU:
    pytestmark = pytest.mark.gpu

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")

#: Small tiles send small problems through every loop: several tiles a slab, several slabs, several column blocks.
SMALL = TileTable(
    sweep=(Tile(2, 16, 1, per_sm=1), Tile(2, 256, 1, per_sm=1)),
    sweep_float64=(Tile(2, 16, 1, per_sm=1), Tile(2, 256, 1, per_sm=1)),
    schur=(Tile(2, 16, 1, per_sm=1), Tile(2, 256, 1, per_sm=1)),
    schur_float64=(Tile(2, 16, 1, per_sm=1), Tile(2, 256, 1, per_sm=1)),
    eliminate=(Tile(2, 16, 1, per_sm=1), Tile(2, 256, 1, per_sm=1)),
    eliminate_float64=(Tile(2, 16, 1, per_sm=1), Tile(2, 256, 1, per_sm=1)), weigh=Tile(4, 16, 1, per_sm=1),
    weigh_float64=Tile(4, 16, 1), product=Tile(16, 16, 1, per_sm=1), product_float64=Tile(16, 16, 1),
    row=Tile(4, 32, 1), row_float64=Tile(4, 32, 1), column=Tile(4, 32, 1, per_sm=1),
    column_float64=Tile(4, 32, 1, per_sm=1), panel=Tile(4, 32, 1), panel_float64=Tile(4, 32, 1), merge=Tile(2, 16, 1),
    slab_rows=16)
#: No row fits on chip, so the sweep reads the cost twice.
WIDE = TileTable(sweep=(), sweep_float64=(), schur=(), schur_float64=(), eliminate=(), eliminate_float64=(),
                 through=Tile(4, 32, 1), through_float64=Tile(4, 32, 1), back=Tile(4, 32, 1, per_sm=1),
                 back_float64=Tile(4, 32, 1, per_sm=1), row=Tile(4, 32, 1), row_float64=Tile(4, 32, 1),
                 column=Tile(4, 32, 1, per_sm=1), column_float64=Tile(4, 32, 1, per_sm=1))
TABLES = {"default": TileTable(), "small": SMALL, "wide": WIDE}
REFERENCE = ReferenceBackend()


def tolerance(dtype: torch.dtype, eps: float) -> float:
    """float32: a few units in the last place whatever eps, for the exponents are split.

    float64 shares the reference's own rounding of C / eps.
    """
    if dtype == torch.float64:
        return 64 * 2.0**-53 * max(1.0, 4 / eps)
    return 2e-6 if ON_GPU or _fused_interpreter() else 2e-6 + 2.0**-22 * 4 / eps


def _fused_interpreter() -> bool:
    """Whether the interpreter rounds a multiply-add once, as GPUs do: it did not before Triton 3.9."""
    from triton import __version__

    return tuple(int(part) for part in __version__.split(".")[:2]) >= (3, 9)


def draw(batch: int, n: int, m: int, dtype: torch.dtype, eps: float, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of a sweep whose plan has rows of mass near 1, whatever eps: potentials are of the cost's size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    cost = (2 * torch.rand(batch, n, m, generator=generator, dtype=torch.float64)).to(dtype)
    log_v = normal(batch, m) * 0.3 / eps
    reg = eps * (1 + torch.arange(batch, dtype=torch.float64) / 8)
    damping = torch.linspace(0.5, 1, batch, dtype=torch.float64)
    lse = REFERENCE.row_lse(cost, log_v, reg)
    offset = (damping[:, None] - 1) * lse + normal(batch, n)
    out = {"cost": cost, "log_v": log_v, "offset": offset, "damping": damping, "reg": reg, "shift": normal(batch)}
    return {name: value.to(DEVICE) for name, value in out.items()}


def swept(backend: Backend, case: dict[str, Tensor], **changes: Tensor) -> tuple[Tensor, Tensor]:
    """(row log-sum-exps, column masses added to 0.25) of a sweep."""
    arguments = {**case, **changes}
    col_mass = torch.full_like(arguments["log_v"], 0.25)
    lse = backend.sweep(col_mass=col_mass, **arguments)
    return lse, col_mass


def assert_close(actual: Tensor, expected: Tensor, bound: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=bound, atol=bound)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1.0), (torch.float32, 1e-2), (torch.float32, 1e-4),
                                            (torch.float64, 1e-2)])
@pytest.mark.parametrize(("table", "shape"), [("default", (1, 1, 1)), ("default", (2, 7, 5)), ("default", (1, 41, 130)),
                                              ("small", (2, 19, 33)), ("small", (1, 20, 48))])
def test_matches_reference(table, shape, dtype, eps):
    case = draw(*shape, dtype, eps)
    backend, bound = TritonBackend(TABLES[table]), tolerance(dtype, eps)
    cost, log_v, reg = case["cost"], case["log_v"], case["reg"]
    lse, col_mass = swept(backend, case)
    expected_lse, expected_mass = swept(REFERENCE, case)
    assert_close(lse - expected_lse, torch.zeros_like(lse), bound)
    assert_close(col_mass, expected_mass, bound)
    assert_close(backend.row_lse(cost, log_v, reg) - expected_lse, torch.zeros_like(lse), bound)
    log_u = log_scaling(case["offset"], case["damping"], expected_lse)
    expected = REFERENCE.col_lse(cost, log_u, reg)
    assert_close(backend.col_lse(cost, log_u, reg) - expected, torch.zeros_like(expected), bound)
    assert_close(backend.panel(cost, log_u, log_v, reg), REFERENCE.panel(cost, log_u, log_v, reg), bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("shape", "eps"), [((2, 21, 67), 1e-4), ((1, 41, 40), 1.0)])
def test_rows_too_wide_for_the_chip(shape, eps, dtype):
    case = draw(*shape, dtype, eps)
    for actual, expected in zip(swept(TritonBackend(WIDE), case), swept(REFERENCE, case), strict=True):
        assert_close(actual, expected, tolerance(dtype, eps))


@pytest.mark.parametrize("table", ["small", "wide"])
@pytest.mark.parametrize("layout", ["expanded", "rows_apart", "row_slice", "misaligned", "expanded_vectors"])
def test_layouts(layout, table):
    case = draw(2, 12, 20, torch.float32, 1e-2)
    cost = case["cost"]
    if layout == "expanded":
        case["cost"] = cost[:1].expand(2, -1, -1)
    elif layout == "rows_apart":
        wide = cost.new_full((2, 24, 32), math.nan)
        wide[:, ::2, :20] = cost
        case["cost"] = wide[:, ::2, :20]
    elif layout == "row_slice":
        case["cost"], case["offset"] = cost[:, 3:10], case["offset"][:, 3:10]
    elif layout == "misaligned":
        case["cost"] = torch.cat([cost.new_zeros(1), cost.flatten()])[1:].view(cost.shape)
    else:
        case["log_v"] = case["log_v"][:, :1].expand(-1, 20)
        case["reg"] = case["reg"][:1].expand(2)
    backend = TritonBackend(TABLES[table])
    for actual, expected in zip(swept(backend, case), swept(REFERENCE, case), strict=True):
        assert_close(actual, expected, tolerance(torch.float32, 1e-2))
    cost, log_v, reg = case["cost"], case["log_v"], case["reg"]
    log_u = log_scaling(case["offset"], case["damping"], REFERENCE.row_lse(cost, log_v, reg))
    bound = tolerance(torch.float32, 1e-2)
    assert_close(backend.col_lse(cost, log_u, reg), REFERENCE.col_lse(cost, log_u, reg), bound)
    assert_close(backend.panel(cost, log_u, log_v, reg), REFERENCE.panel(cost, log_u, log_v, reg), bound)


@pytest.mark.parametrize("table", ["small", "wide"])
def test_items_select_entries_of_the_batch(table):
    case = draw(4, 9, 33, torch.float32, 1e-3)
    items = torch.tensor([3, 1, 3], device=DEVICE)
    chosen = {name: value if name == "cost" else value[items] for name, value in case.items()}
    gathered = {**chosen, "cost": case["cost"][items]}
    backend = TritonBackend(TABLES[table])
    for actual, expected in zip(swept(backend, chosen, items=items), swept(backend, gathered), strict=True):
        assert torch.equal(actual, expected)
    log_u, reg, log_v = chosen["offset"], chosen["reg"], chosen["log_v"]
    for operation, vectors in (("row_lse", (log_v, reg)), ("col_lse", (log_u, reg)), ("panel", (log_u, log_v, reg))):
        run = getattr(backend, operation)
        assert torch.equal(run(case["cost"], *vectors, items=items), run(gathered["cost"], *vectors))


@pytest.mark.parametrize(("table", "dtype"), [("small", torch.float32), ("wide", torch.float32),
                                              ("default", torch.float64)])
def test_infinities_are_points_without_mass(table, dtype):
    case = draw(2, 9, 37, dtype, 1e-3)
    cost, log_v, offset = case["cost"], case["log_v"], case["offset"]
    cost[0, 2] = cost[0, :, 5] = math.inf
    cost[1, 4, ::2] = math.inf
    log_v[0, 7:20] = -math.inf
    log_v[1, 1] = -math.inf
    offset[1, 3] = -math.inf
    backend = TritonBackend(TABLES[table])
    bound = tolerance(dtype, 1e-3)
    lse, col_mass = swept(backend, case)
    expected_lse, expected_mass = swept(REFERENCE, case)
    assert_close(lse, expected_lse, bound)
    assert_close(col_mass, expected_mass, bound)
    log_u = log_scaling(offset, case["damping"], expected_lse)
    assert torch.isneginf(lse[0, 2])
    assert torch.isneginf(log_u[0, 2])
    assert_close(backend.row_lse(cost, log_v, case["reg"]), expected_lse, bound)
    assert_close(backend.col_lse(cost, log_u, case["reg"]), REFERENCE.col_lse(cost, log_u, case["reg"]), bound)
    arguments = (cost, log_u, log_v, case["reg"])
    assert_close(backend.panel(*arguments), REFERENCE.panel(*arguments), bound)
    nobody = torch.full_like(log_v, -math.inf)
    lse, col_mass = swept(backend, case, log_v=nobody)
    assert torch.isneginf(lse).all()
    assert (col_mass == 0.25).all()


def test_nan_costs_show():
    case = draw(1, 6, 20, torch.float32, 1e-2)
    case["cost"][0, 2, 3] = math.nan
    for table in TABLES.values():
        lse, col_mass = swept(TritonBackend(table), case)
        assert torch.isnan(lse[0]).tolist() == [row == 2 for row in range(6)]
        assert torch.isnan(col_mass[0, 3])


@pytest.mark.parametrize("table", ["small", "wide"])
def test_finite_costs_may_stand_for_forbidden_pairs(table):
    """At 1e9 and eps 1e-4 a float32 cost is known to 6e5 eps: such pairs get no answer, but spoil no other."""
    case = draw(1, 9, 33, torch.float32, 1e-4)
    case["cost"][0, 2] = 1e9
    case["cost"][0, :, 4] = 1e9
    lse, _ = swept(TritonBackend(TABLES[table]), case)
    expected_lse, _ = swept(REFERENCE, case)
    others = [row for row in range(9) if row != 2]
    assert_close(lse[:, others], expected_lse[:, others], tolerance(torch.float32, 1e-4))
    assert lse[0, 2] < -1e10
    case["offset"][0, 2] = -math.inf
    _, col_mass = swept(TritonBackend(TABLES[table]), case)
    _, expected_mass = swept(REFERENCE, case)
    assert_close(col_mass, expected_mass, tolerance(torch.float32, 1e-4))


def test_weak_columns_are_exact_where_asked_for():
    """Outlier columns whose sums underflow float32: `col_lse_masked` gives them, and only them."""
    case = draw(2, 24, 70, torch.float32, 1e-4)
    case["cost"][:, :, 40:50] += 8.0
    backend = TritonBackend(SMALL)
    lse, _ = swept(backend, case)
    log_u = log_scaling(case["offset"], case["damping"], lse)
    mask = torch.zeros(2, 70, dtype=torch.bool, device=DEVICE)
    mask[0, 40:50] = mask[1, 69] = True
    actual = backend.col_lse_masked(case["cost"], log_u, case["reg"], mask)
    expected = REFERENCE.col_lse(case["cost"], log_u, case["reg"])
    assert (actual[mask] - expected[mask]).abs().max() < tolerance(torch.float32, 1e-5)
    assert torch.isneginf(actual[~mask]).all()
    nothing = backend.col_lse_masked(case["cost"], log_u, case["reg"], torch.zeros_like(mask))
    assert torch.isneginf(nothing).all()


@pytest.mark.parametrize("table", list(TABLES))
def test_every_output_is_written(table, monkeypatch):
    """Memory handed out by torch is filled with NaN: what a kernel leaves unwritten would show."""
    case = draw(2, 19, 43, torch.float32, 1e-2)
    expected = swept(REFERENCE, case)
    mask = torch.arange(43, device=DEVICE).expand(2, -1) == 17
    new_empty, empty_like = Tensor.new_empty, torch.empty_like

    def poisoned(tensor: Tensor) -> Tensor:
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: poisoned(new_empty(self, *a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k)))
    backend = TritonBackend(TABLES[table])
    log_u = case["offset"]
    for actual, wanted in zip(swept(backend, case), expected, strict=True):
        assert_close(actual, wanted, 1e-5)
    for result in (backend.row_lse(case["cost"], case["log_v"], case["reg"]),
                   backend.col_lse(case["cost"], log_u, case["reg"]),
                   backend.col_lse_masked(case["cost"], log_u, case["reg"], mask),
                   backend.panel(case["cost"], log_u, case["log_v"], case["reg"])):
        assert not torch.isnan(result).any()


def test_same_bits_every_time():
    case = draw(2, 40, 50, torch.float32, 1e-3)
    for table in TABLES.values():
        first, second = swept(TritonBackend(table), case), swept(TritonBackend(table), case)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_blocks_of_rows_add_up():
    case = draw(2, 30, 41, torch.float32, 1e-2)
    backend = TritonBackend(SMALL)
    lse, col_mass = swept(backend, case)
    storage = torch.full((41, 2), 0.25, dtype=torch.float64, device=DEVICE)
    parts = [backend.sweep(**{**case, "cost": case["cost"][:, rows], "offset": case["offset"][:, rows]},
                           col_mass=storage.T) for rows in (slice(0, 11), slice(11, 30))]
    assert torch.equal(torch.cat(parts, 1), lse)
    assert_close(storage.T, col_mass, tolerance(torch.float32, 1e-2))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_nothing_to_do(shape):
    batch, n, m = shape
    cost = torch.zeros(shape, device=DEVICE)
    log_u, log_v, reg = (cost.new_zeros(size, dtype=torch.float64) for size in ((batch, n), (batch, m), batch))
    backend = TritonBackend()
    col_mass = torch.ones_like(log_v)
    lse = backend.sweep(cost, log_v, log_u, reg, reg, reg, col_mass)
    assert lse.shape == log_u.shape
    assert torch.isneginf(lse).all()
    assert (col_mass == 1).all()
    assert torch.isneginf(backend.col_lse(cost, log_u, reg)).all()
    assert backend.panel(cost, log_u, log_v, reg).shape == shape


@needs_gpu
@pytest.mark.parametrize("shape", [(1, 4096, 4096), (3, 1000, 777), (64, 512, 512), (1, 300, 20000)])
def test_full_sizes(shape):
    case = draw(*shape, torch.float32, 1e-3)
    for actual, expected in zip(swept(TritonBackend(), case), swept(REFERENCE, case), strict=True):
        assert_close(actual, expected, 4e-6)


@needs_gpu
def test_captured_without_synchronising():
    case = draw(1, 512, 640, torch.float32, 1e-3)
    backend = TritonBackend()
    col_mass = torch.zeros_like(case["log_v"])

    def step() -> Tensor:
        lse = backend.sweep(**case, col_mass=col_mass.zero_())
        log_u = log_scaling(case["offset"], case["damping"], lse)
        return backend.col_lse_masked(case["cost"], log_u, case["reg"], col_mass < 0.5)

    expected = step().clone()
    graph, found = captured(step)
    graph.replay()
    assert torch.equal(found, expected)


def test_why_not(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backend = TritonBackend()
    assert backend.why_not(torch.device("cpu"), torch.float32) == (
        "the triton backend needs a GPU; the cost is on the CPU")
    assert "float16" in str(backend.why_not(torch.device("cuda"), torch.float16))
    assert "mps" in str(backend.why_not(torch.device("mps"), torch.float32))
    monkeypatch.setattr(launches, "_kernels", lambda: (None, "triton cannot be imported (OSError: libcuda)"))
    assert backend.why_not(torch.device("cuda"), torch.float32) == "triton cannot be imported (OSError: libcuda)"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.undo()


def test_imports_without_triton():
    code = ("import sys; sys.modules['triton'] = None\n"
            "import torch; from uotlib.backends.triton import TritonBackend\n"
            "print(TritonBackend().why_not(torch.device('cuda'), torch.float32))")
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True,
                         check=True)
    assert run.stdout.startswith("triton cannot be imported (ModuleNotFoundError")
