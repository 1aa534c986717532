"""An avatar as pixels: its picture, and the map of its parts from the same drawing in flat colours.

The part map is the picture's own SVG with each part's paints replaced by one flat colour and no smoothing of edges:
what lies over what is decided by the renderer, as in the picture.  Paints of less than half opacity outside the face's
features are shades cast on what lies below, and are left out.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from .classes import PARTS, part
from .faces import Geometry, Palette

#: Counts up with every change of what is drawn: part of the cache's key.
REVISION = 1
_SVG = "{http://www.w3.org/2000/svg}"
_CENTRE, _SIDE = (132.0, 126.0), 232.0          # of the picture in a drawing of 264 x 280
_OVERSAMPLING = 2
_GROUPS = {"Body": "skin", "Clothing": "clothes", "Mouth": "mouth", "Nose": "nose", "Eyes": "eyes", "Eyebrow": "brows"}
_FEATURES = ("mouth", "nose", "eyes", "brows")
_OPACITIES = ("opacity", "fill-opacity", "stroke-opacity")
#: Paints that are masks and stencils rather than drawn.
_UNDRAWN = tuple(_SVG + tag for tag in ("mask", "clipPath", "defs", "linearGradient", "radialGradient", "filter"))


def drawing(geometry: Geometry, palette: Palette) -> ElementTree.Element:
    """The SVG tree of an avatar, 264 x 280, without background."""
    import python_avatars as pa  # a package of the extra "unite", needed where something is drawn only

    def top() -> object:
        if geometry.hat:
            return pa.HatType[geometry.hat]
        return pa.HairType[geometry.hair or "NONE"]

    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT, top=top(), hat_color=palette.hat, eyebrows=pa.EyebrowType[geometry.brows],
        eyes=pa.EyeType[geometry.eyes], nose=pa.NoseType[geometry.nose], mouth=pa.MouthType[geometry.mouth],
        facial_hair=pa.FacialHairType[geometry.beard or "NONE"], skin_color=palette.skin, hair_color=palette.hair,
        facial_hair_color=palette.hair, accessory=pa.AccessoryType[geometry.glasses or "NONE"],
        clothing=pa.ClothingType[geometry.clothes], clothing_color=palette.clothes)
    return ElementTree.fromstring(avatar.render())


def flat_colour(name: str) -> str:
    """The colour that stands for a part in a flat drawing."""
    return f"#{20 * part(name) + 20:02x}0000"


def part_groups(tree: ElementTree.Element, geometry: Geometry) -> list[tuple[str, ElementTree.Element]]:
    """The groups of a drawing with the names of their parts; a group inside another comes after it."""
    found = []
    for item in tree.iter(_SVG + "g"):
        prefix, _, name = item.get("id", "").partition("_")
        if prefix == "transparent" and name in _GROUPS:
            found.append((_GROUPS[name], item))
        elif prefix == "transparent" and name == "Top":
            found.append(("hat" if geometry.hat else "hair", item))
            for inner in item.iter(_SVG + "g"):
                if inner.get("id", "").endswith("_Facial-Hair"):
                    found.append(("beard", inner))
                elif inner.get("id", "").endswith("_Accessory"):
                    found.append(("glasses", inner))
    return found


def flatten(tree: ElementTree.Element, geometry: Geometry) -> None:
    """Replaces the paints of a drawing, in place, by the flat colours of its parts."""
    for name, group in part_groups(tree, geometry):
        _flatten_group(group, flat_colour(name), keep_faint=name in _FEATURES)
        # Features inherit black from the face; the flat colour takes its place where nothing else is said.
        if name in _FEATURES:
            group.set("fill", flat_colour(name))


def _flatten_group(group: ElementTree.Element, colour: str, keep_faint: bool) -> None:
    for child in list(group):
        if child.tag in _UNDRAWN:
            continue
        faint = min(float(child.get(name) or 1) for name in _OPACITIES) < 0.5
        if faint and not keep_faint:
            group.remove(child)
            continue
        for name in ("fill", "stroke"):
            if child.get(name) not in (None, "none"):
                child.set(name, colour)
        _flatten_group(child, colour, keep_faint)
    for name in (*_OPACITIES, "filter", "style"):
        group.attrib.pop(name, None)


def framed(tree: ElementTree.Element, geometry: Geometry, background: str) -> str:
    """The drawing as the head stands in the picture, over a background."""
    side = _SIDE / geometry.scale
    x = _CENTRE[0] - side * (0.5 + geometry.shift[0])
    y = _CENTRE[1] - side * (0.5 + geometry.shift[1])
    root = ElementTree.Element(_SVG + "svg", viewBox=f"{x} {y} {side} {side}", width="100", height="100")
    ElementTree.SubElement(root, _SVG + "rect", x="-500", y="-500", width="1500", height="1500", fill=background)
    turned = ElementTree.SubElement(root, _SVG + "g",
                                    transform=f"rotate({geometry.angle} {_CENTRE[0]} {_CENTRE[1]})")
    turned.extend(list(tree))
    return ElementTree.tostring(root, encoding="unicode")


def rasterise(svg: str, side: int, smooth: bool) -> np.ndarray:
    """An SVG as RGB, (side, side, 3) uint8; without ``smooth`` a pixel has the colour at its centre."""
    import resvg_py  # a package of the extra "unite"

    quality = "geometric_precision" if smooth else "crisp_edges"
    png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True,
                                shape_rendering=quality)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def picture(geometry: Geometry, palette: Palette, size: int) -> np.ndarray:
    """The avatar's image, (size, size, 3) uint8, drawn larger and averaged."""
    svg = framed(drawing(geometry, palette), geometry, palette.background)
    large = Image.fromarray(rasterise(svg, size * _OVERSAMPLING, smooth=True))
    return np.asarray(large.reduce(_OVERSAMPLING))


def part_map(geometry: Geometry, size: int) -> np.ndarray:
    """Ids of the avatar's parts, (size, size) uint8: of the four points in a pixel most, of equals the one in front."""
    tree = drawing(geometry, Palette("#000000", "#808080", "#808080", "#808080", "#808080"))
    flatten(tree, geometry)
    return majority(ids(rasterise(framed(tree, geometry, flat_colour("background")), size * _OVERSAMPLING, False)))


def ids(flat: np.ndarray) -> np.ndarray:
    """Part ids of a flat rendering; refuses a colour that stands for no part."""
    red = flat[..., 0].astype(np.int16)
    found = red // 20 - 1
    if (red % 20).any() or flat[..., 1:].any() or found.min() < 0 or found.max() >= len(PARTS):
        raise RuntimeError("a flat rendering has colours that stand for no part: this resvg_py smooths edges")
    return found.astype(np.uint8)


def majority(large: np.ndarray, factor: int = _OVERSAMPLING) -> np.ndarray:
    """Each block of factor x factor ids as its most frequent one, of equals the highest."""
    height, width = large.shape[0] // factor, large.shape[1] // factor
    blocks = large.reshape(height, factor, width, factor).swapaxes(1, 2).reshape(height, width, factor * factor)
    counts = (blocks[..., :, None] == blocks[..., None, :]).sum(-1).astype(np.int32) * 256 + blocks
    return (counts.max(-1) % 256).astype(np.uint8)
