"""The training: one step of the generator and one of the discriminator at a time, and everything around it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from . import checkpoint, data
from .checkpoint import CheckpointError
from .config import Config
from .diagnosis import check_losses, check_parameters, diverged, gradient_norms, memory_advice
from .discriminator import Discriminator
from .ema import Average
from .grids import grid, write_png
from .logs import Metrics, Progress
from .losses import Losses
from .model import Unite
from .optimisation import optimisers, rate_factor, set_rate
from .perceptual import load_perceptual
from .settings import differences
from .stream import batches
from .structures import Batch, Output, Sample, collate
from .validation import Judged, judge

#: Pairs in a grid of samples.
ROWS = 6


class Trainer:
    """One run: networks, optimisers and data in one place, on the device and processes that accelerate found.

    Seeds the process's generators (python, numpy, torch) with `TrainConfig.seed`, or with the states of the
    checkpoint that it goes on from.

    Args:
        config: Everything that defines the run; the number of condition channels is the data's.
        out: The run's folder.
        device: auto, cpu, cuda, cuda:N or mps.
        workers: Processes that prepare batches; 0 prepares them in this one.
        resume: Go on from the newest checkpoint of ``out``.
        examples: Training examples and held-out pairs in place of those that ``config.data`` names.

    Raises:
        CheckpointError: Nothing to go on from, a broken file, or one of another model.
    """

    def __init__(self, config: Config, out: Path, *, device: str = "auto", workers: int = 0, resume: bool = False,
                 examples: tuple[data.Pairs, list[Sample]] | None = None) -> None:
        self.out, self.checkpoints = out, out / "checkpoints"
        state = checkpoint.load(checkpoint.latest(self.checkpoints)) if resume else None
        self.accelerator = make_accelerator(device, config.train.precision)
        self.workers = workers
        seed = config.train.seed
        self.pairs, held = make_data(config) if examples is None else examples
        self.config = config = config.replace("model", condition_channels=self.pairs.condition_channels)
        if state is not None:
            check_same_model(Config.from_dict(state["config"]), config)

        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        place = self.accelerator.device
        self.unite = Unite(config.model, config.match).to(place)
        self.discriminator = Discriminator(config.model).to(place)
        self.average = Average(self.unite, config.train.ema) if config.train.ema else None
        loss = config.loss
        self.perceptual = None
        if loss.pseudo or loss.perceptual_weight or loss.contextual:
            self.perceptual = load_perceptual(loss.perceptual, loss.perceptual_file, place)
        self.losses = Losses(config, self.perceptual)
        made = self.accelerator.prepare(self.unite, self.discriminator,
                                        *optimisers(self.unite, self.discriminator, config.train))
        self._model, self._judge, self._adam, self._judge_adam = made
        self.held = [collate(held[first:first + config.train.batch]).to(place)
                     for first in range(0, len(held), config.train.batch)]

        self.done = 0                             # steps
        self.position = 0                         # training examples that were used, of all processes
        self.best: tuple[int, float] | None = None  # step and PSNR of the best checkpoint
        self.good: Path | None = None             # the newest checkpoint
        self._norms: dict[str, float] = {}
        torch.manual_seed(seed + self.accelerator.process_index)
        if state is not None:
            self._restore(state)

    @property
    def perceptual_name(self) -> str:
        """Of the network that judges, or none."""
        return self.perceptual.name if self.perceptual is not None else "none"

    @property
    def judged(self) -> torch.nn.Module:
        """The model that samples are made with: the average where there is one."""
        return self.average.model if self.average is not None else self.unite

    def step(self, group: list[Batch]) -> dict[str, float]:
        """One update of the generator, then one of the discriminator on the images of the same step.

        Args:
            group: Batches whose gradients are averaged.

        Returns:
            Weighted losses, gradient norms and rates by name.

        Raises:
            Diverged: A loss or a gradient is not finite; parameters are as before then, except that the generator's
                update precedes the discriminator's losses.
        """
        train = self.config.train
        factor = rate_factor(self.done, train)
        set_rate(self._adam, train.generator_rate * factor)
        set_rate(self._judge_adam, train.discriminator_rate * factor)
        self.unite.matcher.progress = self.done / train.steps
        self._model.train()
        self._judge.train()

        values, images = self._update_generator(group)
        if self.config.loss.adversarial:
            values |= self._update_discriminator(group, images)
        values["rate/generator"] = train.generator_rate * factor
        self.done += 1
        self.position += train.batch * len(group) * self.accelerator.num_processes
        return values

    def _update_generator(self, group: list[Batch]) -> tuple[dict[str, float], list[Tensor]]:
        self.discriminator.requires_grad_(False)
        self._adam.zero_grad()
        sums: dict[str, float] = {}
        images = []
        for index, batch in enumerate(group):
            with self._last(index, group, self._model), self.accelerator.autocast():
                output = self._forward(batch)
                fake, real = self._maps(batch, output.image)
                terms = self.losses.generator(output, batch, fake, real)
                self._add(sums, "generator", terms, batch, output.image, len(group))
                self.accelerator.backward(sum(terms.values()) / len(group))
            images.append(output.image.detach())
        self._finish("generator", self._adam, self.unite, sums, group[-1], images[-1])
        if self.average is not None and not self._adam.step_was_skipped:
            self.average.update(self.unite)
        self.discriminator.requires_grad_(True)
        return sums, images

    def _forward(self, batch: Batch) -> Output:
        try:
            return self._model(batch.condition, batch.exemplar, batch.exemplar_condition, batch.image)
        except ValueError as error:
            if "NaN" not in str(error) and "inf" not in str(error):
                raise
            # The solver refuses features that are no numbers, before any loss is.
            raise diverged(f"matching was given no numbers: {error}", self.done + 1, _inputs(batch), batch.names,
                           self._norms, self.good) from error

    def _maps(self, batch: Batch, image: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """What the discriminator says of an output and of the truth; nothing where no loss asks for it."""
        loss = self.config.loss
        if not loss.adversarial and not loss.discriminator_features:
            return [], []
        # Not the wrapped discriminator: no gradient of it is wanted, so no process waits for one.
        fake = self.discriminator(batch.condition, image)
        with torch.no_grad():
            real = self.discriminator(batch.condition, batch.image)
        return fake, real

    def _update_discriminator(self, group: list[Batch], images: list[Tensor]) -> dict[str, float]:
        self._judge_adam.zero_grad()
        sums: dict[str, float] = {}
        for index, (batch, image) in enumerate(zip(group, images, strict=True)):
            with self._last(index, group, self._judge), self.accelerator.autocast():
                maps = self._judge(torch.cat([batch.condition, batch.condition]),
                                   torch.cat([image.float(), batch.image]))
                halves = [[layer.chunk(2) for layer in scale] for scale in maps]
                terms = self.losses.discriminator([[layer[0] for layer in scale] for scale in halves],
                                                  [[layer[1] for layer in scale] for scale in halves])
                self._add(sums, "discriminator", terms, batch, image, len(group))
                self.accelerator.backward(sum(terms.values()) / len(group))
        self._finish("discriminator", self._judge_adam, self.discriminator, sums, group[-1], images[-1])
        return sums

    def _last(self, index: int, group: list[Batch], model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged between processes with the last batch of a step alone."""
        return contextlib.nullcontext() if index == len(group) - 1 else self.accelerator.no_sync(model)

    def _add(self, sums: dict[str, float], part: str, terms: dict[str, Tensor], batch: Batch, image: Tensor,
             count: int) -> None:
        """Add a batch's losses to the step's means, in one transfer; stop if one of them is not finite."""
        stacked = torch.stack([term.detach().float() for term in terms.values()])
        numbers = self.accelerator.reduce(stacked, "mean").tolist()
        values = {f"{part}/{name.removeprefix(f'{part}_')}": value
                  for name, value in zip(terms, numbers, strict=True)}
        self._check(values, batch, image)
        values[f"{part}/total"] = sum(values.values())
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / count

    def _finish(self, part: str, adam: Any, module: torch.nn.Module, sums: dict[str, float], batch: Batch,
                image: Tensor) -> None:
        """Norms of the gradients, and the step of the optimiser if they are finite."""
        self.accelerator.unscale_gradients(adam)
        norms = {f"{part}.{name}": norm for name, norm in gradient_norms(module).items()}
        if self.accelerator.scaler is None:  # which skips such a step by itself
            self._check({f"gradient of {name}": norm for name, norm in norms.items()}, batch, image)
        self._norms |= norms
        sums[f"gradient/{part}"] = sum(norm * norm for norm in norms.values()) ** 0.5
        adam.step()

    def _check(self, values: dict[str, float], batch: Batch, image: Tensor) -> None:
        check_losses(values, self.done + 1, {**_inputs(batch), "output": image}, batch.names, self._norms, self.good)

    def run(self, *, stream: TextIO | None = None, say: Callable[[str], None] | None = None) -> None:
        """Train to the last step; ``stream`` takes a bar if it is a terminal, ``say`` lines otherwise.

        Raises:
            Diverged, OutOfMemory: With what to do.
        """
        train, main = self.config.train, self.accelerator.is_main_process
        images = train.batch * train.accumulate * self.accelerator.num_processes
        metrics = Metrics(self.out, self.done) if main else None
        progress = Progress(self.done, train.steps, images, stream if main else None, say if main else None)
        source = batches(self.pairs, train.seed, train.batch, self.position, rank=self.accelerator.process_index,
                         processes=self.accelerator.num_processes, workers=self.workers)
        try:
            with memory_advice(self.config):
                if self.done == 0:
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
        if not saves and self.done % train.sample_every:
            return
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
            metrics.write(self.done, {f"validation/{name}": value for name, value in judged.values.items()})
            metrics.sync()
            progress.say(f"step {self.done}: held-out pairs: PSNR {score:.2f} dB, warped exemplar "
                         f"{judged.values['warped_psnr']:.2f} dB, mass kept {judged.values['kept']:.3f}")
        self.accelerator.wait_for_everyone()
        return score

    def judge(self, rows: int = ROWS) -> Judged:
        """Translate the held-out pairs."""
        with self.accelerator.autocast():
            return judge(self.judged, self.held, rows)

    def save(self, score: float | None) -> None:
        """Write the checkpoint of this step; all processes call it, the main one writes.

        Args:
            score: PSNR on held-out pairs, by which the best checkpoint is known; the main process's counts.
        """
        check_parameters({"model": self.unite, "discriminator": self.discriminator}, self.done, self.good)
        states = gather_object([checkpoint.random_state()])
        if not self.accelerator.is_main_process:
            return
        better = score is not None and (self.best is None or score > self.best[1])
        if better:
            self.best = (self.done, score)
        self.good = checkpoint.save({
            "step": self.done,
            "position": self.position,
            "config": self.config.to_dict(),
            "perceptual": self.perceptual_name,
            "model": self.unite.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimisers": [self._adam.state_dict(), self._judge_adam.state_dict()],
            "rate_factor": rate_factor(self.done, self.config.train),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "random": states,
            "best": list(self.best) if self.best is not None else None,
        }, self.checkpoints, self.done, better)

    def _restore(self, state: dict[str, Any]) -> None:
        if state["perceptual"] != self.perceptual_name:
            raise CheckpointError(f"the checkpoint was trained with the perceptual network {state['perceptual']}, "
                                  f"not with {self.perceptual_name}")
        if len(state["random"]) != self.accelerator.num_processes:
            raise CheckpointError(f"the checkpoint is of {len(state['random'])} processes, "
                                  f"these are {self.accelerator.num_processes}")
        if (state["average"] is None) != (self.average is None):
            raise CheckpointError("the checkpoint and the settings differ in whether train.ema is 0")
        checkpoint.remove_unfinished(self.checkpoints)
        self.unite.load_state_dict(state["model"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for optimiser, held in zip((self._adam, self._judge_adam), state["optimisers"], strict=True):
            optimiser.load_state_dict(held)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.done, self.position = state["step"], state["position"]
        self.best = tuple(state["best"]) if state["best"] is not None else None
        self.good = checkpoint.latest(self.checkpoints)
        if self.best is not None and self.best[0] == self.done and self.accelerator.is_main_process:
            checkpoint.keep_best(self.good)  # the process may have ended between the two names
        checkpoint.set_random_state(state["random"][self.accelerator.process_index])


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {"condition": batch.condition, "exemplar": batch.exemplar,
            "exemplar's condition": batch.exemplar_condition, "truth": batch.image}


def make_accelerator(device: str, precision: str) -> Accelerator:
    """accelerate for a device by name; the devices of several processes are those of `accelerate launch`.

    Raises:
        ValueError: There is no such device here.
    """
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device} was asked for, and torch sees no GPU")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps was asked for, and torch sees none")
    if precision == "fp16" and (kind == "cpu" or not torch.cuda.is_available()):
        raise ValueError("precision fp16 needs a GPU; a CPU has bf16")
    if index:
        torch.cuda.set_device(int(index))
    return Accelerator(cpu=kind == "cpu", mixed_precision=precision)


def make_data(config: Config) -> tuple[data.Pairs, list[Sample]]:
    """The training examples, and the held-out pairs as they are."""
    source, train = config.data, config.train
    common = {"root": source.root or None, "size": config.model.size, "condition": source.condition, "seed": train.seed}
    pairs = data.make(source.source, split="train", pseudo_share=train.pseudo_share, count=source.count, **common)
    held = data.make(source.source, split="test", pseudo_share=0.0, count=train.validation, **common)
    if held.condition_channels != pairs.condition_channels:
        raise ValueError(f"training conditions have {pairs.condition_channels} channels, those of split test "
                         f"{held.condition_channels}: classes.txt in {source.root} would say how many there are")
    return pairs, [held[index] for index in range(min(len(held), train.validation))]


def check_same_model(old: Config, new: Config) -> None:
    """Refuse to go on with another model than a checkpoint's.

    Raises:
        CheckpointError: naming the settings that differ.
    """
    found = differences(old, new, "model")
    if found:
        raise CheckpointError("the checkpoint is of another model: " + "; ".join(found))
