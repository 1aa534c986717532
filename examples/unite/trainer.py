"""A run: data, learner and device in one place, from the first step or a checkpoint to the last one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import Subset

from . import checkpoint, data
from .checkpoint import CheckpointError
from .config import Config
from .diagnosis import memory_advice
from .grids import grid, write_png
from .launch import check_launch, make_accelerator
from .learner import Learner
from .logs import Metrics, Progress
from .settings import differences
from .stream import batches
from .structures import Batch, Sample, collate
from .validation import Judged, judge

#: Pairs in a grid of samples.
ROWS = 6


class Trainer:
    """One run, on the device and processes that accelerate found.

    Seeds the process's generators (python, numpy, torch) with `TrainConfig.seed`, or with the states of the
    checkpoint that it goes on from.

    Args:
        config: Everything that defines the run; the number of condition channels is the data's.
        out: The run's folder.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: Processes that prepare batches; 0 prepares them in this one.
        resume: Go on from the newest checkpoint of ``out``.
        state: That checkpoint, where it was loaded already; None reads it.
        examples: Training examples and held-out pairs in place of those that ``config.data`` names.

    Attributes:
        held: Batches of held-out pairs; the main process has them, others none.
        notes: What a resumed run does otherwise than the one before, in words.

    Raises:
        CheckpointError: Nothing to go on from, a broken file, one of another model, or another one for each process.
        ValueError: It was launched in a way that would train something else (`check_launch`), or on no such device.
        OutOfMemory: The networks do not fit.
    """

    def __init__(self, config: Config, out: Path, *, device: str = "auto", workers: int = 0, resume: bool = False,
                 state: dict[str, Any] | None = None,
                 examples: tuple[data.Pairs, Sequence[Sample]] | None = None) -> None:
        self.out, self.checkpoints, self.workers = out, out / "checkpoints", workers
        check_launch()
        if resume and state is None:
            state = checkpoint.load(checkpoint.latest(self.checkpoints))
        self.accelerator = make_accelerator(device, config.train.precision)
        self.pairs, held = make_data(config) if examples is None else examples
        self.config = config = config.replace("model", condition_channels=self.pairs.condition_channels)
        if state is not None:
            check_same_model(Config.from_dict(state["config"]), config)
        held = list(held) if self.accelerator.is_main_process else []
        seed = config.train.seed
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        with memory_advice(config):
            size = config.train.batch
            self.held = [collate(held[first:first + size]).to(self.accelerator.device)
                         for first in range(0, len(held), size)]
            self.learner = Learner(config, self.accelerator)
        torch.manual_seed(seed + self.accelerator.process_index)
        self.done = 0                               # steps
        self.position = 0                           # training examples that were used, of all processes
        self.best: tuple[int, float] | None = None  # step and PSNR of the best checkpoint
        self.good: Path | None = None               # the newest checkpoint
        self.notes: list[str] = []
        if self.accelerator.is_main_process:
            for folder in (out, out / "samples", self.checkpoints):
                checkpoint.remove_unfinished(folder)
        if state is not None:
            with memory_advice(config):
                self._restore(state)

    @property
    def examples(self) -> int:
        """Training examples of a step, of all processes."""
        return self.config.train.batch * self.config.train.accumulate * self.accelerator.num_processes

    def step(self, group: list[Batch]) -> dict[str, float]:
        """`Learner.update`, counted."""
        values = self.learner.update(group, self.done, self.good)
        self.done += 1
        self.position += self.config.train.batch * len(group) * self.accelerator.num_processes
        return values

    def run(self, *, stream: TextIO | None = None, say: Callable[[str], None] | None = None) -> None:
        """Train to the last step; ``stream`` takes a bar if it is a terminal, ``say`` lines otherwise.

        Raises:
            Diverged, OutOfMemory: With what to do.
        """
        train, main = self.config.train, self.accelerator.is_main_process
        metrics = Metrics(self.out, self.done) if main else None
        progress = Progress(self.done, train.steps, self.examples, stream if main else None, say if main else None)
        source = batches(self.pairs, train.seed, train.batch, self.position, rank=self.accelerator.process_index,
                         processes=self.accelerator.num_processes, workers=self.workers)
        try:
            with memory_advice(self.config):
                if self.done == 0:
                    self.save(None)  # from here on a kill leaves something to go on from
                    self._show(metrics, progress)
                while self.done < train.steps:
                    values = self.step([next(source).to(self.accelerator.device) for _ in range(train.accumulate)])
                    if metrics is not None:
                        metrics.write(self.done, values)
                        metrics.speed(self.done, progress.rate)
                    progress.step(self.done, {name: values[f"{name}/total"] for name in ("generator", "discriminator")
                                              if f"{name}/total" in values})
                    self._pause(metrics, progress)
        finally:
            progress.close()
            if metrics is not None:
                metrics.close()

    def _pause(self, metrics: Metrics | None, progress: Progress) -> None:
        """Samples, validation and the checkpoint, where they are due."""
        train, last = self.config.train, self.done == self.config.train.steps
        saves = last or self.done % train.checkpoint_every == 0
        if saves or self.done % train.sample_every == 0:
            score = self._show(metrics, progress)
            if saves:
                self.save(score)

    def _show(self, metrics: Metrics | None, progress: Progress) -> float | None:
        """Samples and validation by the main process; returns its PSNR."""
        score = None
        if metrics is not None:
            judged = self.judge()
            score = judged.values["psnr"]
            picture = grid(judged.tiles)
            write_png(self.out / "samples" / f"{self.done:07d}.png", picture)
            metrics.picture(self.done, "samples", picture)
            metrics.write(self.done, {f"validation/{name}": value for name, value in judged.values.items()},
                          {"judge": self.learner.perceptual})
            metrics.sync()
            solved = f", violation {judged.values['violation']:.1e}" if "violation" in judged.values else ""
            progress.say(f"step {self.done}: held-out pairs: PSNR {score:.2f} dB, warped exemplar "
                         f"{judged.values['warped_psnr']:.2f} dB, mass kept {judged.values['kept']:.3f}{solved}")
        self.accelerator.wait_for_everyone()
        return score

    def judge(self, rows: int = ROWS) -> Judged:
        """Translate the held-out pairs; the main process has them, and alone calls it."""
        with self.accelerator.autocast():
            return judge(self.learner.judged, self.held, rows)

    def save(self, score: float | None) -> None:
        """Write the checkpoint of this step; all processes call it, the main one writes.

        Args:
            score: PSNR on held-out pairs, by which the best checkpoint is known; the main process's counts.

        Raises:
            Diverged: A parameter is not finite; nothing is written then.
        """
        learned = self.learner.state_dict()
        states = gather_object([checkpoint.random_state()])
        if self.accelerator.is_main_process:
            better = score is not None and (self.best is None or score > self.best[1])
            if better:
                self.best = (self.done, score)
            checkpoint.save({
                **learned,
                "step": self.done,
                "position": self.position,
                "config": self.config.to_dict(),
                "random": states,
                "best": list(self.best) if self.best is not None else None,
            }, self.checkpoints, self.done, better)
        self.accelerator.wait_for_everyone()
        self.good = checkpoint.place(self.checkpoints, self.done)

    def _restore(self, state: dict[str, Any]) -> None:
        found = gather_object([state["step"]])
        if len(set(found)) > 1:
            raise CheckpointError(f"processes found checkpoints of steps {', '.join(map(str, found))} in "
                                  f"{self.checkpoints}: all of them must see one folder")
        check_same_parameters(state, self.config, self.learner.unite)
        self.learner.load_state_dict(state)
        self.done, self.position = state["step"], state["position"]
        self.best = tuple(state["best"]) if state["best"] is not None else None
        self.good = checkpoint.place(self.checkpoints, self.done)
        if self.accelerator.is_main_process and self.best is not None and self.best[0] == self.done:
            checkpoint.keep_best(self.good)  # the process may have ended between the two names
        self._restore_random(state)

    def _restore_random(self, state: dict[str, Any]) -> None:
        """The states of this process, or new ones where there were more processes or fewer."""
        before, now, rank = len(state["random"]), self.accelerator.num_processes, self.accelerator.process_index
        if before == now:
            checkpoint.set_random_state(state["random"][rank])
        else:
            checkpoint.draw_random_state(self.config.train.seed, self.done, rank)
            self.notes.append(f"{_processes(before)} then, {now} now: random states of processes are drawn anew, from "
                              "seed, step and rank")
        old = Config.from_dict(state["config"]).train
        examples = old.batch * old.accumulate * before
        if examples != self.examples:
            self.notes.append(f"a step takes {self.examples} examples now, it took {examples}: train.batch times "
                              f"train.accumulate times processes")


def _processes(count: int) -> str:
    return f"{count} process" if count == 1 else f"{count} processes"


def make_data(config: Config) -> tuple[data.Pairs, Sequence[Sample]]:
    """The training examples, and the held-out pairs as they are, each made when it is asked for."""
    source, train = config.data, config.train
    common = {"root": source.root or None, "size": config.model.size, "condition": source.condition,
              "seed": train.seed}
    pairs = data.make(source.source, split="train", pseudo_share=train.pseudo_share, count=source.count,
                      mirror=source.mirror, **common)
    held = data.make(source.source, split="test", pseudo_share=0.0, count=train.validation, **common)
    if held.condition_channels != pairs.condition_channels:
        raise ValueError(f"training conditions have {pairs.condition_channels} channels, those of split test "
                         f"{held.condition_channels}: classes.txt in {source.root} would say how many there are")
    return pairs, Subset(held, range(min(len(held), train.validation)))


def check_same_model(old: Config, new: Config) -> None:
    """Refuse to go on with another model than a checkpoint's.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    found = differences(old, new, "model")
    if found:
        raise CheckpointError("the checkpoint is of another model: " + "; ".join(found))


def check_same_parameters(state: dict[str, Any], config: Config, model: nn.Module) -> None:
    """Refuse to go on with a matcher that has other parameters than a checkpoint's.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    old = {name: tuple(tensor.shape) for name, tensor in state["model"].items()}
    if old == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}:
        return
    found = [line for line in differences(Config.from_dict(state["config"]), config, "match")
             if line.startswith(("match.matcher:", "match.masses:"))]
    raise CheckpointError("the checkpoint has other parameters: " + ("; ".join(found) or "it is of another version"))
