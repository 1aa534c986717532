"""`python -m examples.unite.demo`: a minute of training on avatars, then translations beside the truth."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from .checkpoint import remove_run
from .config import Config, preset
from .diagnosis import TrainingError
from .grids import grid, write_png
from .logs import read
from .trainer import Trainer

#: Held-out pairs in the picture.
ROWS = 6


def settings(steps: int) -> Config:
    """`tiny` for a minute: few steps, large ones, few faces to draw, weights whose average forgets the beginning."""
    config = preset("tiny").replace("train", steps=steps, checkpoint_every=steps, sample_every=steps, validation=ROWS,
                                    generator_rate=2e-3, ema=0.9)
    return config.replace("data", count=64)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, translate, draw; returns the exit status."""
    options = _parse(argv)
    start = time.perf_counter()
    run = options.out / "unite-run"
    remove_run(run)
    config = settings(options.steps)
    print(f"UNITE, preset tiny: {options.steps} steps of {config.train.batch} avatars, a minute of training and no "
          "more; python -m examples.unite.train trains it properly", flush=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="images are judged by random")
            trainer = Trainer(config, run, device=options.device)
        print(f"images are judged by {trainer.learner.perceptual}, which knows nothing of what pictures show",
              flush=True)
        trainer.run(stream=sys.stderr, say=lambda text: print(text, flush=True))
    except (TrainingError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    judged = trainer.judge(ROWS)
    path = options.out / "unite.png"
    write_png(path, grid({name: judged.tiles[name] for name in ("condition", "exemplar", "warped", "output", "truth")},
                         scale=2))
    before = next(line for line in read(run / "metrics.jsonl") if "validation/psnr" in line)
    print(f"{ROWS} faces that training did not see: PSNR of the output {judged.values['psnr']:.1f} dB "
          f"({before['validation/psnr']:.1f} dB before training), of the warped exemplar "
          f"{judged.values['warped_psnr']:.1f} dB; mass kept {judged.values['kept']:.2f}")
    print(f"wrote {path}; the run is in {run}")
    print(f"done in {time.perf_counter() - start:.0f} s")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.demo", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for picture and run (%(default)s)")
    parser.add_argument("--steps", type=int, default=80, help="(%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
