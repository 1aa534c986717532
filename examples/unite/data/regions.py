"""Points of a region of a picture, (H, W) bool: each is (row, column), or None where the region is empty."""

from __future__ import annotations

import numpy as np

Point = tuple[float, float]


def middle(region: np.ndarray) -> Point | None:
    """The mean of all positions."""
    rows, columns = np.nonzero(region)
    return (float(rows.mean()), float(columns.mean())) if rows.size else None


def top(region: np.ndarray) -> Point | None:
    """The middle of the highest row."""
    rows, columns = np.nonzero(region)
    return (float(rows.min()), float(columns[rows == rows.min()].mean())) if rows.size else None


def bottom(region: np.ndarray) -> Point | None:
    """The middle of the lowest row."""
    rows, columns = np.nonzero(region)
    return (float(rows.max()), float(columns[rows == rows.max()].mean())) if rows.size else None


def sides(region: np.ndarray) -> tuple[Point | None, Point | None]:
    """The middles of the leftmost and of the rightmost column."""
    rows, columns = np.nonzero(region)
    if not rows.size:
        return None, None
    left, right = ((float(rows[columns == x].mean()), float(x)) for x in (columns.min(), columns.max()))
    return left, right
