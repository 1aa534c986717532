"""`python -m examples.unite.overfit`: can the model learn a few pairs by heart?"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from . import data
from .checkpoint import remove_run
from .config import Config, preset
from .diagnosis import TrainingError
from .grids import grid, write_png
from .logs import read
from .structures import Sample
from .trainer import Trainer
from .validation import Judged

#: PSNR in dB that counts as learned by heart.
GOAL = 30.0


class ByHeart:
    """The same few pairs in every epoch."""

    def __init__(self, pairs: data.Pairs, count: int) -> None:
        self.condition_channels, self.class_names = pairs.condition_channels, pairs.class_names
        self.samples = [pairs[index] for index in range(count)]

    def __len__(self) -> int:
        return len(self.samples)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: every epoch is the same."""

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def settings(pairs: int, steps: int) -> Config:
    """`tiny` without adversary, contextual and pseudo-pair losses, which ask for more than the truth's pixels; large
    steps, a short average.

    What is left: the first layer of the judge, by absolute differences, which learn faster than squares; consistency
    and cycle.
    """
    config = preset("tiny").replace("loss", adversarial=0.0, discriminator_features=0.0, contextual=0.0, pseudo=0.0,
                                    perceptual_l1=True)
    return config.replace("train", batch=min(pairs, 4), steps=steps, generator_rate=2e-3, adam_eps=1e-6,
                          decay_share=0.6, ema=0.95, validation=pairs, sample_every=max(steps // 10, 1),
                          checkpoint_every=steps)


def main(argv: Sequence[str] | None = None) -> int:
    """Overfit and say how far that went; the exit status is 1 where the goal was missed."""
    options = _parse(argv)
    start, run = time.perf_counter(), options.out / "overfit-run"
    config = settings(options.pairs, options.steps)
    drawn = data.make("avatars", root=None, size=config.model.size, split="train", condition="mask", seed=0,
                      pseudo_share=0.0, count=options.pairs)
    pairs = ByHeart(drawn, options.pairs)
    remove_run(run)
    try:
        judged = _learn(config, run, options.device, pairs)
    except (TrainingError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    write_png(options.out / "overfit.png", grid(judged.tiles))
    scores = [line["validation/psnr"] for line in read(run / "metrics.jsonl") if "validation/psnr" in line]
    print(f"PSNR, mean of the {options.pairs} pairs: {scores[0]:.2f} dB before, {scores[-1]:.2f} dB after "
          f"({'above' if scores[-1] > GOAL else 'NOT above'} {GOAL:g} dB), in {time.perf_counter() - start:.0f} s")
    print(f"wrote {options.out / 'overfit.png'}; the run is in {run}")
    return 0 if scores[-1] > GOAL else 1


def _learn(config: Config, run: Path, device: str, pairs: ByHeart) -> Judged:
    """Train on the pairs, and judge them all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="images are judged by random")
        trainer = Trainer(config, run, device=device, examples=(pairs, pairs.samples))
    losses = ", ".join(f"{name} {weight:g}" for name, weight in dataclasses.asdict(config.loss).items()
                       if isinstance(weight, float) and weight)
    print(f"{len(pairs)} pairs at {config.model.size} px, {config.train.steps} steps of {config.train.batch}; losses: "
          f"{losses}; judged by {trainer.learner.perceptual}", flush=True)
    trainer.run(stream=sys.stderr, say=lambda text: print(text, flush=True))
    return trainer.judge(len(pairs))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.overfit", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, default=Path("out/unite"), help="folder for picture and run (%(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=1800, help="(%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    options = parser.parse_args(argv)
    for name in ("pairs", "steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
