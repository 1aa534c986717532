"""Times tiles of the kernels on this GPU and keeps the fastest: `python -m uotlib.kernels.tune` (a few minutes).

A candidate must compile, fit, and give the answers of the default table before its time counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..backends.triton import TritonBackend
from ..costs import CosineCost
from ..options import SolverOptions
from ..problem import build_problem
from . import tuned
from .tiles import Tile, TileTable

#: A candidate replaces a tile only if it takes at most this share of its time: noise is no reason.
WORTH = 0.97
#: Problem that a kernel is timed on: entries in all, and rows at most.
ENTRIES, ROWS = 1 << 24, 4096
#: Passes of a whole solve.
PASSES = 20
#: Columns of a factor, and features.
WIDTH, FEATURES = 32, 64
#: What `operation` has a call for; other tiles stay as they are.
KINDS = ("sweep", "merge", "small", "row", "column", "panel", "schur", "eliminate", "through", "back", "weigh",
         "product", "feature_lse", "feature_sums", "feature_weigh")

#: (name in the table, place in its tuple or None, table to time) -> microseconds; inf if it is wrong or does not fit.
Measure = Callable[[str, int | None, TileTable], float]


def candidates(tile: Tile) -> list[Tile]:
    """Neighbours of a tile: half and double the rows and the warps, and a stage less or more."""
    found = []
    for rows in (tile.rows // 2, tile.rows, 2 * tile.rows):
        for warps in (tile.warps // 2, tile.warps, 2 * tile.warps):
            for stages in (tile.stages - 1, tile.stages, tile.stages + 1):
                other = replace(tile, rows=rows, warps=warps, stages=stages,
                                per_sm=max(1, tile.per_sm * tile.warps // max(1, warps)))
                if rows and warps and stages and warps <= tuned.MOST_WARPS and other != tile:
                    found.append(other)
    return found


def search(table: TileTable, measure: Measure) -> TileTable:
    """The table with every tile replaced by its fastest neighbour that is worth it."""
    for name in tuned.TUNABLE:
        if name.removesuffix("_float64") not in KINDS:
            continue
        tiles = getattr(table, name)
        for place in range(len(tiles)) if isinstance(tiles, tuple) else (None,):
            tile = getattr(table, name) if place is None else getattr(table, name)[place]
            limit = WORTH * measure(name, place, table)
            for other in candidates(tile):
                changed = _with_tile(table, name, place, other)
                time = measure(name, place, changed)
                if time < limit:
                    table, limit = changed, WORTH * time
    return table


def _with_tile(table: TileTable, name: str, place: int | None, tile: Tile) -> TileTable:
    tiles: Any = tile
    if place is not None:
        before = getattr(table, name)
        tiles = (*before[:place], tile, *before[place + 1:])
    return replace(table, **{name: tiles})


class Stopwatch:
    """Measures on a device, by Triton's benchmark: a cold L2, the median, launches included."""

    def __init__(self, device: torch.device) -> None:
        from triton.testing import do_bench

        self.device, self.bench = device, do_bench

    def __call__(self, name: str, place: int | None, table: TileTable) -> float:
        dtype = torch.float64 if name.endswith("_float64") else torch.float32
        kind = name.removesuffix("_float64")
        tiles = getattr(TileTable(), name)
        width = tiles.cols if place is None else tiles[place].cols
        calls = [operation(kind, width, dtype, self.device, each) for each in (table, TileTable())]
        try:
            for actual, expected in zip(calls[0](), calls[1](), strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
            return 1e3 * float(self.bench(calls[0], warmup=10, rep=30, return_mode="median"))
        except Exception as failure:  # that it cannot be compiled or launched is what there is to know of a candidate
            print(f"{name} {place}: {type(failure).__name__}: {failure}"[:160], file=sys.stderr)
            return float("inf")


def operation(kind: str, width: int, dtype: torch.dtype, device: torch.device,
              table: TileTable) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the backend that runs the kernel of this kind, on a problem that its tile is meant for."""
    if kind.startswith("feature_"):
        return _feature_operation(kind, dtype, device, table)
    if kind in ("through", "back"):  # for rows that do not fit on chip
        table = replace(table, schur=(), schur_float64=())
    backend = TritonBackend(table)
    whole = kind in ("sweep", "small", "schur", "eliminate")
    m = width if whole else ROWS
    n = m if kind == "small" else ROWS
    batch = max(1, ENTRIES // (n * m))
    rng = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=rng, device=device, dtype=dtype)

    cost = drawn(n, m)
    problem = build_problem(cost, None, None, 0.1, 1.0, "kl")
    log_u, log_v, reg = problem.rows.log_mass, problem.cols.log_mass, problem.reg
    damping, shift = torch.full_like(reg, 0.9), torch.zeros_like(reg)
    rows, cols = torch.zeros_like(log_u), torch.zeros_like(log_v)  # log-scalings of an N of at most 1
    left, right, factor = drawn(n, 2), drawn(m, 2), drawn(m, WIDTH)

    def sweep() -> tuple[Tensor, ...]:
        col_mass = torch.zeros_like(log_v)
        return backend.sweep(cost, log_v, log_u, damping, reg, shift, col_mass), col_mass

    def small() -> tuple[Tensor, ...]:
        outcome = backend.solve(problem, cost, "auto", PASSES, 0, None, SolverOptions())
        assert outcome is not None
        return outcome.pair.f, outcome.pair.g

    def schur() -> tuple[Tensor, ...]:
        total = torch.zeros_like(cols)
        backend.schur(cost, rows, cols, torch.full_like(rows, float(m)), torch.ones_like(cols), reg, total)
        return (total,)

    def eliminate() -> tuple[Tensor, ...]:
        sums = cols.new_zeros(batch, 3, m)
        return backend.eliminate(cost, rows, cols, torch.ones_like(rows), torch.ones_like(cols), torch.ones_like(rows),
                                 torch.ones_like(reg), reg, sums), sums

    def weigh() -> tuple[Tensor, ...]:
        row_sum, col_sum, out = torch.empty_like(rows), torch.zeros_like(cols), torch.empty_like(cost)
        backend.weigh(cost, rows, cols, reg, left, right, row_sum, col_sum, out=out)
        return row_sum, col_sum, out

    def product() -> tuple[Tensor, ...]:
        total = cost.new_zeros(batch, n, WIDTH)
        backend.weigh(cost, rows, cols, reg, left, right, None, None, factor=factor, product=total)
        return (total,)

    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "sweep": sweep, "merge": sweep, "small": small, "schur": schur, "through": schur, "back": schur,
        "eliminate": eliminate, "weigh": weigh, "product": product,
        "row": lambda: (backend.row_lse(cost, log_v, reg),),
        "column": lambda: (backend.col_lse(cost, log_u, reg),),
        "panel": lambda: (backend.panel(cost, log_u, log_v, reg),)}
    return calls[kind]


def _feature_operation(kind: str, dtype: torch.dtype, device: torch.device,
                       table: TileTable) -> Callable[[], tuple[Tensor, ...]]:
    """The same of a kernel that streams features: cosines of unit vectors, in the precision of eps 1e-3."""
    rng = torch.Generator(device).manual_seed(0)
    x, z, factor = (torch.randn(1, ROWS, depth, generator=rng, device=device, dtype=dtype)
                    for depth in (FEATURES, FEATURES, WIDTH))
    reg = torch.full((1,), 0.1, dtype=torch.float64, device=device)
    precision = "float64" if dtype == torch.float64 else "bf16x6"
    features = TritonBackend(table).features(CosineCost(x, z).prepare(dtype, 1e-3), dtype, precision)
    log_x = torch.zeros(1, ROWS, dtype=torch.float64, device=device)

    def weigh() -> tuple[Tensor, ...]:
        found = features.weigh(log_x, log_x, reg, factor=factor)
        assert found.product is not None  # there was a factor
        return found.row_sum, found.product

    calls: dict[str, Callable[[], tuple[Tensor, ...]]] = {
        "feature_lse": lambda: (features.lse(log_x, reg),),
        "feature_sums": lambda: (features.weigh(log_x, log_x, reg).row_sum,), "feature_weigh": weigh}
    return calls[kind]


def main() -> int:
    argparse.ArgumentParser(prog="python -m uotlib.kernels.tune", description=__doc__).parse_args()
    if not torch.cuda.is_available():
        print("uotlib.kernels.tune needs a GPU, and torch sees none here", file=sys.stderr)
        return 2
    import triton

    device = torch.device("cuda")
    path = tuned.save(search(TileTable(), Stopwatch(device)), torch.cuda.get_device_name(device), triton.__version__)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
