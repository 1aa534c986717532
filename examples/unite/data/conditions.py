"""Conditions of an avatar, one for each kind of task: "mask", "edges", "landmarks", "layout".

Each is a function of the part map and the image as they stand in the sample (mirrored, moved), so that condition and
image agree by construction, and "left" is always the left of the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .classes import CLASSES, classes_of, part
from .figures import landmark_distances, landmark_picture
from .lines import border, distance, texture
from .regions import Point, middle, sides, top

#: Points of "landmarks"; one that is hidden is absent, as a joint of a pose is.
POINTS = ("left brow", "right brow", "left eye", "right eye", "nose", "mouth", "crown", "left of the head",
          "right of the head", "left shoulder", "right shoulder")
_LIMBS = ((0, 2), (1, 3), (2, 3), (2, 4), (3, 4), (4, 5), (6, 7), (6, 8), (5, 9), (5, 10))
#: Canny is drawn where the inside of a part has a texture of its own: outside the face.
_TEXTURED = tuple(CLASSES.index(name) for name in ("background", "clothes", "hair", "hat"))


def mask(parts: np.ndarray, image: np.ndarray) -> Tensor:
    """One-hot classes, (9, H, W)."""
    classes = torch.from_numpy(classes_of(parts)).long()
    return torch.nn.functional.one_hot(classes, len(CLASSES)).permute(2, 0, 1).float()


def edges(parts: np.ndarray, image: np.ndarray) -> Tensor:
    """Borders, (10, H, W): [0] those of classes and the image's edges outside the face, [1..8] how far the border of a
    class is, one channel each but the background's, [9] the borders alone.

    A distance is that of `lines.distance`; 1 where a class is absent.
    """
    classes = classes_of(parts)
    borders = [border(classes == i) for i in range(1, len(CLASSES))]
    joined = np.logical_or.reduce(borders)
    grey = image.astype(np.float64).mean(-1) / 255
    canny = texture(grey, low=0.04, high=0.1) & np.isin(classes, _TEXTURED)
    planes = [joined | canny, *(distance(b, _scale(parts)) for b in borders), joined]
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def landmarks(parts: np.ndarray, image: np.ndarray) -> Tensor:
    """Points of the face, (3 + 11, H, W): a picture of discs and limbs in colours, and a distance map a point."""
    points = face_points(parts)
    side, scale = parts.shape[0], _scale(parts)
    planes = [landmark_picture(points, _LIMBS, side, scale), landmark_distances(points, side, scale)]
    return torch.from_numpy(np.concatenate(planes).astype(np.float32))


def layout(parts: np.ndarray, image: np.ndarray) -> Tensor:
    """Boxes of parts, (9, H, W): each part fills its box in its class's channel; channel 0 is where there is none."""
    planes = np.zeros((len(CLASSES), *parts.shape), dtype=np.float32)
    for i in np.unique(parts):
        if i != part("background"):
            rows, columns = np.nonzero(parts == i)
            planes[classes_of(i), rows.min():rows.max() + 1, columns.min():columns.max() + 1] = 1
    planes[0] = planes[1:].max(0) == 0
    return torch.from_numpy(planes)


#: Condition by name: function, channels, whether its channels are the classes.
CONDITIONS: dict[str, tuple[Callable[[np.ndarray, np.ndarray], Tensor], int, bool]] = {
    "mask": (mask, len(CLASSES), True),
    "edges": (edges, len(CLASSES) + 1, False),
    "landmarks": (landmarks, 3 + len(POINTS), False),
    "layout": (layout, len(CLASSES), True),
}


def face_points(parts: np.ndarray) -> list[Point | None]:
    """(row, column) of each of `POINTS` that is to be seen, else None."""
    skin = parts == part("skin")
    centre = float(np.nonzero(skin)[1].mean()) if skin.any() else (parts.shape[1] - 1) / 2
    head = np.isin(parts, [part(name) for name in ("hair", "hat")])
    head = head if head.any() else skin
    temples = sides(head)
    shoulders = sides(parts == part("clothes"))
    return [*_two_sides(parts == part("brows"), centre), *_two_sides(parts == part("eyes"), centre),
            middle(parts == part("nose")), middle(parts == part("mouth")),
            top(head), temples[0], temples[1], shoulders[0], shoulders[1]]


def _two_sides(region: np.ndarray, centre: float) -> tuple[Point | None, Point | None]:
    """Middles of what is left and right: parted at the widest gap between columns, or at the face's centre."""
    columns = np.nonzero(region.any(0))[0]
    if columns.size == 0:
        return None, None
    gaps = np.diff(columns)
    if gaps.size and gaps.max() > max(2, region.shape[1] / 32):
        at = int(gaps.argmax())
        centre = (columns[at] + columns[at + 1]) / 2
    left = np.arange(region.shape[1])[None, :] < centre
    return middle(region & left), middle(region & ~left)


def _scale(parts: np.ndarray) -> float:
    return parts.shape[0] / 256
