"""`python -m examples.unite.importer --generator FILE --correspondence FILE`: the authors' checkpoints as a run.

A run of preset `released` with the weights of the authors' checkpoints, for translate and for training on.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import checkpoint
from .checkpoint import CheckpointError
from .config import Config, preset
from .launch import make_accelerator
from .learner import Learner
from .released import Outcome, correspondence, discriminator, generator, transfer
from .settings import assign


class Task(NamedTuple):
    """What a checkpoint of one of the authors' scripts must be."""

    channels: int
    coordinates: bool
    mask: str
    bilinear_warp: bool  # shapes do not say


TASKS = {"ade20k": Task(151, True, "mix", False), "coco": Task(183, False, "mix", False),
         "celebahq": Task(15, False, "mix", True), "deepfashion": Task(20, False, "none", True)}
#: Settings of the model that are read off the shapes.
INFERRED = ("condition_channels", "base", "hidden", "strided_kernel", "extractor_attention", "coordinates", "mask",
            "residual_layers", "descriptor_dim", "discriminators", "discriminator_attention")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict of theirs, without the ``module.`` of DataParallel.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a broken file does to a pickle has many names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"{path} holds no weights that can be read: {reason}") from error
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(state).__name__}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def infer(found: Mapping[str, Tensor], judge: Mapping[str, Tensor] | None, mask: str | None = None) -> dict[str, Any]:
    """Settings of the model, `INFERRED`, from the shapes of a correspondence network and a discriminator.

    Args:
        found: Tensors of ``netCorr``.
        judge: Tensors of ``netD``; without it nothing is said of discriminators.
        mask: "mix" or "none" where it is known: with conditions of three channels, shapes may be of either.

    Raises:
        ValueError: A tensor that the answer needs is missing or of no such shape, or shapes cannot say.
    """
    first, strided, norm, shared, theta = (_shape(found, name, ndim) for name, ndim in (
        ("adaptive_model_seg.layer1.0.weight_orig", 4), ("adaptive_model_seg.layer2.0.weight_orig", 4),
        ("adaptive_model_seg.head_0.norm_0.mlp_shared.1.weight", 4), ("layer.0.conv1.weight", 4), ("theta.weight", 4)))
    base, channels = first[:2]
    ways = {3 * coordinates + channels * (mixed == "mix"): (coordinates, mixed)
            for mixed in ("mix", "none") for coordinates in (False, True) if mask in (None, mixed)}
    extra = shared[0] - 4 * base
    if mask is None and channels == 3 == extra:
        raise ValueError("three channels are appended to the features, and conditions have three: are they the "
                         "condition or coordinates? --set model.mask=mix or --set model.mask=none says it")
    if extra not in ways:
        raise ValueError(f"layer.0.conv1.weight has {shared[0]} channels, which are not 4 x {base} and "
                         f"{', '.join(map(str, sorted(ways)))} more (the condition's {channels}, 3 coordinates)")
    coordinates, mixed = ways[extra]
    said = {"condition_channels": channels, "base": base, "hidden": norm[0], "strided_kernel": strided[2],
            "extractor_attention": "adaptive_model_seg.attn.theta.weight" in found, "coordinates": coordinates,
            "mask": mixed, "descriptor_dim": theta[0],
            "residual_layers": len({name.split(".")[1] for name in found if name.startswith("layer.")})}
    if judge is not None:
        said["discriminators"] = len({name.split(".")[0] for name in judge if name.startswith("discriminator_")})
        said["discriminator_attention"] = "discriminator_0.attn.gamma" in judge
    return said


def configure(said: Mapping[str, Any], task: str | None, changes: Sequence[str] = ()) -> Config:
    """Preset ``released`` for a checkpoint: what shapes say, then the task, then settings by hand.

    Raises:
        ValueError: The checkpoint is not of that task.
    """
    model = dict(said)
    if task is not None:
        expected = TASKS[task]
        for name, value in (("condition_channels", expected.channels), ("coordinates", expected.coordinates),
                            ("mask", expected.mask)):
            if said[name] != value:
                raise ValueError(f"--task {task} has model.{name} = {value!r}, but the checkpoint's shapes say "
                                 f"{said[name]!r}")
        model["bilinear_warp"] = expected.bilinear_warp
    config = preset("released").replace("model", **model)
    for text in changes:
        config = assign(config, text)
    return config


def load(config: Config, files: Mapping[str, Mapping[str, Tensor]]) -> tuple[Learner, dict[str, Outcome], list[str]]:
    """Networks with the tensors of ``files`` ("correspondence", "generator" and if wanted "discriminator") in them.

    Returns:
        The networks, what became of each file's tensors, and the names of parameters and buffers that were left as they
        were drawn.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="images are judged by random")  # nothing is judged here
        learner = Learner(config, make_accelerator("cpu", "no"))
    parts = {"correspondence": (learner.unite, correspondence), "generator": (learner.unite, generator),
             "discriminator": (learner.discriminator, discriminator)}
    done = {name: transfer(found, parts[name][0], parts[name][1](config.model)) for name, found in files.items()}
    put = done["correspondence"].put | done["generator"].put
    left = [name for name in learner.unite.state_dict() if name not in put]
    if "discriminator" in files:
        left += [f"discriminator.{name}" for name in learner.discriminator.state_dict()
                 if name not in done["discriminator"].put]
    if learner.average is not None:
        learner.average.model.load_state_dict(learner.unite.state_dict())
    return learner, done, left


def save(learner: Learner, out: Path) -> Path:
    """A checkpoint of step 0, as training writes them, but that any perceptual network may judge from there on."""
    config = learner.config
    return checkpoint.save({**learner.state_dict(), "perceptual": None, "step": 0, "position": 0,
                            "config": config.to_dict(), "random": [checkpoint.random_state()], "best": None},
                           out / "checkpoints", 0, best=False)


def report(done: Mapping[str, Outcome], files: Mapping[str, Path]) -> list[str]:
    """What became of each file, a line a fact."""
    lines = []
    for name, outcome in done.items():
        lines.append(f"{files[name]}: {len(outcome.put)} tensors taken over into the {name}")
        lines += [f"  {reason}: {tensors} tensors, {numbers} numbers, never used" for reason, (tensors, numbers)
                  in outcome.unused.items()]
        lines += [f"  {note}" for note in outcome.notes]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Import; returns the exit status."""
    options = _parse(argv)
    paths = {"correspondence": options.correspondence, "generator": options.generator,
             "discriminator": options.discriminator}
    paths = {name: path for name, path in paths.items() if path is not None}
    try:
        if checkpoint.saved(options.out / "checkpoints"):
            raise CheckpointError(f"{options.out} holds a run already: -o names another folder")
        files = {name: read_tensors(path) for name, path in paths.items()}
        mask = next((text.partition("=")[2].strip() for text in options.set if text.startswith("model.mask=")), None)
        config = configure(infer(files["correspondence"], files.get("discriminator"), mask), options.task, options.set)
        torch.manual_seed(config.train.seed)
        learner, done, left = load(config, files)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    for line in report(done, paths):
        print(line)
    for name, outcome in done.items():
        for problem in outcome.problems:
            print(f"{paths[name]}: {problem}", file=sys.stderr)
    if left:
        print(f"{len(left)} tensors of the model were left as they were drawn: {', '.join(left[:5])}"
              + (", ..." if len(left) > 5 else ""), file=sys.stderr)
    if (left or any(outcome.problems for outcome in done.values())) and not options.partial:
        print("not written, since it would not be wholly theirs; --partial writes it all the same", file=sys.stderr)
        return 1
    if "discriminator" not in files:
        print("no discriminator was given: training on would begin with a new one")
    print(f"model: {', '.join(f'{name} {getattr(config.model, name)}' for name in INFERRED)}; "
          f"match.masses {config.match.masses}, model.confidence {config.model.confidence}")
    print(f"wrote {save(learner, options.out)}; translate --run {options.out} reads it")
    return 0


def _shape(found: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in found:
        raise ValueError(f"the correspondence network has no {name}, which says how the model was made; it begins with "
                         f"{', '.join(list(found)[:3])}")
    if found[name].ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, got {tuple(found[name].shape)}")
    return tuple(found[name].shape)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.importer",
                                     description=__doc__.split("\n\n")[1].strip())
    parser.add_argument("--generator", type=Path, required=True, metavar="FILE", help="EPOCH_net_G.pth, or G_ema")
    parser.add_argument("--correspondence", type=Path, required=True, metavar="FILE",
                        help="EPOCH_net_Corr.pth, or netCorr_ema")
    parser.add_argument("--discriminator", type=Path, metavar="FILE", help="EPOCH_net_D.pth, for training on")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/unite/imported"),
                        help="folder of the run (%(default)s)")
    parser.add_argument("--task", choices=tuple(TASKS), help="what it was trained for: checked, and sets what shapes "
                                                             "do not say (bilinear_warp)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
                        help="any other setting of config.py, as often as needed")
    parser.add_argument("--partial", action="store_true", help="write a model that is not wholly theirs, too")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
