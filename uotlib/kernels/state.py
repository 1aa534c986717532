"""Where the numbers of a solve lie between its passes: vectors of columns and of rows, and numbers of each problem.

A plane holds one vector of every problem still at work, (A, m) or (A, n), float64, and begins at a multiple of 16 bytes
(`pitch_of`), so that a launch on any plane is the same compiled kernel.  Where two planes follow one another, the pass
writes that of its parity, and the other is the pass's before.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

from .numerics import item_index

#: Planes of columns.  REACHED and COL_REACH are flags: whether the column's potential has been finite so far, and
#: whether a row with mass may reach it.  WEIGHT is log v as passes over streamed features take it, less beta / eps.
G, LOG_V, COL_LSE, ANSWER, REACHED, COL_REACH, MASS_B, LOG_B, WEIGHT, BEST_ANSWER = (
    tl.constexpr(0), tl.constexpr(2), tl.constexpr(4), tl.constexpr(6), tl.constexpr(7), tl.constexpr(8),
    tl.constexpr(9), tl.constexpr(10), tl.constexpr(11), tl.constexpr(12))
#: The ends of the annealing's levels follow, and behind them what `anderson` keeps.
ENDS = tl.constexpr(13)

#: Planes of rows.  OFFSET is used in the convention "entropy" alone, where it changes with eps.
ROW_LSE, LOG_U, ROW_REACH, MASS_A, LOG_A, OFFSET, ROW_WEIGHT = (
    tl.constexpr(0), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(6),
    tl.constexpr(7))
ROW_PLANES = 8

#: Numbers of a problem that kernels of other grids read, (NUMBERS, A).
EPS, DAMPING, SHIFT, REG, TAU_A, TAU_B, FIRST_EPS, SPREAD, VIOLATION, DONE = (
    tl.constexpr(0), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5), tl.constexpr(6),
    tl.constexpr(7), tl.constexpr(8), tl.constexpr(9), tl.constexpr(10))
NUMBERS = 11

#: Numbers that every program of a problem keeps a copy of, (A, chunks, own_size): all write the same, but for LOST,
#: whether a point of the chunk is, and SIZES, the largest entry of each difference of images there.
OWN_EPS, LOST, CONFIRMING, BEST, RECORD, RECORD_PASS = (
    tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5))
LEVEL_PASS, KNOWN, END_SLOT, SLOT, COUNT, HAS_LAST, ACCELERATES = (
    tl.constexpr(6), tl.constexpr(7), tl.constexpr(8), tl.constexpr(9), tl.constexpr(10), tl.constexpr(11),
    tl.constexpr(12))
#: SIZES and the coefficients of the acceleration, SLOTS each, then the eps of the levels' ends.
SIZES = tl.constexpr(13)

#: Sums of a pass over each chunk, (SUMS, A, chunks).
ROW_DEVIATION, ROW_MASS, ROW_TOTAL, ROW_SIZE, COL_DEVIATION, COL_MASS, COL_TOTAL, COL_SIZE, ANY_LOST = (
    tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5),
    tl.constexpr(6), tl.constexpr(7), tl.constexpr(8))
SUMS = 9


@triton.jit
def place_of(chunks, BLOCK: tl.constexpr):
    """(problem, chunk, its points)."""
    program = tl.program_id(0)
    chunk = program % chunks
    return (program // chunks).to(tl.int64), chunk, chunk * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def pitch_of(count, points):
    """From one plane to the next, in numbers: even."""
    return (count.to(tl.int64) * points + 1) // 2 * 2


@triton.jit
def own_numbers(copies, OWN: tl.constexpr):
    """Where the program keeps its copy of the problem's numbers."""
    return copies + tl.program_id(0).to(tl.int64) * OWN


@triton.jit
def own_problem(rows, cols, n, m, count, b, points):
    """(planes of rows and columns from this problem on, how far they are apart, which points are rows, and columns)."""
    row_pitch, col_pitch = pitch_of(count, n), pitch_of(count, m)
    return rows + b * n, cols + b * m, row_pitch, col_pitch, points < n, points < m


@triton.jit
def write_weights(cols, col_pitch, parity, log_v, beta, items, b, m, eps, points, inside):
    """log v of the next pass, and as the sweep of streamed features takes it."""
    tl.store(cols + (LOG_V + 1 - parity) * col_pitch + points, log_v, mask=inside)
    if beta is not None:
        own_beta = tl.load(beta + item_index(items, b) * m + points, mask=inside, other=0.0)
        tl.store(cols + WEIGHT * col_pitch + points, log_v - own_beta / eps, mask=inside)
