"""Pictures of what a model did: one row a pair, its columns named."""

from __future__ import annotations

import colorsys
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from .checkpoint import write_whole
from .structures import Batch, Output

COLUMNS = ("condition", "exemplar", "warped", "mass kept", "output", "truth")
#: Pixels between tiles, and of the line with the columns' names.
GAP, HEAD = 2, 14


def palette(count: int) -> Tensor:
    """(count, 3) colours in [0, 1]: black first, then hues far apart."""
    hues = [colorsys.hsv_to_rgb((index * 0.618034) % 1, 0.75 - 0.25 * (index % 2), 1 - 0.15 * (index % 3))
            for index in range(count - 1)]
    return torch.tensor([(0.0, 0.0, 0.0), *hues][:count])


def colour(condition: Tensor) -> Tensor:
    """Conditions (B, S, H, W) in [0, 1] as images (B, 3, H, W) in [-1, 1].

    Three channels are shown as they are; otherwise each has a colour, and channels that overlap are averaged.
    """
    if condition.shape[1] == 3:
        return 2 * condition - 1
    mixed = torch.einsum("bshw,sc->bchw", condition, palette(condition.shape[1]).to(condition))
    return 2 * mixed / condition.sum(1, keepdim=True).clamp_min(1.0) - 1


def heat(share: Tensor) -> Tensor:
    """Shares (B, h, w) in [0, 1] as images (B, 3, h, w) in [-1, 1]: black, red, yellow, white."""
    level = 3 * share.clamp(0, 1)[:, None]
    return 2 * torch.cat([level, level - 1, level - 2], 1).clamp(0, 1) - 1


def columns(batch: Batch, output: Output) -> dict[str, Tensor]:
    """The columns of a grid by name, (B, 3, H, W) in [-1, 1]."""
    size = batch.image.shape[-2:]
    moved = output.transported
    tiles = (colour(batch.condition), batch.exemplar, moved.warped,
             interpolate(heat(moved.kept.float()), size=size, mode="nearest"), output.image, batch.image)
    return {name: tile.detach().float().cpu() for name, tile in zip(COLUMNS, tiles, strict=True)}


def grid(tiles: dict[str, Tensor], scale: int = 1) -> np.ndarray:
    """(H, W, 3) bytes: the columns side by side, a row a pair, each pixel ``scale`` pixels wide."""
    rows, _, height, width = next(iter(tiles.values())).shape
    height, width = height * scale, width * scale
    picture = Image.new("RGB", (len(tiles) * (width + GAP) + GAP, HEAD + rows * (height + GAP)), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=10)
    for column, (name, images) in enumerate(tiles.items()):
        left = GAP + column * (width + GAP)
        draw.text((left + width / 2, HEAD / 2), name, fill="black", font=font, anchor="mm")
        for row, image in enumerate(images):
            tile = Image.fromarray(to_bytes(image)).resize((width, height), Image.Resampling.NEAREST)
            picture.paste(tile, (left, HEAD + row * (height + GAP)))
    return np.asarray(picture)


def to_bytes(image: Tensor) -> np.ndarray:
    """An image (3, H, W) in [-1, 1] as (H, W, 3) bytes."""
    return (image.detach().float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy())


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) bytes as PNG, whole or not at all."""
    held = io.BytesIO()
    Image.fromarray(picture).save(held, format="PNG")
    write_whole(path, lambda file: file.write(held.getvalue()))
