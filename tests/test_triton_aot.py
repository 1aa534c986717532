"""The Triton kernels as machine code, compiled here without a GPU: what fits, what spills, how wide the loads are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uotlib.kernels.tiles import TileTable, slab_layout

triton = pytest.importorskip("triton", reason="needs triton: pip install triton")

ROOT = Path(__file__).parents[1]
#: Bytes of shared memory of one multiprocessor, and of one program, by compute capability (CUDA programming guide).
SHARED = {"80": (164 << 10, 163 << 10), "90": (228 << 10, 227 << 10), "100": (228 << 10, 227 << 10)}
#: The same of an AMD compute unit.
LDS = 64 << 10
RESERVED = 1 << 10
REGISTERS = 65536
#: Bytes on a thread's stack that kernels may take: none, but where an older compiler is known to leave some.
STACK = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else 48
#: Kernels that read the cost, which must be read 16 bytes at a time where it can be.
READERS = ("sweep_kernel", "row_lse_kernel", "col_lse_kernel", "col_mass_kernel", "panel_kernel", "schur_kernel",
           "eliminate_kernel", "through_kernel", "back_kernel", "weigh_kernel", "small_solve_kernel")
NAMES = {*READERS, "block_min_kernel", "merge_columns_kernel", "merge_col_lse_kernel"}
#: Kernels of whole solves, for costs of the solver's type; between passes they know nothing of the storage.
SOLVES = {"small_solve_kernel", "begin_kernel", "marginals_kernel", "log_u_kernel", "measure_kernel", "decide_kernel",
          "move_kernel", "complete_kernel", "certify_kernel"}


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """Rows of `benchmarks.gpu.resources`, from a process in which kernels are compiled and not interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-m", "benchmarks.gpu.resources", "--json", *arguments], cwd=ROOT,
                         env=environment, capture_output=True, text=True, timeout=580, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("targets", "only"), [("90", "float32"), ("90", "float64"), ("90", "float16"), ("80", "brief"),
                                               ("100", "brief")])
def test_kernels_fit_their_multiprocessor(targets, only):
    rows = compiled("--targets", targets, "--only", only)
    assert {row["kernel"] for row in rows} >= (NAMES - SOLVES if only == "float16" else NAMES | SOLVES)
    assert_fit(rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_compile_for_amd():
    rows = compiled("--targets", "gfx942", "--only", "brief")
    assert {row["kernel"] for row in rows} >= NAMES | SOLVES
    for row in rows:
        assert row["local"] == 0, f"spills: {row}"
        assert row["shared"] <= LDS, f"too much local memory: {row}"
        if row["kernel"] in READERS:
            assert row["wide_loads"] > 0, f"no 16-byte loads: {row}"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90", "100"])
def test_kernels_of_features_fit_and_use_tensor_cores(target):
    rows = compiled("--targets", target, "--only", "features")
    assert {row["kernel"] for row in rows} == {"feature_lse_kernel", "feature_weigh_kernel"}
    assert_fit(rows)
    for row in rows:
        assert row["wide_loads"] > 0, f"no 16-byte loads: {row}"
        assert (row["products"] > 0) == ("float32" not in row["variant"]), f"tensor cores: {row}"


def assert_fit(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        whole, one = SHARED[row["target"]]
        assert row["stack"] <= STACK, f"spills: {row}"
        assert row["local"] == 0, f"spills: {row}"
        assert row["shared"] <= one, f"too much shared memory: {row}"
        assert row["registers"] * 32 * row["warps"] * row["per_sm"] <= REGISTERS, f"too many registers: {row}"
        assert (row["shared"] + RESERVED) * row["per_sm"] <= whole, f"too much shared memory together: {row}"
        if row["kernel"] in READERS and row["aligned"]:
            assert row["wide_loads"] > 0, f"no 16-byte loads: {row}"


@pytest.mark.parametrize("double", [False, True])
def test_the_narrowest_sufficient_tile_is_taken(double):
    table = TileTable()
    widths = [tile.cols for tile in (table.sweep_float64 if double else table.sweep)]
    assert [table.sweep_tile(width, double).cols for width in widths] == widths
    assert [table.sweep_tile(width + 1, double).cols for width in widths[:-1]] == widths[1:]
    assert table.sweep_tile(widths[-1] + 1, double) is None


@pytest.mark.parametrize("batch", [1, 3, 64, 1000])
@pytest.mark.parametrize("n", [1, 31, 512, 4096, 70001])
@pytest.mark.parametrize("multiprocessors", [1, 108, 132])
def test_slabs_cover_the_rows_and_fill_the_device(batch, n, multiprocessors):
    for tile in TileTable().sweep:
        slabs, rows = slab_layout(batch, n, tile, multiprocessors, 1, 512)
        assert (slabs - 1) * rows < n <= slabs * rows
        assert rows % tile.rows == 0
        assert rows <= 512
        room = multiprocessors * tile.per_sm
        assert batch * slabs <= max(room, batch * -(-n // 512))
