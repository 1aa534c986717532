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

    A distance is in steps along the grid at 256 px, divided by 3, cut at 255 and divided by it; 1 where a class is
    absent.
    """
    from skimage.feature import canny  # of the extra "unite"; slow to import

    classes = classes_of(parts)
    borders = [_border(classes == i) for i in range(1, len(CLASSES))]
    border = np.logical_or.reduce(borders)
    # On values in [0, 1] with thresholds given: on uint8 some versions of scikit-image find nothing.
    grey = image.astype(np.float64).mean(-1) / 255
    texture = canny(grey, sigma=1.0, low_threshold=0.04, high_threshold=0.1) & np.isin(classes, _TEXTURED)
    planes = [border | texture, *(_distance(b) for b in borders), border]
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def landmarks(parts: np.ndarray, image: np.ndarray) -> Tensor:
    """Points of the face, (3 + 11, H, W): a picture of discs and limbs in colours, and a distance map a point."""
    side = parts.shape[0]
    unit = side / 256
    radius, width = max(4 * unit, 1.5), max(2 * unit, 0.75)
    points = face_points(parts)
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    picture = np.zeros((3, side, side), dtype=np.float32)
    for i, (start, end) in enumerate(_LIMBS):
        if points[start] is not None and points[end] is not None:
            inside = _segment_distance(rows, columns, points[start], points[end]) <= width
            picture[:, inside] = 0.6 * _colour(i, len(_LIMBS))[:, None]
    planes = []
    for i, point in enumerate(points):
        disc = np.zeros((side, side), dtype=bool)
        if point is not None:
            disc = np.hypot(rows - point[0], columns - point[1]) <= radius
            picture[:, disc] = _colour(i, len(points))[:, None]
        planes.append(_distance(disc))
    return torch.from_numpy(np.concatenate([picture, np.stack(planes)]).astype(np.float32))


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


def face_points(parts: np.ndarray) -> list[tuple[float, float] | None]:
    """(row, column) of each of `POINTS` that is to be seen, else None."""
    skin = parts == part("skin")
    centre = float(np.nonzero(skin)[1].mean()) if skin.any() else (parts.shape[1] - 1) / 2
    head = np.isin(parts, [part(name) for name in ("hair", "hat")])
    head = head if head.any() else skin
    sides = _extremes(head)
    shoulders = _extremes(parts == part("clothes"))
    return [*_two_sides(parts == part("brows"), centre), *_two_sides(parts == part("eyes"), centre),
            _mean(parts == part("nose")), _mean(parts == part("mouth")),
            _crown(head), sides[0], sides[1], shoulders[0], shoulders[1]]


def _mean(region: np.ndarray) -> tuple[float, float] | None:
    rows, columns = np.nonzero(region)
    return (float(rows.mean()), float(columns.mean())) if rows.size else None


def _two_sides(region: np.ndarray, centre: float) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Middles of what is left and right: parted at the widest gap between columns, or at the face's centre."""
    columns = np.nonzero(region.any(0))[0]
    if columns.size == 0:
        return None, None
    gaps = np.diff(columns)
    if gaps.size and gaps.max() > max(2, region.shape[1] / 32):
        at = int(gaps.argmax())
        centre = (columns[at] + columns[at + 1]) / 2
    left = np.arange(region.shape[1])[None, :] < centre
    return _mean(region & left), _mean(region & ~left)


def _crown(region: np.ndarray) -> tuple[float, float] | None:
    rows, columns = np.nonzero(region)
    return (float(rows.min()), float(columns[rows == rows.min()].mean())) if rows.size else None


def _extremes(region: np.ndarray) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    rows, columns = np.nonzero(region)
    if not rows.size:
        return None, None
    return tuple((float(rows[columns == x].mean()), float(x)) for x in (columns.min(), columns.max()))  # type: ignore


def _border(region: np.ndarray) -> np.ndarray:
    """Positions of a region with a neighbour outside it; the picture's rim is no border."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def _distance(places: np.ndarray) -> np.ndarray:
    from scipy.ndimage import distance_transform_cdt  # comes with scikit-image

    if not places.any():
        return np.ones(places.shape)
    steps = distance_transform_cdt(~places, metric="taxicab") * (256 / places.shape[0])
    return np.clip(steps / 3, 0, 255) / 255


def _segment_distance(rows: np.ndarray, columns: np.ndarray, start: tuple[float, float],
                      end: tuple[float, float]) -> np.ndarray:
    dy, dx = end[0] - start[0], end[1] - start[1]
    along = ((rows - start[0]) * dy + (columns - start[1]) * dx) / max(dy * dy + dx * dx, 1e-6)
    along = np.clip(along, 0, 1)
    return np.hypot(rows - start[0] - along * dy, columns - start[1] - along * dx)


def _colour(i: int, n: int) -> np.ndarray:
    """The i-th of n hues."""
    return (0.5 + 0.5 * np.cos(2 * np.pi * (i / n - np.array([0, 1 / 3, 2 / 3])))).astype(np.float32)
