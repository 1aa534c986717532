"""Anderson acceleration on chip: `uotlib.anderson` for one item, its history in a workspace that stays in cache.

The workspace holds ``2 DEPTH + 3`` vectors, ``pitch`` numbers apart: DEPTH differences of residuals and the last
residual, then as many differences of images and the last image, and the roots of the weights.
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
def push(history, pitch, slot, known, point, image, weight, points, inside, DEPTH: tl.constexpr):
    """Record that the iteration maps ``point`` to ``image``; a difference goes to ``slot`` if a last one is known.

    Returns the largest entry of that difference of images.
    """
    tl.store(history + (2 * DEPTH + 2) * pitch + points, tl.sqrt(weight), mask=inside)
    residual = image - point
    last = history + DEPTH * pitch + points
    last_image = last + (DEPTH + 1) * pitch
    size = tl.sum(tl.zeros_like(image), axis=0)
    if known > 0:
        step = residual - tl.load(last, mask=inside, other=0.0)
        image_step = tl.where(inside, image - tl.load(last_image, mask=inside, other=0.0), 0.0)
        tl.store(history + slot * pitch + points, step, mask=inside)
        tl.store(history + (DEPTH + 1 + slot) * pitch + points, image_step, mask=inside)
        size = tl.max(tl.abs(image_step), axis=0)
    tl.store(last, residual, mask=inside)
    tl.store(last_image, image, mask=inside)
    return size


@triton.jit
def products(history, pitch, count, first, last, DEPTH: tl.constexpr, SLOTS: tl.constexpr, STAGES: tl.constexpr):
    """Weighted products of the first ``count`` differences of residuals and the last residual, over these points."""
    slots = tl.arange(0, SLOTS)
    used = (slots < count) | (slots == DEPTH)
    gram = tl.zeros((SLOTS, SLOTS), tl.float64)
    for start in tl.range(first, last, CHUNK, num_stages=STAGES):
        chunk = start + tl.arange(0, CHUNK)
        root = tl.load(history + (2 * DEPTH + 2) * pitch + chunk, mask=chunk < last, other=0.0)
        some = tl.load(history + slots[:, None] * pitch + chunk[None, :], mask=used[:, None] & (chunk < last)[None, :],
                       other=0.0) * root[None, :]
        gram = tl.dot(some, tl.trans(some), gram, out_dtype=tl.float64)
    return gram


@triton.jit
def coefficients(gram, count, DEPTH: tl.constexpr, SLOTS: tl.constexpr):
    r"""gamma that minimises :math:`|\sqrt w\,(r - \Delta R\,\gamma)|` over the first ``count`` differences.

    Gauss-Jordan elimination of the normal equations of differences of length 1, the right-hand side as column DEPTH.
    """
    slots = tl.arange(0, SLOTS)
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
    return tl.sum(tl.where(slots[None, :] == DEPTH, gram, 0.0), axis=1) * scale


@triton.jit
def combination(history, pitch, gammas, count, points, inside, DEPTH: tl.constexpr, STAGES: tl.constexpr):
    """dG gamma of the first ``count`` differences of images; ``gammas`` is an address."""
    total = tl.zeros_like(points).to(tl.float64)
    for k in tl.range(0, count, num_stages=STAGES):
        image_step = tl.load(history + (DEPTH + 1 + k) * pitch + points, mask=inside, other=0.0)
        total += image_step * tl.load(gammas + k)
    return total


@triton.jit
def correction(history, pitch, count, points, inside, m, DEPTH: tl.constexpr, SLOTS: tl.constexpr):
    """dG gamma where one program has all m points: what acceleration takes from the last image."""
    gamma = coefficients(products(history, pitch, count, 0, m, DEPTH, SLOTS, 1), count, DEPTH, SLOTS)
    gammas = history + (2 * DEPTH + 3) * pitch
    tl.store(gammas + tl.arange(0, SLOTS), gamma)
    tl.debug_barrier()
    return combination(history, pitch, gammas, count, points, inside, DEPTH, 1)
