"""Pairs as files, in the format of one's own data: what `translate` and ``--data folder`` read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from examples.unite.grids import palette, to_bytes

from .avatars import Avatars


def export(pairs: Avatars, folder: Path) -> list[str]:
    """Write ``condition/``, ``image/``, ``pairs.csv`` and for masks ``classes.txt`` (see `check.check_folder`).

    An item is two files in each folder, NAME for the target and NAME-exemplar.  Masks are PNGs of class ids with a
    palette; the other conditions are more than a PNG holds and become .npy arrays (S, H, W), for `translate` alone.

    Args:
        pairs: What is written, at its size and of its epoch.
        folder: Made if it is not there.

    Returns:
        Names of the targets.

    Raises:
        FileExistsError: The folder holds such data already; nothing is written over.
    """
    for name in ("condition", "image", "pairs.csv", "classes.txt"):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} is there already: give a folder without data in it")
    for name in ("condition", "image"):
        (folder / name).mkdir(parents=True)
    names = []
    for index in range(len(pairs)):
        sample = pairs[index]
        names.append(sample.name)
        for name, image, condition in ((sample.name, sample.image, sample.condition),
                                       (f"{sample.name}-exemplar", sample.exemplar, sample.exemplar_condition)):
            Image.fromarray(to_bytes(image)).save(folder / "image" / f"{name}.png")
            if pairs.condition == "mask":
                _labels(condition).save(folder / "condition" / f"{name}.png")
            else:
                np.save(folder / "condition" / f"{name}.npy", condition.numpy())
    if pairs.condition == "mask":
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in pairs.class_names), encoding="utf-8")
    rows = ["name,exemplar", *(f"{name},{name}-exemplar" for name in names)]
    (folder / "pairs.csv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return names


def _labels(condition: Tensor) -> Image.Image:
    """One-hot classes (S, H, W) as a picture of ids in the colours of `grids.palette`."""
    made = Image.fromarray(condition.argmax(0).byte().numpy())
    made.putpalette((255 * palette(len(condition))).round().byte().flatten().tolist())
    return made
