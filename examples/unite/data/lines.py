"""Lines in a picture: borders of regions, edges of textures, and how far they are."""

from __future__ import annotations

import numpy as np


def border(region: np.ndarray) -> np.ndarray:
    """Positions of a region with a neighbour outside it; the picture's rim is no border."""
    padded = np.pad(region, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inner


def texture(grey: np.ndarray, low: float, high: float) -> np.ndarray:
    """Canny's edges of (H, W) values in [0, 1].

    Thresholds are given and values are no uint8: with those some versions of scikit-image find nothing.
    """
    from skimage.feature import canny  # of the extra "unite"; slow to import

    return canny(grey, sigma=1.0, low_threshold=low, high_threshold=high)


def distance(places: np.ndarray, scale: float) -> np.ndarray:
    """How far each position is from the nearest of some places, in [0, 1].

    Steps along the grid at 256 px, divided by 3, cut at 255 and divided by it; 1 everywhere where there is no place.

    Args:
        places: (H, W), bool.
        scale: Side of the network's pictures over 256.
    """
    from scipy.ndimage import distance_transform_cdt  # comes with scikit-image

    if not places.any():
        return np.ones(places.shape)
    steps = distance_transform_cdt(~places, metric="taxicab") / scale
    return np.clip(steps / 3, 0, 255) / 255
