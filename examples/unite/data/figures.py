"""Figures of points: landmarks joined by lines, and the stick figure of a body's joints.

Points are (row, column) in the picture's pixels; one that is hidden is None, and what would hang on it is not drawn.
``scale`` is the side of the network's pictures over 256, at which radii and widths are given.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np

from .lines import distance
from .regions import Point

#: Numbers of the points that are joined.
Limbs = Sequence[tuple[int, int]]
#: Of a stick figure at 256 px: radius of a joint's disc, half of a limb's width.
JOINT_RADIUS, LIMB_RADIUS = 4, 4
#: What a limb of a stick figure is mixed with what it covers.
_LIMB_OPACITY = 0.6


def landmark_picture(points: Sequence[Point | None], limbs: Limbs, side: int, scale: float) -> np.ndarray:
    """Discs and the lines between them, each in a hue of its own, (3, side, side) in [0, 1]."""
    radius, width = _landmark_sizes(scale)
    picture = np.zeros((3, side, side), dtype=np.float32)
    for i, (start, end) in enumerate(limbs):
        if points[start] is not None and points[end] is not None:
            picture[:, segment(points[start], points[end], width, side)] = 0.6 * _hue(i, len(limbs))[:, None]
    for i, point in enumerate(points):
        if point is not None:
            picture[:, disc(point, radius, side)] = _hue(i, len(points))[:, None]
    return picture


def landmark_distances(points: Sequence[Point | None], side: int, scale: float) -> np.ndarray:
    """Distance (`lines.distance`) from the disc of each point, (points, side, side)."""
    radius, _ = _landmark_sizes(scale)
    nowhere = np.zeros((side, side), dtype=bool)
    return np.stack([distance(nowhere if point is None else disc(point, radius, side), scale) for point in points])


def _landmark_sizes(scale: float) -> tuple[float, float]:
    return max(4 * scale, 1.5), max(2 * scale, 0.75)


def stick_figure(points: Sequence[Point | None], limbs: Limbs, side: int, scale: float) -> np.ndarray:
    """Discs of joints under ellipses of limbs, (3, side, side) in [0, 1].

    The i-th joint and the i-th limb have the i-th of as many hues as there are joints, from blue on towards red; a limb
    is 0.6 of its colour and 0.4 of what it covers.
    """
    picture = np.zeros((3, side, side), dtype=np.float32)
    for i, point in enumerate(points):
        if point is not None:
            picture[:, disc(point, max(JOINT_RADIUS * scale, 1), side)] = _wheel(i, len(points))[:, None]
    for i, inside in enumerate(limb_regions(points, limbs, side, scale)):
        colour = _wheel(i, len(points))[:, None]
        picture[:, inside] = (1 - _LIMB_OPACITY) * picture[:, inside] + _LIMB_OPACITY * colour
    return picture


def limb_regions(points: Sequence[Point | None], limbs: Limbs, side: int, scale: float) -> list[np.ndarray]:
    """The ellipse of each limb, (side, side) bool; empty where one of its ends is hidden."""
    nowhere = np.zeros((side, side), dtype=bool)
    radius = max(LIMB_RADIUS * scale, 1)
    return [nowhere if points[start] is None or points[end] is None else
            ellipse(points[start], points[end], radius, side) for start, end in limbs]


def disc(centre: Point, radius: float, side: int) -> np.ndarray:
    return _filled(side, centre, radius, lambda y, x: np.hypot(y, x) <= radius)


def segment(start: Point, end: Point, width: float, side: int) -> np.ndarray:
    """What is no farther than ``width`` from the line between two points."""
    dy, dx = (end[0] - start[0]) / 2, (end[1] - start[1]) / 2

    def near(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        along = np.clip((y * dy + x * dx) / max(dy * dy + dx * dx, 1e-6), -1, 1)
        return np.hypot(y - along * dy, x - along * dx) <= width

    return _filled(side, _middle(start, end), math.hypot(dy, dx) + width, near)


def ellipse(start: Point, end: Point, radius: float, side: int) -> np.ndarray:
    """The ellipse from one point to another, ``radius`` wide to either side of its middle."""
    dy, dx = (end[0] - start[0]) / 2, (end[1] - start[1]) / 2
    length = math.hypot(dy, dx)
    along = (dy / length, dx / length) if length else (0.0, 1.0)
    length = max(length, 1.0)  # of two joints in one place something is to be seen

    def within(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return ((y * along[0] + x * along[1]) / length) ** 2 + ((x * along[0] - y * along[1]) / radius) ** 2 <= 1

    return _filled(side, _middle(start, end), max(length, radius), within)


def _middle(start: Point, end: Point) -> Point:
    return (start[0] + end[0]) / 2, (start[1] + end[1]) / 2


def _filled(side: int, centre: Point, reach: float,
            inside: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Where ``inside`` holds of the rows and columns from the centre on, looked at no farther than ``reach``."""
    made = np.zeros((side, side), dtype=bool)
    window = tuple(slice(min(max(math.floor(c - reach), 0), side), min(max(math.ceil(c + reach) + 1, 0), side))
                   for c in centre)
    rows, columns = np.mgrid[window]
    made[window] = inside(rows - centre[0], columns - centre[1])
    return made


def _hue(i: int, n: int) -> np.ndarray:
    """The i-th of n hues that go into each other."""
    return (0.5 + 0.5 * np.cos(2 * np.pi * (i / n - np.array([0, 1 / 3, 2 / 3])))).astype(np.float32)


def _wheel(i: int, n: int) -> np.ndarray:
    """The i-th of n full hues from blue on: those of OpenPose with red and blue exchanged, as published figures are."""
    return np.array(colorsys.hsv_to_rgb(i / n, 1, 1)[::-1], dtype=np.float32)
