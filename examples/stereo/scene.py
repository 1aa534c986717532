"""The stereo pair of scikit-image and what its disparity says about which cell matches which.

Ground truth is used for scores and pictures only; descriptors and masses never see it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: A pixel is covered when a surface nearer by more than this disparity, in pixels, lands on its place on the right.
NEARER = 1.0


@dataclass(frozen=True)
class Scene:
    """A rectified pair.

    Args:
        left, right: Colours in [0, 1], (height, width, 3).
        disparity: Of the left image, (height, width), in pixels: left column x is seen at right column x - disparity;
            inf where it is unknown.
    """

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray


@dataclass(frozen=True)
class Truth:
    """What is known of the cells of the left grid, each array flat, (grid * grid,), row after row.

    Args:
        grid: Cells along each side.
        column: Column of the matching cell in the right grid (may be negative: outside the frame).
        known: The disparity at the cell's centre is known.
        outside: Known, and the match falls outside the right image.
        covered: Known and inside, but hidden on the right by a nearer surface.
    """

    grid: int
    column: np.ndarray
    known: np.ndarray
    outside: np.ndarray
    covered: np.ndarray

    @property
    def occluded(self) -> np.ndarray:
        """Known to have no visible match."""
        return self.outside | self.covered

    @property
    def visible(self) -> np.ndarray:
        """Known to have a visible match: the cells that are scored."""
        return self.known & ~self.occluded


def load_scene(view: str = "full") -> Scene:
    """scikit-image's motorcycle pair (Middlebury 2014), whole (500 x 741) or its central square (500 x 500)."""
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    if view == "square":
        height, width = disparity.shape
        keep = slice((width - height) // 2, (width - height) // 2 + height)
        left, right, disparity = left[:, keep], right[:, keep], disparity[:, keep]
    elif view != "full":
        raise ValueError(f"view must be 'full' or 'square', got {view!r}")
    return Scene(left / 255.0, right / 255.0, disparity.astype(np.float64))


def occlusion(disparity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the left image that the right one does not show: (covered, outside), each (height, width) bool.

    The left image is warped forward into a z-buffer of the right one, each pixel into the two columns that it falls
    between, so that stretched surfaces leave no holes.  Unknown pixels neither cover nor are covered.
    """
    height, width = disparity.shape
    rows, columns = np.nonzero(np.isfinite(disparity))
    near = disparity[rows, columns]
    landing = columns - near
    nearest_surface = np.full((height, width), -np.inf)
    for place in (np.floor(landing).astype(int), np.floor(landing).astype(int) + 1):
        inside = (place >= 0) & (place < width)
        np.maximum.at(nearest_surface, (rows[inside], place[inside]), near[inside])

    outside, covered = np.zeros((2, height, width), dtype=bool)
    beyond = (landing < 0) | (landing > width - 1)
    place = np.clip(np.rint(landing).astype(int), 0, width - 1)
    outside[rows, columns] = beyond
    covered[rows, columns] = ~beyond & (nearest_surface[rows, place] > near + NEARER)
    return covered, outside


def ground_truth(disparity: np.ndarray, grid: int) -> Truth:
    """The match of each of grid x grid cells, read at the pixel in the cell's centre."""
    height, width = disparity.shape
    covered, outside = occlusion(disparity)
    centre_row = ((np.arange(grid) + 0.5) * height / grid).astype(int)
    centre = (np.arange(grid) + 0.5) * width / grid
    sample = np.ix_(centre_row, centre.astype(int))
    known = np.isfinite(disparity[sample])
    landing = centre - np.where(known, disparity[sample], 0.0)
    column = np.floor(landing * grid / width).astype(int)
    return Truth(grid, *(part.ravel() for part in (column, known, outside[sample], covered[sample])))


def photometric_error(scene: Scene, sign: int) -> float:
    """Mean absolute colour difference of left pixels and the right pixels at column x + sign * disparity.

    The sign with the smaller error is the pair's convention: -1 here.
    """
    height, width = scene.disparity.shape
    known = np.isfinite(scene.disparity)
    landing = np.arange(width) + sign * np.where(known, scene.disparity, 0.0)
    use = known & (landing >= 0) & (landing <= width - 1)
    place = np.clip(np.rint(landing).astype(int), 0, width - 1)
    difference = np.abs(scene.left - scene.right[np.arange(height)[:, None], place]).mean(-1)
    return float(difference[use].mean())
