"""Conditions of a face whose parts have masks: borders with distance maps, or points.

Planes are last, (H, W, planes) float32, so that they are cropped and mirrored as pictures are; ``scale`` is the side of
the network's pictures over 256.  Parts are regions (H, W) bool by name, and one that is absent is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from .figures import landmark_distances, landmark_picture
from .lines import border, distance, texture
from .regions import Point, bottom, middle, sides, top

#: Parts whose borders are drawn, in the order of their channels.  l_ and r_ are the person's own sides; but those of
#: the lips mean the lower and u_ the upper one.
PARTS = ("skin", "l_brow", "r_brow", "l_eye", "r_eye", "l_ear", "r_ear", "nose", "u_lip", "mouth", "l_lip", "eye_g",
         "hair")
#: Points of "landmarks", in the order of their channels.
POINTS = ("l_brow", "r_brow", "l_eye", "r_eye", "l_ear", "r_ear", "nose", "lips", "l_end of lips", "r_end of lips",
          "chin", "crown")
#: Channels by condition.
CHANNELS = {"edges": len(PARTS) + 2, "landmarks": len(POINTS) + 3}
_LIMBS = tuple((POINTS.index(start), POINTS.index(end)) for start, end in (
    ("l_brow", "l_eye"), ("r_brow", "r_eye"), ("l_eye", "r_eye"), ("l_eye", "nose"), ("r_eye", "nose"),
    ("nose", "lips"), ("lips", "l_end of lips"), ("lips", "r_end of lips"), ("lips", "chin"), ("l_ear", "chin"),
    ("r_ear", "chin"), ("l_brow", "crown"), ("r_brow", "crown")))
_SIDED = ("brow", "eye", "ear", "end of lips")
#: Canny's thresholds for photographs, on values in [0, 1]: what the authors' call has by default.
_LOW, _HIGH = 0.1, 0.2


def edge_planes(image: np.ndarray, parts: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
    """Condition "edges": [0] the borders of all parts, and the image's edges outside the face, hair being outside;
    [1..13] the distance (`lines.distance`) from the border of each of `PARTS`; [14] the borders alone.

    A border runs along both sides of its line.
    """
    nothing = np.zeros(image.shape[:2], dtype=bool)
    regions = [parts.get(part, nothing) for part in PARTS]
    borders = [border(region) | border(~region) for region in regions]
    joined = np.logical_or.reduce(borders)
    outside = ~np.logical_or.reduce(regions[:-1]) | regions[-1]
    grey = np.asarray(Image.fromarray(image).convert("L")) / 255
    canny = texture(grey, _LOW, _HIGH) & outside
    planes = [joined | canny, *(distance(each, scale) for each in borders), joined]
    return np.stack(planes).astype(np.float32).transpose(1, 2, 0)


def point_planes(points: Sequence[Point | None], side: int, scale: float) -> np.ndarray:
    """Condition "landmarks": [0..2] a picture of the points, [3..14] the distance map of each of `POINTS`; and after
    these the picture's three planes once more in the colours of the other side, which are its own when mirrored.
    """
    others = [points[i] for i in _other_side(POINTS)]
    planes = [landmark_picture(points, _LIMBS, side, scale), landmark_distances(points, side, scale),
              landmark_picture(others, _LIMBS, side, scale)]
    return np.concatenate(planes).astype(np.float32).transpose(1, 2, 0)


def face_points(parts: Mapping[str, np.ndarray], side: int) -> list[Point | None]:
    """Where each of `POINTS` is that is to be seen, else None."""
    nothing = np.zeros((side, side), dtype=bool)
    regions = {part: parts.get(part, nothing) for part in PARTS}
    lips = regions["u_lip"] | regions["mouth"] | regions["l_lip"]
    right, left = sides(lips)  # the person's own
    return [*(middle(regions[name]) for name in POINTS[:7]), middle(lips), left, right, bottom(regions["skin"]),
            top(regions["hair"] | regions["skin"])]


def mirrored_planes(condition: str) -> list[int]:
    """Which plane takes the place of each when a picture is mirrored: left parts become right ones."""
    if condition == "edges":
        return [0, *(1 + i for i in _other_side(PARTS)), 1 + len(PARTS)]
    after = CHANNELS["landmarks"]
    return [*range(after, after + 3), *(3 + i for i in _other_side(POINTS)), 0, 1, 2]


def _other_side(names: Sequence[str]) -> list[int]:
    """For each name the place of its counterpart on the other side, or its own."""
    other = {f"{side}_{part}": f"{counter}_{part}" for part in _SIDED for side, counter in ("lr", "rl")}
    return [names.index(other.get(name, name)) for name in names]
