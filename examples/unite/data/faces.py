"""Random avatars in two halves: a palette, and a geometry that can be drawn in any palette."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

#: Types of python-avatars whose own colours are those of the palette, so that a pair of one palette agrees everywhere.
TYPES: dict[str, tuple[str, ...]] = {
    "hair": ("BIG_HAIR", "BOB", "BRAIDS", "BUN", "BUZZCUT", "CAESAR", "CAESAR_SIDE_PART", "CORNROWS", "CURLY", "CURVY",
             "DREADLOCKS", "DREADS", "EINSTEIN_HAIR", "ELVIS", "EVIL_SPIKE", "FRIZZLE", "FRO", "LONG_NOT_TOO_LONG",
             "MIA_WALLACE", "MOHAWK", "MOWGLI", "PIXIE", "POMPADOUR", "QUIFF", "SHAGGY", "SHAGGY_MULLET",
             "SHORT_CURLY", "SHORT_DREADS_1", "SHORT_DREADS_2", "SHORT_FLAT", "SHORT_ROUND", "SHORT_WAVED", "SIDES",
             "STRAIGHT_1", "STRAIGHT_STRAND", "TWIST_LONG_HAIR", "TWIST_LONG_HAIR_2", "WILD"),
    "hat": ("HAT", "HIJAB", "TURBAN", "WINTER_HAT_2", "WINTER_HAT_3", "WINTER_HAT_4"),
    "clothes": ("COLLAR_SWEATER", "HOODIE", "OVERALL", "SHIRT_CREW_NECK", "SHIRT_SCOOP_NECK", "SHIRT_V_NECK"),
    "beard": ("BEARD_LIGHT", "BEARD_MAGESTIC", "BEARD_MEDIUM", "MOUSTACHE_FANCY", "MOUSTACHE_MAGNUM", "WICK_BEARD"),
    "glasses": ("PRESCRIPTION_2", "ROUND", "SUNGLASSES", "WAYFARERS"),
    "mouth": ("BIG_SMILE", "CONCERNED", "DEFAULT", "DISBELIEF", "GRIMACE", "SAD", "SCREAM_OPEN", "SERIOUS", "SMILE",
              "TONGUE", "TWINKLE"),
    "eyes": ("CLOSED", "DEFAULT", "EYE_ROLL", "HAPPY", "SIDE", "SQUINT", "SURPRISED", "WINK", "WINK_WACKY", "X_DIZZY"),
    "brows": ("ANGRY", "ANGRY_NATURAL", "DEFAULT", "DEFAULT_NATURAL", "FLAT_NATURAL", "FROWN_NATURAL", "RAISED_EXCITED",
              "RAISED_EXCITED_NATURAL", "SAD_CONCERNED", "SAD_CONCERNED_NATURAL", "UNIBROW_NATURAL", "UP_DOWN",
              "UP_DOWN_NATURAL"),
    "nose": ("DEFAULT", "SMALL", "WIDE"),
}
#: How often a part that a face can do without is there.  A hat takes the place of hair; the hijab hides a beard.
SHARES = {"bald": 0.06, "hat": 0.22, "beard": 0.35, "glasses": 0.35}
_SKIN = ("#FFDBB4", "#F8D25C", "#EDB98A", "#FD9841", "#D08B5B", "#AE5D29", "#7A5238")
_HAIR = ("#2C1B18", "#4A312C", "#724133", "#A55728", "#B58143", "#D6B370", "#C93305", "#F59797", "#ECDCBF", "#A9A2A2")
_FABRIC = ("#5199E4", "#25557C", "#65C9FF", "#3CB878", "#A7FFC4", "#FFD34D", "#FF8A3C", "#FF488E", "#E0383E", "#8E5BD0",
           "#E6E6E6", "#929598", "#3C4F5C")
_BACKGROUND = ("#BFE3F7", "#D9F2D0", "#F7E3C4", "#F3CFE0", "#D8D2F0", "#F4F4F4", "#8FB8C9", "#A8C39A", "#6F7F94")


@dataclass(frozen=True)
class Palette:
    """Colours as ``#rrggbb``; a beard has the hair's."""

    background: str
    skin: str
    clothes: str
    hair: str
    hat: str


@dataclass(frozen=True)
class Geometry:
    """Types of parts ("" for none) by their names in python-avatars, and how the head stands in the picture.

    ``shift`` is in shares of the picture's side, ``angle`` in degrees.
    """

    hair: str
    hat: str
    clothes: str
    beard: str
    glasses: str
    mouth: str
    eyes: str
    brows: str
    nose: str
    scale: float
    shift: tuple[float, float]
    angle: float


def _varied(rng: np.random.Generator, colour: str) -> str:
    """A colour near the given one, so that palettes do not repeat."""
    h, s, v = colorsys.rgb_to_hsv(*(int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)))
    h, s, v = (h + rng.uniform(-0.02, 0.02)) % 1, s * rng.uniform(0.85, 1.15), v * rng.uniform(0.9, 1.1)
    return "#" + "".join(f"{round(255 * x):02x}" for x in colorsys.hsv_to_rgb(h, min(s, 1.0), min(v, 1.0)))


def random_palette(rng: np.random.Generator) -> Palette:
    """Colours drawn at random; clothes and hat are of different hues."""
    clothes, hat = (_FABRIC[int(i)] for i in rng.permutation(len(_FABRIC))[:2])
    skin, hair, background = (options[int(rng.integers(len(options)))] for options in (_SKIN, _HAIR, _BACKGROUND))
    return Palette(*(_varied(rng, colour) for colour in (background, skin, clothes, hair, hat)))


def random_geometry(rng: np.random.Generator) -> Geometry:
    """Parts and stance drawn at random."""
    pick = {name: types[int(rng.integers(len(types)))] for name, types in TYPES.items()}
    top, beard, glasses = rng.random(3)
    has_hat = top < SHARES["hat"]
    if has_hat or top > 1 - SHARES["bald"]:
        pick["hair"] = ""
    if not has_hat:
        pick["hat"] = ""
    if beard > SHARES["beard"] or pick["hat"] == "HIJAB":
        pick["beard"] = ""
    if glasses > SHARES["glasses"]:
        pick["glasses"] = ""
    scale, angle, x, y = (float(rng.uniform(-limit, limit)) for limit in (0.11, 6.0, 0.06, 0.05))
    return Geometry(**pick, scale=1.04 + scale, shift=(x, y), angle=angle)
