"""``python -m examples.unite.data --out DIR``: a picture of pairs, to look at before training on them.

With ``--export`` pairs are written as files: what ``translate`` takes, and of masks a folder of data as one's own is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.unite.grids import colour, grid, write_png
from examples.unite.structures import collate

from . import KINDS, NAMES, make
from .listed import Listed
from .pairs import SPLITS, Pairs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.data", description=__doc__)
    parser.add_argument("--data", choices=NAMES, default="avatars")
    parser.add_argument("--root", default=None, help="the folder of the data, or the avatars' cache")
    parser.add_argument("--condition", choices=KINDS["avatars"], help="of avatars, and of celebahq edges or landmarks")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--count", type=int, default=8, help="pairs to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--pseudo-share", type=float, default=0.3)
    parser.add_argument("--out", type=Path, required=True, help="folder of the picture")
    parser.add_argument("--export", action="store_true",
                        help="write the pairs as condition/, image/ and pairs.csv instead of the picture")
    options = parser.parse_args(argv)
    try:
        pairs = make(options.data, root=options.root, size=options.size, split=options.split, seed=options.seed,
                     condition=options.condition, pseudo_share=options.pseudo_share, count=options.count)
    except (ValueError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    pairs.set_epoch(options.epoch)
    if options.export:
        return _exported(pairs, options.condition or KINDS[options.data][0], options.out)
    start = time.perf_counter()
    try:
        samples = [pairs[index] for index in range(len(pairs))]
    except (ValueError, OSError) as error:  # of a file that is read for the first time
        print(error, file=sys.stderr)
        return 1
    seconds = time.perf_counter() - start
    batch = collate(samples)
    kind = options.condition or KINDS[options.data][0]
    tiles = {"condition": shown(batch.condition, kind), "exemplar's": shown(batch.exemplar_condition, kind),
             "exemplar": batch.exemplar, "truth": batch.image}
    options.out.mkdir(parents=True, exist_ok=True)
    name = (options.data, kind, options.split) if len(KINDS[options.data]) > 1 else (options.data, options.split)
    file = options.out / f"{'-'.join(name)}.png"
    write_png(file, grid(tiles))
    for index, sample in enumerate(samples):
        print(f"{sample.name}: {'pseudo pair' if sample.self_reference else 'pair'}{_sides(pairs, index)}")
    print(f"{file}: {len(samples)} pairs in {seconds:.1f} s")
    return 0


def _exported(pairs: Pairs, kind: str, out: Path) -> int:
    from .export import export

    try:
        names = export(pairs, kind, out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{out}: {len(names)} pairs, {names[0]} with {names[0]}-exemplar and so on; "
          + ("translate and --data folder read them" if kind == "mask" else "translate reads them"))
    return 0


def shown(condition: torch.Tensor, kind: str) -> torch.Tensor:
    """Conditions as images in [-1, 1]; of landmarks and edges the channels that are a picture."""
    if kind == "landmarks":
        return 2 * condition[:, :3] - 1
    if kind == "edges":
        return 2 * condition[:, :1].expand(-1, 3, -1, -1) - 1
    return colour(condition)


def _sides(pairs: Pairs, index: int) -> str:
    if isinstance(pairs, Listed) and pairs.class_names is None:
        return ""
    here, there = pairs.one_sided(index)
    return "".join(f"; {side} only: {', '.join(names)}" for side, names in (("target", here), ("exemplar", there))
                   if names)


if __name__ == "__main__":
    raise SystemExit(main())
