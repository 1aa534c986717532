"""Training of examples/unite at the paper's widths: images a second, memory, and what matching takes of a step."""

from __future__ import annotations

import statistics
import time
import warnings
from functools import partial

import torch

from benchmarks.cpu.methods.base import Missing
from examples.unite import share
from examples.unite.config import Config, preset

from .stage import Row, Stage

#: Steps of a row; those at its beginning, in which kernels are compiled and chosen, do not count.
STEPS, FIRST = 50, 5
#: Seconds after which a row of steps is long enough.
ENOUGH = 60.0
#: Examples of a step, most worth first.
BATCHES = (4, 8)
#: What a rehearsal cuts `tiny` down to.
SMALLEST = {"base": 4, "hidden": 8, "descriptor_dim": 16, "stride": 4, "residual_layers": 1, "discriminators": 1}


def measure(stage: Stage) -> None:
    config = stage.choose(preset("default"), preset("tiny").replace("model", **SMALLEST).replace("match", passes=4))
    for batch in stage.choose(BATCHES, (1,)):
        for precision in ("no", "bf16"):
            stage.row(_key("uotlib", config, batch) | {"precision": precision},
                      partial(_training, stage, config.replace("train", batch=batch, precision=precision)))
    for backend in stage.choose(("triton", "cuda"), ("native",)):
        stage.row(_key(f"uotlib {backend}", config, BATCHES[0]) | {"stages": True},
                  partial(_stages, stage, config, backend))


def _key(method: str, config: Config, batch: int) -> Row:
    return {"method": method, "preset": config.preset, "size": config.model.size, "batch": batch}


def _training(stage: Stage, config: Config) -> Row:
    """Whole updates of both networks, as the trainer makes them, on one batch of random examples."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, GradientState

        from examples.unite.learner import Learner
    except ModuleNotFoundError as absent:
        raise Missing(f"{absent.name} is not installed: the extra unite") from absent
    torch.manual_seed(0)
    given = share.examples(config.model, config.train.batch).to(stage.device)
    # accelerate keeps one precision a process, and refuses the next row's.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=stage.device.type == "cpu", mixed_precision=config.train.precision)
    seconds: list[float] = []
    losses: list[dict[str, float]] = []
    steps = stage.choose(STEPS, 2)

    def train() -> None:
        """From the weights on, which count as memory too."""
        begin, learner = time.perf_counter(), Learner(config, accelerator)
        while len(seconds) < steps and (len(seconds) <= FIRST or time.perf_counter() - begin < ENOUGH):
            seconds.append(stage.timer.once(lambda: losses.append(learner.update([given], len(losses)))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the judge: it is random
        peak = train() if stage.rehearsing else stage.timer.peak(train)
    step = statistics.median(seconds[FIRST:] or seconds)
    return {"seconds": step, "images_per_s": config.train.batch / step, "steps": len(seconds),
            "first_step_s": seconds[0], "peak_bytes": peak, "judge": config.loss.perceptual,
            "first_loss": losses[0]["generator/total"], "last_loss": losses[-1]["generator/total"]}


def _stages(stage: Stage, config: Config, backend: str) -> Row:
    """A step cut into stages, and the share of matching."""
    found = share.measure(config, backend, stage.device.type, BATCHES[0], stage.choose(5, 1))
    return {"seconds": sum(found.values()), "matching_share": share.matching_share(found),
            "matching_s": found["matching"], "matching_backward_s": found["matching, backward"]}
