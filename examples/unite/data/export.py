"""Pairs as files, in the format of one's own data: what `translate` and ``--data folder`` read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from examples.unite.grids import palette, to_bytes

from .pairs import Pairs


def export(pairs: Pairs, kind: str, folder: Path) -> list[str]:
    """Write ``condition/``, ``image/``, ``pairs.csv`` and for masks ``classes.txt`` (see `check.check_folder`).

    An item is two files in each folder, NAME for the target and NAME-exemplar; slashes of a name become ``__``.  Masks
    are PNGs, RGB images or class ids (up to 256 classes with a palette); the other conditions are more than a PNG holds
    and become .npy arrays (S, H, W), for `translate` alone.

    Args:
        pairs: What is written, at its size and of its epoch.
        kind: Of its conditions, one of `KINDS`.
        folder: Made if it is not there.

    Returns:
        Names of the targets.

    Raises:
        FileExistsError: The folder holds such data already; nothing is written over, nor are two items of one name.
    """
    coloured = kind == "mask" and pairs.class_names is None and pairs.condition_channels == 3
    for name in ("condition", "image", "pairs.csv", "classes.txt"):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} is there already: give a folder without data in it")
    for name in ("condition", "image"):
        (folder / name).mkdir(parents=True)
    names = []
    for index in range(len(pairs)):
        sample = pairs[index]
        names.append(sample.name.replace("/", "__"))
        for name, image, condition in ((names[-1], sample.image, sample.condition),
                                       (f"{names[-1]}-exemplar", sample.exemplar, sample.exemplar_condition)):
            file = folder / "image" / f"{name}.png"
            if file.exists():
                raise FileExistsError(f"{file} would be of two items: {name!r} is a name and a pair's exemplar")
            Image.fromarray(to_bytes(image)).save(file)
            if kind != "mask":
                np.save(folder / "condition" / f"{name}.npy", condition.numpy())
                continue
            picture = Image.fromarray(to_bytes(2 * condition - 1)) if coloured else _labels(condition)
            picture.save(folder / "condition" / f"{name}.png")
    if kind == "mask" and not coloured:
        classes = pairs.class_names or tuple(f"class {i}" for i in range(pairs.condition_channels))
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    rows = ["name,exemplar", *(f"{name},{name}-exemplar" for name in names)]
    (folder / "pairs.csv").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return names


def _labels(condition: Tensor) -> Image.Image:
    """One-hot classes (S, H, W) as a picture of ids in the colours of `grids.palette`, of more than 256 in 16 bits."""
    if len(condition) > 256:
        return Image.fromarray(condition.argmax(0).numpy().astype(np.uint16))
    made = Image.fromarray(condition.argmax(0).byte().numpy())
    made.putpalette((255 * palette(len(condition))).round().byte().flatten().tolist())
    return made
