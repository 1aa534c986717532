"""What the positions of an avatar can be: the parts a rendering tells apart, and the nine classes of its mask."""

from __future__ import annotations

import numpy as np

#: Parts in the order of their ids in a part map, from the one at the back on.
PARTS = ("background", "skin", "clothes", "mouth", "nose", "eyes", "brows", "hair", "hat", "beard", "glasses")
#: Classes of the mask.  What has a colour of its own in the palette is a class, so is glasses; of the small dark parts
#: on the skin, which differ in shape alone, those of the upper face and those of the lower face are one class each.
#: Hair and hat are apart: a head has one of them, so that either can be missing on one side of a pair.
CLASSES = ("background", "skin", "clothes", "hair", "hat", "beard", "glasses", "eyes and brows", "nose and mouth")
_CLASS_OF = {"eyes": "eyes and brows", "brows": "eyes and brows", "nose": "nose and mouth", "mouth": "nose and mouth"}
_TABLE = np.array([CLASSES.index(_CLASS_OF.get(part, part)) for part in PARTS], dtype=np.uint8)


def part(name: str) -> int:
    """Id of a part."""
    return PARTS.index(name)


def classes_of(parts: np.ndarray) -> np.ndarray:
    """The classes of a map of part ids: uint8, same shape."""
    return _TABLE[parts]
