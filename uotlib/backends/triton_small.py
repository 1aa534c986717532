"""Whole solves of small problems, one program each: when they can be had, and what `small_solve_kernel` is called with.

The launch reads nothing back: with ``tol = 0`` or without, nothing waits for the device, and a CUDA graph can hold it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..kernels.tiles import Tile, TileTable
from ..outcome import SCALARS, StoredOutcome

if TYPE_CHECKING:
    from ..options import SolverOptions
    from ..problem import Problem

#: A kernel cannot be interrupted, and counts in 32 bits: longer solves go pass by pass.
MAX_PASSES = 1 << 20
#: Stands for no tol, or 0; any number but 0, whose bits are a 32-bit integer and would be compiled for again.
DEFAULT_TOL = -1.0
#: Longest histories that the kernel has room for.
MAX_DEPTH, MAX_ORDER = 15, 7
#: Width of the normal equations on chip: the history and the right-hand side, at least what a matrix product takes.
MIN_SLOTS = 16


@dataclass(frozen=True)
class SmallSolve:
    """A launch to be made, and the outcome that it will write."""

    programs: int
    tile: Tile
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    outcome: StoredOutcome


def tile_for(table: TileTable, cost: Tensor, batch: int, max_iter: int, tol: float | None,
             options: SolverOptions) -> Tile | None:
    """How a solve runs in one launch, or None for what goes pass by pass.

    That is: sizes beyond the table's (256 points), costs kept in 16 bits, an empty batch, progress reports while
    ``tol > 0``, more than `MAX_PASSES` passes, and histories longer than `MAX_DEPTH` and `MAX_ORDER`.
    """
    reports = options.progress is not False and tol != 0
    if (reports or batch == 0 or cost.dtype.itemsize < 4 or max_iter > MAX_PASSES or options.anderson_depth > MAX_DEPTH
            or options.anneal_order > MAX_ORDER):
        return None
    return table.small_tile(max(cost.shape[1:]), cost.dtype == torch.float64)


def small_solve(tile: Tile, problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
                init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> SmallSolve:
    """See `uotlib.backends.base.Backend.solve`."""
    batch, (_, n, m) = problem.batch, cost.shape
    rows, cols = problem.rows, problem.cols
    answers = torch.empty(batch * (3 * n + 3 * m + SCALARS), dtype=torch.float64, device=cost.device)
    constants = constants_of(method, problem.reg_type, tol, options)
    kept = (2 * options.anderson_depth + 5 + options.anneal_order) * m + options.anneal_order + 1 + constants["SLOTS"]
    work = answers.new_empty(batch * kept)
    vectors = (rows.mass, rows.log_mass, rows.penalty.tau, cols.mass, cols.log_mass, cols.penalty.tau, problem.reg,
               None if init is None else init[1])
    arguments = (cost, problem.cost_items, *(None if vector is None else vector.contiguous() for vector in vectors),
                 answers, work, cost.stride(0), cost.stride(1), n, m, batch, max_iter, bits_of(tol or DEFAULT_TOL))
    return SmallSolve(batch, tile, arguments, constants, StoredOutcome(answers, batch, n, m))


def constants_of(method: str, reg_type: str, tol: float | None, options: SolverOptions) -> dict[str, Any]:
    """What the kernel is compiled for, beside its tile: one compilation for each set of options in use."""
    depth = int(options.anderson_depth)
    return {
        "TEXTBOOK": method == "sinkhorn", "ENTROPY": reg_type == "entropy", "SYNCHRONOUS": tol != 0,
        "CHECK_EVERY": count(options.looks_every(asynchronous=False)), "ANNEAL_START": float(options.anneal_start),
        "ANNEAL_FACTOR": float(options.anneal_factor), "ANNEAL_VIOLATION": float(options.anneal_violation),
        "ANNEAL_ACCURACY": float(options.anneal_accuracy), "ANNEAL_ORDER": int(options.anneal_order),
        "ANNEAL_PASSES": count(options.anneal_passes), "DEPTH": depth,
        "ANDERSON_START": count(options.anderson_start), "SAFEGUARD": float(options.safeguard),
        "BACKTRACK": float(options.backtrack), "TRUST_REGION": float(options.trust_region),
        "SLOTS": max(MIN_SLOTS, 1 << depth.bit_length())}


def count(passes: int) -> int:
    """As the kernel's 32 bits hold it: more than any solve takes means the same."""
    return min(int(passes), 2 * MAX_PASSES)


def bits_of(number: float) -> int:
    """A float64 as the integer of its bits."""
    return struct.unpack("<q", struct.pack("<d", number))[0]
