"""Pictures of any mode as RGB of 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

#: Grey values in more than 8 bits; Pillow's own conversion makes every value above 255 white.
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB; grey of 16 bits, 0 to 65535, becomes the nearest of 256 values, v / 257.

    Raises:
        ValueError: Values outside 0 to 65535.

    >>> rgb(Image.new("I;16", (1, 1), 257 * 100)).getpixel((0, 0))
    (100, 100, 100)
    """
    if picture.mode not in DEEP:
        return picture.convert("RGB")
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"grey values must be from 0 to 65535, got {values.min()} to {values.max()}")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
