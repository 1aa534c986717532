"""`python -m examples.unite.train`: train UNITE; without arguments, `tiny` on avatars, on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, task
from .checkpoint import CheckpointError
from .config import CHOICES, PRESETS, Config, preset
from .diagnosis import TrainingError
from .logs import read
from .settings import assign, differences
from .trainer import Trainer

#: Shorthands: flag, setting, help.
FLAGS = (
    ("data", "data.source", "avatars (drawn by seed), folder (one's own) or a data set: "
     + ", ".join(CHOICES["source"][2:])),
    ("root", "data.root", "folder of the data, or where avatars are kept"),
    ("condition", "data.condition", "of avatars " + ", ".join(CHOICES["condition"]) + "; of celebahq edges, landmarks"),
    ("size", "model.size", "side of the images in pixels"),
    ("steps", "train.steps", "updates of each network"),
    ("batch", "train.batch", "examples in a batch"),
    ("seed", "train.seed", "of weights and of the examples' order"),
    ("precision", "train.precision", "of the networks: " + ", ".join(CHOICES["precision"])),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train; returns the exit status."""
    options = _parse(argv)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        state = _checkpoint(options) if options.resume else None
        config = configure(options, state)
        _find_weights(config)
        out = options.out if options.out is not None else _folder(options, config.preset)
        if state is None and checkpoint.saved(out / "checkpoints"):
            raise CheckpointError(f"{out} holds a run already: --resume goes on with it, --out names another folder")
        changes = _changes(state, config) if state is not None else []
        trainer = Trainer(config, out, device=options.device, workers=options.workers, resume=options.resume,
                          state=state)
    except (ValueError, OSError, ModuleNotFoundError, TrainingError) as error:  # of settings, files, and memory
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    try:
        if trainer.accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            checkpoint.write_whole(out / "config.json",
                                   lambda file: file.write(json.dumps(trainer.config.to_dict(), indent=1).encode()))
            for line in (*(f"changed: {line}" for line in changes), *trainer.notes, *_introduction(trainer)):
                say(line)
        trainer.run(stream=sys.stderr, say=say)
    except (TrainingError, ValueError, OSError) as error:  # of a loss, or of a file that is read for the first time
        print(f"{type(error).__name__}: {_message(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; --resume --out {out} goes on from the last checkpoint", file=sys.stderr)
        return 130
    if trainer.accelerator.is_main_process:
        for line in _summary(out, time.perf_counter() - start):
            say(line)
    trainer.accelerator.end_training()  # takes leave of the other processes
    return 0


def configure(options: argparse.Namespace, state: dict[str, Any] | None = None) -> Config:
    """The configuration that flags ask for: a preset's and a task's over it, or on ``--resume`` without a preset the
    checkpoint's (``state``), of which a task then says the folder alone; with the flags' changes.
    """
    if state is not None and options.preset is None:
        config = Config.from_dict(state["config"])
    else:
        config = preset(options.preset or ("tiny" if options.task is None else "default"))
        if options.task is not None:
            config = task.apply(config, options.task)
    for flag, setting, _ in FLAGS:
        value = getattr(options, flag)
        if value is not None:
            config = assign(config, f"{setting}={value}")
    for text in options.set:
        config = assign(config, text)
    return config


def _find_weights(config: Config) -> None:
    """Look for the weights of the perceptual network, which are read after the data.

    Raises:
        FileNotFoundError: There are none.
    """
    loss = config.loss
    if loss.perceptual == "random" or not (loss.pseudo or loss.perceptual_weight or loss.contextual):
        return
    if loss.perceptual_file and not Path(loss.perceptual_file).is_file():
        raise FileNotFoundError(f"no file of a perceptual network at {loss.perceptual_file}")
    if not loss.perceptual_file and importlib.util.find_spec("torchvision") is None:
        raise FileNotFoundError(f"no weights for {loss.perceptual}: --set loss.perceptual_file=FILE takes "
                                "torchvision's state dict of it, .pth or .safetensors; or install torchvision")


def _message(error: Exception) -> str:
    """An error's own words, also where a process that prepares batches hands them on at the end of its traceback."""
    text = str(error).strip()
    return text.rpartition("\n")[2].partition(": ")[2] if "\nOriginal Traceback" in text else text


def _folder(options: argparse.Namespace, name: str) -> Path:
    """Where a run goes that no folder was named for: by its task, else by its preset."""
    return Path("out/unite") / (name if options.task is None else Path(options.task).stem)


def _checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    """The newest checkpoint of the folder that is meant."""
    out = options.out or _folder(options, options.preset or "tiny")
    return checkpoint.load(checkpoint.latest(out / "checkpoints"))


def _changes(state: dict[str, Any], config: Config) -> list[str]:
    before = Config.from_dict(state["config"])
    return [line for section in ("match", "loss", "train", "data") for line in differences(before, config, section)]


def _introduction(trainer: Trainer) -> list[str]:
    config, place = trainer.config, trainer.accelerator.device
    counts = [sum(parameter.numel() for parameter in module.parameters()) / 1e6
              for module in (trainer.learner.unite, trainer.learner.discriminator)]
    where = f"{place} ({torch.get_num_threads()} threads)" if place.type == "cpu" else str(place)
    return [
        f"{config.preset}: {config.model.size} px, matcher {config.match.matcher}, {counts[0]:.2f} M parameters, "
        f"discriminator {counts[1]:.2f} M; on {where}, precision {config.train.precision}",
        f"data: {config.data.source}, {len(trainer.pairs)} training examples with {config.model.condition_channels} "
        f"condition channels; perceptual network: {trainer.learner.perceptual}",
        f"{config.train.steps} steps of {trainer.examples} examples{_of_processes(trainer)}, from step {trainer.done}; "
        f"writing {trainer.out}",
    ]


def _of_processes(trainer: Trainer) -> str:
    count = trainer.accelerator.num_processes
    return f" on {count} processes" if count > 1 else ""


def _summary(out: Path, seconds: float) -> list[str]:
    scores = [line for line in read(out / "metrics.jsonl") if "validation/psnr" in line]
    best = max(scores, key=lambda line: line["validation/psnr"])
    return [f"held-out PSNR: {scores[0]['validation/psnr']:.2f} dB at step {scores[0]['step']}, "
            f"{scores[-1]['validation/psnr']:.2f} dB at step {scores[-1]['step']}, best "
            f"{best['validation/psnr']:.2f} dB at step {best['step']}",
            f"wrote {out} in {seconds:.0f} s"]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.train", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--preset", choices=PRESETS, help="named settings (tiny; with a task default)")
    parser.add_argument("--task", metavar="NAME", help="settings over the preset (default): "
                        f"{', '.join(task.names())}, or a JSON file of one's own")
    for flag, setting, words in FLAGS:
        parser.add_argument(f"--{flag}", help=f"{words} ({setting})")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE",
                        help="any other setting of config.py, as often as needed")
    parser.add_argument("--out", type=Path, help="the run's folder (out/unite/ and the preset's or the task's name)")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest checkpoint of --out, with its settings and what is given here; "
                        "--task then says the folder alone")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (%(default)s: none)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
