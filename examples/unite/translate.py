"""`python -m examples.unite.translate CONDITION EXEMPLAR -o OUT.png --run DIR`: translate with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from . import checkpoint
from .config import Config
from .data.folder import read_condition, read_image
from .diagnosis import OutOfMemory, TrainingError, memory_advice
from .ema import Average
from .grids import to_bytes, write_png
from .launch import make_accelerator
from .model import Unite
from .structures import Output

#: Files of a folder that are taken; .npy are conditions that no picture can hold.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy")


class Job(NamedTuple):
    """One output: what it is made from, and its file."""

    condition: Path
    exemplar: Path
    exemplar_condition: Path | None
    out: Path


def load_model(run: Path, which: str = "last", device: torch.device | str = "cpu") -> tuple[Unite, Config]:
    """A run's model in evaluation mode, its weights averaged where the run averaged them.

    Args:
        run: A run's folder, or a checkpoint's file.
        which: Of a folder: the "last" checkpoint or the "best" (by PSNR on held-out pairs).
        device: Where it goes.

    Raises:
        CheckpointError: Nothing there, or nothing whole.
    """
    if run.is_file():
        path = run
    elif which == "best":
        path = run / "checkpoints" / checkpoint.BEST
    else:
        path = checkpoint.latest(run / "checkpoints")
    state = checkpoint.load(path, device)
    config = Config.from_dict(state["config"])
    model = Unite(config.model, config.match).to(device)
    if state["average"] is not None:
        average = Average(model, config.train.ema)
        average.load_state_dict(state["average"])
        model = average.model
    else:
        model.load_state_dict(state["model"])
    return model.eval().requires_grad_(False), config


def translate(model: Unite, condition: Tensor, exemplar: Tensor, exemplar_condition: Tensor | None) -> Output:
    """What a model makes of conditions (B, S, H, W) and exemplars (B, 3, H, W) in [-1, 1]; the caller's grad mode is
    left as it is.

    Args:
        exemplar_condition: Of the exemplars, as `condition`; None where the model does not mix it in.

    Raises:
        ValueError: The model needs conditions of exemplars.
    """
    if exemplar_condition is None and model.config.mask == "mix":
        raise ValueError('this model was trained with model.mask = "mix": it needs the condition of the exemplar too '
                         '(--exemplar-condition); one that is trained with "noise" or "none" does not')
    with torch.no_grad():
        return model(condition, exemplar, exemplar_condition)


def load_condition(path: Path, config: Config) -> Tensor:
    """A condition's file as (S, H, W) in [0, 1] at the model's size: a PNG of class ids or an RGB image as in a folder
    of one's own data, or a .npy array of (S, H, W), for edges, landmarks and layouts.

    Raises:
        ValueError: Another number of channels, an id that is no class, values out of [0, 1], a broken file.
    """
    size, channels = config.model.size, config.model.condition_channels
    if path.suffix.lower() != ".npy":
        return read_condition(path, size, channels)
    array = _array(path)
    plain = array.dtype.kind in "buif" and array.size > 0
    if not plain or array.ndim != 3 or array.shape[0] != channels or not ((array >= 0) & (array <= 1)).all():
        within = f" in [{array.min():g}, {array.max():g}]" if plain else ""
        raise ValueError(f"{path} must be an array ({channels}, H, W) with values in [0, 1], got {array.shape} of "
                         f"{array.dtype}{within}")
    return interpolate(torch.from_numpy(array.astype(np.float32))[None], size=(size, size), mode="nearest")[0]


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # a broken header has many ways to fail
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} cannot be read as a .npy array: {reason}") from error


def jobs(condition: Path, exemplar: Path, exemplar_condition: Path | None, out: Path) -> list[Job]:
    """What is translated with what.

    Two files make one output.  A folder makes one for each of its pictures: two folders go together by the pictures'
    names (without endings), a file goes with every picture of the other's folder.

    Raises:
        FileNotFoundError: A file that is missing, or a folder without pictures.
        ValueError: Pictures of two folders that do not go together.
    """
    if not condition.is_dir() and not exemplar.is_dir():
        files = [path for path in (condition, exemplar, exemplar_condition) if path is not None]
        for path in files:
            if not path.is_file():
                raise FileNotFoundError(f"no file {path}")
        return [Job(condition, exemplar, exemplar_condition, out)]
    names = [set(_pictures(path)) for path in (condition, exemplar) if path.is_dir()]
    missing = set.symmetric_difference(*names) if len(names) == 2 else set()
    if missing:
        raise ValueError(f"{condition} and {exemplar} must hold pictures of the same names; only one has "
                         f"{', '.join(sorted(missing)[:3])}")
    return [Job(_member(condition, name), _member(exemplar, name),
                _member(exemplar_condition, name if exemplar.is_dir() else exemplar.stem)
                if exemplar_condition is not None else None, out / f"{name}.png")
            for name in sorted(names[0])]


def _pictures(folder: Path) -> dict[str, Path]:
    found = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    if not found:
        raise FileNotFoundError(f"no pictures in {folder}")
    return found


def _member(path: Path, name: str) -> Path:
    """The picture of this name, or the file that stands for all."""
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        return path
    found = _pictures(path)
    if name not in found:
        raise FileNotFoundError(f"no picture {name} in {path}")
    return found[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Translate files or folders; returns the exit status."""
    options = _parse(argv)
    try:
        device = make_accelerator(options.device, "no").device
        found = jobs(options.condition, options.exemplar, options.exemplar_condition, options.out)
        model, config = load_model(options.run, options.checkpoint, device)
        with memory_advice(config):
            for job in found:
                own = job.exemplar_condition
                output = translate(
                    model, load_condition(job.condition, config)[None].to(device),
                    read_image(job.exemplar, config.model.size)[None].to(device),
                    load_condition(own, config)[None].to(device) if own is not None else None)
                write_png(job.out, to_bytes(output.image[0]))
                print(f"wrote {job.out}", flush=True)
    except OutOfMemory as error:  # its own words are about settings of a training
        print(out_of_memory(error.__cause__ or error, device, config), file=sys.stderr)
        return 1
    except (TrainingError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def out_of_memory(error: BaseException, device: torch.device, config: Config) -> str:
    """What helps a translation, which takes one picture at a time: another device, or a smaller model."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    model = config.model
    ways = ["--device cpu"] if device.type != "cpu" else []
    ways += ["other programs that hold memory closed",
             f"a model that was trained smaller than {model.size} px with stride {model.stride} and base {model.base}"]
    return f"out of memory ({first[:160]}); what helps: " + "; or ".join(ways)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.translate", description=__doc__.split(": ", 1)[1])
    parser.add_argument("condition", type=Path, help="what to show: a PNG of class ids, or a folder of them")
    parser.add_argument("exemplar", type=Path, help="how it should look: an image, or a folder of them")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a PNG; a folder where one of the two is one")
    parser.add_argument("--run", type=Path, default=Path("out/unite/tiny"),
                        help="folder of a training, or one of its checkpoints (%(default)s)")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last", help="of a folder (%(default)s)")
    parser.add_argument("--exemplar-condition", type=Path, metavar="FILE",
                        help="condition of the exemplar, needed where model.mask is mix; a folder goes by names")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
