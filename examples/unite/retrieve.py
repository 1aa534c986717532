"""`python -m examples.unite.retrieve --query DIR --gallery DIR -k 20 -o LIST`: exemplars for one's own images.

Exemplar lists: for each image of the query the k images of the gallery that look most like it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset

from .checkpoint import write_whole
from .data.check import SUFFIXES, Unreadable, load_picture
from .data.modes import rgb
from .feature_cache import FeatureCache, file_key
from .launch import make_accelerator
from .layers import unit_length
from .logs import Progress
from .neighbours import Rows, check_count, nearest
from .perceptual import BLOCKS, PerceptualNetwork, load_perceptual
from .pictures import Picture, find_pictures


class Decoded(Dataset[Tensor | str]):
    """Images as (size, size, 3) bytes, stretched to a square; of one that cannot be read, why."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            picture = rgb(load_picture(self.files[index]))
        except (Unreadable, OSError) as error:
            return str(error)
        except ValueError as error:
            return f"{self.files[index]} cannot be read: {error}"
        return torch.from_numpy(np.array(picture.resize((self.size, self.size), Image.Resampling.BICUBIC)))


def features(network: PerceptualNetwork, pictures: Tensor, grid: int) -> Tensor:
    """The feature after the last max-pool, averaged to ``grid`` by ``grid`` positions, as vectors of unit length.

    Args:
        network: Loaded ``whole``.
        pictures: (B, H, W, 3) bytes.
        grid: At most 1/32 of the pictures' side.

    Returns:
        (B, C grid^2) of float16.
    """
    images = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    return unit_length(adaptive_avg_pool2d(network.pooled(images), grid).flatten(1)).half()


def fill(cache: FeatureCache, wanted: dict[str, Path], network: PerceptualNetwork, *, size: int, grid: int, batch: int,
         device: torch.device, workers: int = 0, stream: TextIO | None = None,
         say: Callable[[str], None] | None = None) -> dict[str, str]:
    """Make the features that a cache lacks, one batch after the other; each is on the disk before the next is begun.

    Args:
        cache: Of this network, size and grid.
        wanted: Images by `file_key`; those that the cache has and that are whole are left as they are.
        size: Side that images are stretched to, in pixels.
        batch: Images that go through the network together.
        workers: Processes that decode; 0: this one does.

    Returns:
        Why, by `file_key`, for the images that cannot be read.

    Raises:
        ValueError: A feature that is no number.
    """
    cache.verify([key for key in wanted if key in cache])
    keys = [key for key in wanted if key not in cache]
    files = [wanted[key] for key in keys]
    loader = DataLoader(Decoded(files, size), batch_size=batch, num_workers=workers, collate_fn=list)
    progress = Progress(0, len(loader), min(batch, len(keys)), stream, say)
    broken: dict[str, str] = {}
    try:
        for number, found in enumerate(loader):
            held = list(zip(keys[number * batch:], found, strict=False))
            broken |= {key: each for key, each in held if isinstance(each, str)}
            good = {key: each for key, each in held if isinstance(each, Tensor)}
            if good:
                with torch.no_grad():
                    rows = features(network, torch.stack(list(good.values())).to(device), grid).cpu().numpy()
                for key in (key for key, row in zip(good, rows, strict=True) if not np.isfinite(row).all()):
                    raise ValueError(f"the features of {wanted[key]} are no numbers: {network.name} is broken")
                cache.add(list(good), rows)
            progress.step(number + 1, {})
    finally:
        progress.close()
    return broken


def exclusions(queries: Sequence[Picture], gallery: Sequence[Picture]) -> list[list[int]]:
    """For each query the places in the gallery that are itself: the same file, or another of the same name."""
    places = defaultdict(list)
    for place, picture in enumerate(gallery):
        places[picture.name].append(place)
        places[picture.file.resolve()].append(place)
    return [sorted({*places.get(picture.name, ()), *places.get(picture.file.resolve(), ())}) for picture in queries]


def write_list(path: Path, queries: Sequence[Picture], gallery: Sequence[Picture], found: np.ndarray) -> None:
    """``name,exemplar1,...`` a line, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [picture.name, *(gallery[place].name for place in places)]
        for picture, places in zip(queries, found.tolist(), strict=True))
    write_whole(path, lambda file: file.write(text.getvalue().encode()))


def settings(network: PerceptualNetwork, size: int, grid: int) -> dict[str, object]:
    """What features follow from, beside the image: the key of their cache."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return {"network": network.name, "weights": digest.hexdigest(), "size": size, "grid": grid}


def main(argv: Sequence[str] | None = None) -> int:
    """Make a list; returns the exit status."""
    options = _parse(argv)
    try:
        return _retrieve(options)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        print(f"out of memory ({str(error)[:160]}); what helps: a lower --batch; a lower --chunk; "
              "--device cpu", file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on with the features that are in {options.cache}", file=sys.stderr)
        return 130
    return 1


def _retrieve(options: argparse.Namespace) -> int:
    if options.out.is_dir():
        raise IsADirectoryError(f"-o must name a file, got the folder {options.out}")
    suffixes = tuple(options.suffix) if options.suffix else SUFFIXES
    queries, gallery = (find_pictures(source, options.root, suffixes) for source in (options.query, options.gallery))
    check_count(options.k, len(gallery), exclusions(queries, gallery))  # before the features, which take hours
    options.out.parent.mkdir(parents=True, exist_ok=True)
    device = make_accelerator(options.device, "no").device
    network = load_perceptual(options.network, options.file, device, whole=True)
    keys, broken = _keys(picture.file for picture in (*queries, *gallery))
    wanted = {key: file for file, key in keys.items()}
    width = network.blocks[-1][-1].out_channels * options.grid**2
    print(f"{len(queries)} queries, {len(gallery)} images in the gallery; {network.name} at {options.size} px, "
          f"{width} numbers an image, {2e-6 * width * len(wanted):.1f} MB of features in {options.cache}", flush=True)
    with FeatureCache(options.cache, settings(network, options.size, options.grid), width, _told("cache")) as cache:
        lost = fill(cache, wanted, network, size=options.size, grid=options.grid, batch=options.batch, device=device,
                    workers=options.workers, stream=sys.stderr, say=_told("features"))
        broken |= {file: lost[key] for file, key in keys.items() if key in lost}
        for reason in dict.fromkeys(broken.values()):
            print(reason, file=sys.stderr)
        if broken:
            print(f"{len(broken)} of {len(keys.keys() | broken.keys())} images cannot be read"
                  + ("; the list is without them" if options.skip_broken else "; --skip-broken makes a list without "
                     "them"), file=sys.stderr)
            if not options.skip_broken:
                return 1
            queries, gallery = ([picture for picture in pictures if picture.file not in broken]
                                for pictures in (queries, gallery))
        rows = cache.rows()
        sides = [Rows(rows, cache.places([keys[picture.file] for picture in pictures]))
                 for pictures in (queries, gallery)]
        progress = Progress(0, -(-len(queries) // options.chunk), min(options.chunk, len(queries)), sys.stderr,
                            _told("search"))
        try:
            found = nearest(*sides, options.k, excluded=exclusions(queries, gallery), chunk=options.chunk,
                            device="cpu" if device.type == "mps" else device,  # which has no float64
                            step=lambda number: progress.step(number, {}))
        finally:
            progress.close()
    write_list(options.out, queries, gallery, found)
    print(f"wrote {options.out}: {len(queries)} lines of {options.k} exemplars by {network.name}")
    return 0


def _keys(files: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """The `file_key` of each file; and why, of those that have none: links to nothing, say."""
    keys, lost = {}, {}
    for file in files:
        try:
            keys[file] = file_key(file)
        except OSError as error:
            lost[file] = f"{file} cannot be read: {error.strerror}"
    return keys, lost


def _told(what: str) -> Callable[[str], None]:
    return lambda text: print(f"{what}: {text}", flush=True)


def _suffixes(text: str) -> Iterator[str]:
    for ending in text.lower().split(","):
        if f".{ending.lstrip('.')}" not in SUFFIXES:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(SUFFIXES)}, got {ending!r}")
        yield f".{ending.lstrip('.')}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.retrieve",
                                     description=__doc__.split("\n\n")[1].strip())
    parser.add_argument("--query", type=Path, required=True, metavar="DIR_OR_LIST",
                        help="images that want exemplars: a folder, or a list of names")
    parser.add_argument("--gallery", type=Path, required=True, metavar="DIR_OR_LIST",
                        help="images that may be exemplars; an image is never its own")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the names of lists begin (the list's folder)")
    parser.add_argument("--suffix", type=lambda text: list(_suffixes(text)), metavar=".jpg,...",
                        help=f"endings of images ({', '.join(SUFFIXES)})")
    parser.add_argument("-k", type=_positive, default=20, help="exemplars of each image (%(default)s)")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="LIST",
                        help="the list: name,exemplar1,... a line, the most similar first")
    parser.add_argument("--network", choices=(*BLOCKS, "random"), default="vgg19", help="(%(default)s)")
    parser.add_argument("--file", default="", metavar="WEIGHTS",
                        help="of the network, .pth or .safetensors; without it torchvision's, where it is installed")
    parser.add_argument("--size", type=_positive, default=256, help="side that images are stretched to (%(default)s)")
    parser.add_argument("--grid", type=_positive, default=4,
                        help="positions a side that features are averaged to (%(default)s)")
    parser.add_argument("--batch", type=_positive, default=16, help="images in the network together (%(default)s)")
    parser.add_argument("--chunk", type=_positive, default=1024, help="images compared at a time (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images (%(default)s: none)")
    parser.add_argument("--cache", type=Path, default=Path("out/unite/features"), metavar="DIR",
                        help="where features are kept (%(default)s)")
    parser.add_argument("--skip-broken", action="store_true", help="make the list without images that cannot be read")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    options = parser.parse_args(argv)
    if options.size < 32 * options.grid:
        parser.error(f"--size must be 32 times --grid or more, {32 * options.grid}, got {options.size}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
