"""Tile shapes of every kernel, in one table.  Pure Python: importable without Triton.

The rules behind the numbers (none of them tuned on a GPU yet; `python -m benchmarks.gpu` times the alternatives):

* a warp reads 128 consecutive float32 (16 bytes a lane), so a tile of ``cols`` columns wants ``cols / 128`` warps;
* a tile of about 32 KiB and three stages keep some 64 KiB in flight a program, 128 KiB an SM with two programs:
  over four times what latency times bandwidth asks of one SM (4.3 TB/s x 0.7 us / 132 = 23 KiB);
* several rows a tile, because the row reductions cross warps and cost two barriers a tile whatever its height;
* two programs an SM, so that one computes while the other waits at its barrier;
* no spills within the registers that so many programs leave each thread (tests/test_triton_aot.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

#: Chunks of a vector whose partial results every program adds up by itself.
STEP_CHUNKS = 64


@dataclass(frozen=True)
class Tile:
    """A block of the cost on chip, and how many warps and pipeline stages work on it."""

    rows: int
    cols: int
    warps: int
    stages: int = 3
    #: Programs meant to share a multiprocessor; with the device it fixes the number of row slabs.
    per_sm: int = 2

    @property
    def registers(self) -> int:
        """Registers a thread may take so that ``per_sm`` programs fit a multiprocessor (NVIDIA: 65536, at most 255)."""
        return min(255, 65536 // (32 * self.warps * self.per_sm) // 8 * 8)  # they are given out by eights

    @property
    def spread(self) -> Tile:
        """The same by twice the warps, no more to a multiprocessor: each thread has half as much to keep."""
        if self.per_sm == 1:
            return self
        return Tile(self.rows, self.cols, 2 * self.warps, self.stages, self.per_sm // 2)


def _sweep_float32() -> tuple[Tile, ...]:
    return (
        Tile(8, 128, warps=1, per_sm=16),
        Tile(8, 256, warps=2, per_sm=8),
        Tile(8, 512, warps=4, per_sm=4),
        Tile(8, 1024, warps=8),
        Tile(4, 2048, warps=8),
        Tile(2, 4096, warps=8),
        # 32 warps: with 16, loads that are not 16 bytes wide spill.
        Tile(1, 8192, warps=32, per_sm=1),
    )


def _sweep_float64() -> tuple[Tile, ...]:
    return (
        Tile(4, 128, warps=1, per_sm=16),
        Tile(4, 256, warps=2, per_sm=8),
        Tile(4, 512, warps=4, per_sm=3),
        Tile(4, 1024, warps=8),
        Tile(2, 2048, warps=8),
        Tile(1, 4096, warps=16, per_sm=1),
    )


def _small_float32() -> tuple[Tile, ...]:
    return (
        Tile(8, 32, warps=1, stages=1, per_sm=8),
        Tile(16, 64, warps=2, stages=1, per_sm=4),
        Tile(8, 128, warps=4, stages=1, per_sm=2),
        Tile(16, 256, warps=8, stages=1, per_sm=1),
    )


def _small_float64() -> tuple[Tile, ...]:
    return (
        Tile(4, 32, warps=1, stages=1, per_sm=8),
        Tile(4, 64, warps=2, stages=1, per_sm=4),
        Tile(8, 128, warps=4, stages=1, per_sm=2),
        Tile(8, 256, warps=8, stages=1, per_sm=1),
    )


def _schur_float32() -> tuple[Tile, ...]:
    # As they are, Triton 3.6 spills from 256 to 1024 columns, and loads of 4 bytes at 4096 (3.9 too); at 8192 loads of
    # 2 bytes would.
    def lighter(tile: Tile) -> Tile:
        return tile if tile.cols < 256 else replace(tile, rows=4) if tile.cols <= 1024 else tile.spread

    return tuple(lighter(tile) for tile in _sweep_float32() if tile.cols <= 4096)


def _schur_float64() -> tuple[Tile, ...]:
    # Without the spread, 2048 columns spill.
    return tuple(tile.spread if tile.cols >= 2048 else tile for tile in _sweep_float64())


def _eliminate_float32() -> tuple[Tile, ...]:
    # Six vectors of columns in registers where the sweep has three.
    return (
        Tile(8, 128, warps=1, per_sm=8),
        Tile(8, 256, warps=2, per_sm=4),
        Tile(8, 512, warps=4, per_sm=2),
        Tile(4, 1024, warps=8, per_sm=1),
        Tile(2, 2048, warps=8, per_sm=1),
        Tile(1, 4096, warps=16, per_sm=1),
    )


def _eliminate_float64() -> tuple[Tile, ...]:
    return (
        Tile(4, 128, warps=1, per_sm=8),
        Tile(4, 256, warps=2, per_sm=4),
        Tile(2, 512, warps=4, per_sm=2),
        Tile(2, 1024, warps=8, per_sm=1),
        Tile(1, 2048, warps=8, per_sm=1),
    )


@dataclass(frozen=True)
class TileTable:
    """Every tile of one backend.  ``*_float64`` holds what float64 costs use instead."""

    #: The whole row on chip: the smallest tile that holds it is taken; wider rows are read twice.
    sweep: tuple[Tile, ...] = field(default_factory=_sweep_float32)
    sweep_float64: tuple[Tile, ...] = field(default_factory=_sweep_float64)
    #: The same with three column sums.
    schur: tuple[Tile, ...] = field(default_factory=_schur_float32)
    schur_float64: tuple[Tile, ...] = field(default_factory=_schur_float64)
    eliminate: tuple[Tile, ...] = field(default_factory=_eliminate_float32)
    eliminate_float64: tuple[Tile, ...] = field(default_factory=_eliminate_float64)
    #: Row log-sum-exp: eight rows share one load of log_v, which at 8 bytes an entry is twice a row of the cost.
    row: Tile = Tile(8, 1024, warps=8)
    row_float64: Tile = Tile(4, 1024, warps=8)
    #: Products with a vector along the rows: its entries are prefetched too; sm_80 has room for two stages.
    through: Tile = Tile(8, 1024, warps=8, stages=2)
    through_float64: Tile = Tile(4, 1024, warps=8, stages=2)
    #: Column reductions: every thread owns whole columns, so a tile has no reduction across threads.
    column: Tile = Tile(8, 512, warps=4, per_sm=4)
    column_float64: Tile = Tile(4, 512, warps=4, per_sm=4)
    #: The same with three sums.
    back: Tile = Tile(8, 512, warps=4, per_sm=2)
    back_float64: Tile = Tile(4, 512, warps=4, per_sm=3)
    #: Plan entries are independent; 32 elements a thread hide the latency without a loop.
    panel: Tile = Tile(8, 512, warps=4, stages=1, per_sm=4)
    panel_float64: Tile = Tile(4, 512, warps=4, stages=1, per_sm=4)
    #: W where it is made entry by entry: square, so that neither side's vectors and sums cost more than the other's.
    weigh: Tile = Tile(64, 32, warps=8, stages=2)
    weigh_float64: Tile = Tile(32, 32, warps=8, stages=2)
    #: W with products of tiles, whose operands stay in registers, split in two for tensor cores.
    product: Tile = Tile(32, 32, warps=4, stages=2)
    product_float64: Tile = Tile(32, 16, warps=4, stages=2)
    #: Merging the slabs' partial columns: rows are slabs, cols are columns.  Narrow, to give every SM some columns.
    merge: Tile = Tile(32, 32, warps=4, stages=1)
    #: Whole solves: a problem of at most ``cols`` points a side in one program.  Few rows a tile: the state of the
    #: solve takes most of the registers.
    small: tuple[Tile, ...] = field(default_factory=_small_float32)
    small_float64: tuple[Tile, ...] = field(default_factory=_small_float64)
    #: The work on vectors between passes: cols are points of a program, rows are partial results that are added at a
    #: time.  Small chunks give every SM some; where there are very many, adding them up would take longest.
    step: tuple[Tile, ...] = (Tile(64, 256, warps=4, per_sm=2), Tile(64, 1024, warps=8, per_sm=1))
    #: Streamed features, log-sum-exps and sums with a vector: 256 threads with half the registers of a multiprocessor
    #: each.  A square tile of 128 would read half as much from L2, and spills.
    feature_lse: Tile = Tile(128, 64, warps=8, per_sm=1)
    feature_lse_float64: Tile = Tile(64, 32, warps=8, stages=2, per_sm=1)
    feature_sums: Tile = Tile(128, 32, warps=8, per_sm=1)
    feature_sums_float64: Tile = Tile(64, 32, warps=8, stages=2, per_sm=1)
    #: The same with factors of a weight or a product, which have accumulators and operands of their own.
    feature_weigh: Tile = Tile(64, 32, warps=8, stages=2, per_sm=1)
    feature_weigh_float64: Tile = Tile(64, 16, warps=8, stages=2, per_sm=1)
    #: Most columns of a factor that one program multiplies a weighted plan by.
    feature_width: int = 32
    #: Slabs are no longer than this, so that float32 column sums add at most this many terms before float64 does.
    slab_rows: int = 512

    def sweep_tile(self, m: int, double: bool) -> Tile | None:
        """The tile that holds a row of ``m`` entries on chip, or None if none does."""
        return _narrowest(self.sweep_float64 if double else self.sweep, m)

    def small_tile(self, points: int, double: bool) -> Tile | None:
        """The tile for whole solves of up to ``points`` a side, or None if none is wide enough."""
        return _narrowest(self.small_float64 if double else self.small, points)

    def step_tile(self, points: int) -> Tile:
        """The tile for vectors of so many points: the first that cuts them in at most `STEP_CHUNKS`, or the last."""
        fitting = (tile for tile in self.step if points <= STEP_CHUNKS * tile.cols)
        return next(fitting, self.step[-1])

    def schur_tile(self, m: int, double: bool) -> Tile | None:
        """The same for a product of the adjoint."""
        return _narrowest(self.schur_float64 if double else self.schur, m)

    def eliminate_tile(self, m: int, double: bool) -> Tile | None:
        """The same for the pass with three column sums."""
        return _narrowest(self.eliminate_float64 if double else self.eliminate, m)


def _narrowest(tiles: tuple[Tile, ...], width: int) -> Tile | None:
    return min((tile for tile in tiles if tile.cols >= width), key=lambda tile: tile.cols, default=None)


def feature_depth(d: int) -> tuple[int, int]:
    """(padded number of features, those in one product of tiles).

    Products of 32: longer ones spill, and add up more of the rounding of tensor cores (`uotlib.precision`).
    """
    chunk = 16 if d <= 16 else 32
    return max(chunk, -(-d // chunk) * chunk), chunk


def slab_layout(batch: int, n: int, tile: Tile, multiprocessors: int, columns: int, longest: int) -> tuple[int, int]:
    """(slabs, rows a slab) that split the rows of each item: about ``per_sm`` programs a multiprocessor in all.

    ``columns`` is the number of column blocks that share the slabs.  Depends on shapes and the device only, so that
    sums are merged in the same order every time.
    """
    wanted = max(1, multiprocessors * tile.per_sm // max(1, batch * columns))
    rows = min(max(1, -(-n // wanted)), longest)
    rows = -(-rows // tile.rows) * tile.rows
    return -(-n // rows), rows


def span_layout(programs: int, other: int, tile: Tile, multiprocessors: int) -> tuple[int, int]:
    """(spans, tiles a span) that split the other side of so many programs: ``per_sm`` a multiprocessor in all."""
    tiles = max(1, -(-other // tile.cols))
    span = -(-tiles // max(1, multiprocessors * tile.per_sm // max(1, programs)))
    return -(-tiles // span), span
