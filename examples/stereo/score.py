"""Scores of a match against the disparity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matching import Match
from .scene import Truth


@dataclass(frozen=True)
class Score:
    """
    Args:
        correct: Share of visible cells whose match is within one cell of the truth, along both axes.
        many_to_one: Cells, of the whole grid, that would have to give up their match for no two to share one.
        kept_visible, kept_occluded: Mean of (T1)_i / a_i over visible and over occluded cells; None without a plan.
        separation: Chance that a visible cell keeps a larger share than an occluded one (ties count half; 0.5 is
            chance); None without a plan.
    """

    correct: float
    many_to_one: int
    kept_visible: float | None = None
    kept_occluded: float | None = None
    separation: float | None = None


def is_correct(cell: np.ndarray, truth: Truth, within: int = 1) -> np.ndarray:
    """Whether each cell's match lies within so many cells of the true one (Chebyshev distance), (n,) bool."""
    row, column = np.divmod(cell, truth.grid)
    own_row = np.arange(truth.grid**2) // truth.grid
    return np.maximum(np.abs(row - own_row), np.abs(column - truth.column)) <= within


def score(match: Match, truth: Truth) -> Score:
    """All scores of one answer."""
    correct = float(is_correct(match.cell, truth)[truth.visible].mean())
    many = many_to_one(match.cell)
    if match.kept is None:
        return Score(correct, many)
    visible, occluded = match.kept[truth.visible], match.kept[truth.occluded]
    return Score(correct, many, float(visible.mean()), float(occluded.mean()), separation(visible, occluded))


def many_to_one(cell: np.ndarray) -> int:
    """Matches in excess of one for each right cell that is matched at all."""
    return len(cell) - len(np.unique(cell))


def separation(high: np.ndarray, low: np.ndarray) -> float:
    """Chance that a value of ``high`` exceeds one of ``low``, ties counted half: the area under the ROC curve."""
    order = np.sort(low)
    below = np.searchsorted(order, high, "left") + np.searchsorted(order, high, "right")
    return float(below.mean() / (2 * len(low)))


def constant_shift(truth: Truth) -> tuple[int, float]:
    """The best single shift of the whole image, chosen with the truth, and its share of correct cells: a yardstick."""
    column = np.arange(truth.grid**2) % truth.grid
    shares = [float((np.abs(column - shift - truth.column) <= 1)[truth.visible].mean()) for shift in range(truth.grid)]
    best = int(np.argmax(shares))
    return best, shares[best]
