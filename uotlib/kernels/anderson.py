r"""Anderson acceleration on chip: `uotlib.anderson` for one item, its history in a workspace that stays in cache.

The workspace holds ``2 DEPTH + 3`` vectors of m: DEPTH differences of residuals and the last residual, then as many
differences of images and the last image, and the roots of the weights; then SLOTS numbers.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl

#: Added to the unit diagonal of the scaled normal equations.
RIDGE = tl.constexpr(1e-10)
#: Columns of the history that are multiplied at a time: what registers hold of both operands.
CHUNK = tl.constexpr(32)


@triton.jit
def push(history, slot, known, point, image, weight, points, m, DEPTH: tl.constexpr):
    """Record that the iteration maps ``point`` to ``image``; a difference goes to ``slot`` if a last one is known."""
    tl.store(history + (2 * DEPTH + 2) * m + points, tl.sqrt(weight), mask=points < m)
    residual = image - point
    inside = points < m
    last = history + DEPTH * m + points
    last_image = last + (DEPTH + 1) * m
    if known > 0:
        step = residual - tl.load(last, mask=inside, other=0.0)
        image_step = image - tl.load(last_image, mask=inside, other=0.0)
        tl.store(history + slot * m + points, step, mask=inside)
        tl.store(history + (DEPTH + 1 + slot) * m + points, image_step, mask=inside)
    tl.store(last, residual, mask=inside)
    tl.store(last_image, image, mask=inside)


@triton.jit
def correction(history, count, points, m, DEPTH: tl.constexpr, SLOTS: tl.constexpr):
    r"""dG gamma, where gamma minimises :math:`|\sqrt w\,(r - \Delta R\,\gamma)|` over the first ``count`` differences.

    Gauss-Jordan elimination of the normal equations of differences of length 1, the right-hand side as column DEPTH.
    """
    slots = tl.arange(0, SLOTS)
    used = (slots < count) | (slots == DEPTH)
    gram = tl.zeros((SLOTS, SLOTS), tl.float64)
    for start in tl.range(0, m, CHUNK, num_stages=1):
        chunk = start + tl.arange(0, CHUNK)
        root = tl.load(history + (2 * DEPTH + 2) * m + chunk, mask=chunk < m, other=0.0)
        some = tl.load(history + slots[:, None] * m + chunk[None, :], mask=used[:, None] & (chunk < m)[None, :],
                       other=0.0) * root[None, :]
        gram = tl.dot(some, tl.trans(some), gram, out_dtype=tl.float64)
    diagonal = slots[:, None] == slots[None, :]
    square = tl.sum(tl.where(diagonal, gram, 0.0), axis=0)
    usable = (slots < count) & (square > 0.0)
    scale = tl.where(usable, 1.0 / tl.sqrt(tl.where(usable, square, 1.0)), 0.0)
    unit = tl.where(slots == DEPTH, 1.0, scale)
    gram = gram * unit[:, None] * unit[None, :] + tl.where(diagonal, tl.where(usable, RIDGE, 1.0)[None, :], 0.0)
    for k in tl.range(0, count, num_stages=1):
        row = tl.sum(tl.where(slots[:, None] == k, gram, 0.0), axis=0)
        column = tl.sum(tl.where(slots[None, :] == k, gram, 0.0), axis=1)
        pivot = tl.sum(tl.where(slots == k, row, 0.0), axis=0)
        # Row k is divided by the pivot, the others are cleared.
        factor = tl.where(slots == k, column - 1.0, column) / pivot
        gram -= factor[:, None] * row[None, :]
    gammas = history + (2 * DEPTH + 3) * m
    tl.store(gammas + slots, tl.sum(tl.where(slots[None, :] == DEPTH, gram, 0.0), axis=1) * scale)
    tl.debug_barrier()
    total = tl.zeros_like(points).to(tl.float64)
    for k in tl.range(0, count, num_stages=1):
        image_step = tl.load(history + (DEPTH + 1 + k) * m + points, mask=points < m, other=0.0)
        total += image_step * tl.load(gammas + k)
    return total
