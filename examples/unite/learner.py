"""The networks and what teaches them: one update of the generator, then one of the discriminator."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .config import Config
from .diagnosis import check_losses, check_parameters, diverged, gradient_norms
from .discriminator import Discriminator
from .ema import Average
from .losses import Counts, Losses
from .model import Unite
from .optimisation import optimisers, rate_factor, set_rate
from .perceptual import load_perceptual
from .structures import Batch, Output

#: Steps in a row that a scaled loss may skip; one that halves 65536 at each would be below 1 by then.
SKIPPED = 20


class Learner:
    """Networks, losses, optimisers and the average of weights, on the device of an accelerator.

    Weights are drawn from the process's generator.

    Attributes:
        unite: The model.
        discriminator: Its adversary.
        average: Of the model's weights, or None with ``train.ema`` 0.
        perceptual: Name of the network that judges, or none.
    """

    def __init__(self, config: Config, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.unite = Unite(config.model, config.match).to(accelerator.device)
        self.discriminator = Discriminator(config.model).to(accelerator.device)
        self.average = Average(self.unite, config.train.ema) if config.train.ema else None
        loss, network = config.loss, None
        if loss.pseudo or loss.perceptual_weight or loss.contextual:
            network = load_perceptual(loss.perceptual, loss.perceptual_file, accelerator.device)
        self.perceptual = "none" if network is None else network.name
        self.losses = Losses(config, network)
        made = accelerator.prepare(self.unite, self.discriminator,
                                   *optimisers(self.unite, self.discriminator, config.train))
        self._model, self._judge, self._adam, self._judge_adam = made
        self._norms: dict[str, float] = {}
        self._skipped = {"generator": 0, "discriminator": 0}  # steps in a row
        self._step, self._good = 0, None

    @property
    def judged(self) -> nn.Module:
        """The model that samples are made with: the average where there is one."""
        return self.average.model if self.average is not None else self.unite

    def update(self, group: list[Batch], done: int, good: Path | None = None) -> dict[str, float]:
        """One update of the generator, then one of the discriminator on the images of the same step.

        Args:
            group: Batches whose gradients are averaged.
            done: Steps before this one, by which rates and eta go.
            good: The newest checkpoint, for the words of an error.

        Returns:
            Weighted losses, gradient norms and the generator's rate by name.

        Raises:
            Diverged: A loss or a gradient is not finite; parameters are as before then, except that the generator's
                update precedes the discriminator's losses.
        """
        train = self.config.train
        factor = rate_factor(done, train)
        set_rate(self._adam, train.generator_rate * factor)
        set_rate(self._judge_adam, train.discriminator_rate * factor)
        self.unite.matcher.progress = done / train.steps
        self._step, self._good = done + 1, good
        self._model.train()
        self._judge.train()
        values, images = self.update_generator(group)
        if self.config.loss.adversarial:
            values |= self.update_discriminator(group, images)
        return values | {"rate/generator": train.generator_rate * factor}

    def update_generator(self, group: list[Batch]) -> tuple[dict[str, float], list[Tensor]]:
        """The model's half of a step: its values, and the images that it made, detached."""
        self._adam.zero_grad()
        sums: dict[str, float] = {}
        images, counts = [], self._counts(group)
        for index, batch in enumerate(group):
            with _frozen(self.discriminator), self._last(index, group, self._model), self.accelerator.autocast():
                output = self._forward(batch)
                fake, real = self._maps(batch, output.image)
                terms = self.losses.generator(output, batch, fake, real, counts)
                self._add(sums, "generator", terms, batch, output.image, len(group))
                self.accelerator.backward(sum(terms.values()) / len(group))
            images.append(output.image.detach())
        self._finish("generator", self._adam, self.unite, sums, group[-1], images[-1])
        if self.average is not None and not self._adam.step_was_skipped:
            self.average.update(self.unite)
        return sums, images

    def update_discriminator(self, group: list[Batch], images: list[Tensor]) -> dict[str, float]:
        """The discriminator's half, on images that hold no graph."""
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

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next update depends on, but the step and random states.

        Raises:
            Diverged: A parameter or buffer is not finite.
        """
        check_parameters({"model": self.unite, "discriminator": self.discriminator}, self._step, self._good)
        scaler = self.accelerator.scaler
        return {
            "perceptual": self.perceptual,
            "model": self.unite.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimisers": [self._adam.state_dict(), self._judge_adam.state_dict()],
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            CheckpointError: It was another network that judged, or an average is on one side alone.
        """
        if state["perceptual"] not in (None, self.perceptual):  # None: an import, which no network judged yet
            raise CheckpointError(f"the checkpoint was trained with the perceptual network {state['perceptual']}, "
                                  f"not with {self.perceptual}")
        if (state["average"] is None) != (self.average is None):
            raise CheckpointError("the checkpoint and the settings differ in whether train.ema is 0")
        self.unite.load_state_dict(state["model"])
        self.discriminator.load_state_dict(state["discriminator"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for optimiser, held in zip((self._adam, self._judge_adam), state["optimisers"], strict=True):
            optimiser.load_state_dict(held)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _forward(self, batch: Batch) -> Output:
        try:
            return self._model(batch.condition, batch.exemplar, batch.exemplar_condition, batch.image)
        except ValueError as error:
            if "NaN" not in str(error) and "inf" not in str(error):
                raise
            # The solver refuses features that are no numbers, before any loss is.
            raise diverged(f"matching was given no numbers: {error}", self._step, _inputs(batch), batch.names,
                           self._norms, self._good) from error

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

    def _counts(self, group: list[Batch]) -> Counts:
        """Of all batches of a step, of all processes."""
        own = torch.stack([self.losses.counts(batch) for batch in group]).sum(0)
        flagged, positions = self.accelerator.reduce(own, "sum")
        return Counts(flagged, positions / (len(group) * self.accelerator.num_processes))

    def _last(self, index: int, group: list[Batch], model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Gradients are exchanged between processes with the last batch of a step alone."""
        return contextlib.nullcontext() if index == len(group) - 1 else self.accelerator.no_sync(model)

    def _add(self, sums: dict[str, float], part: str, terms: dict[str, Tensor], batch: Batch, image: Tensor,
             count: int) -> None:
        """Add a batch's losses to the step's means, in one transfer; stop if one of them is not finite."""
        stacked = torch.stack([term.detach().float() for term in terms.values()])
        numbers = self.accelerator.reduce(stacked, "mean").tolist()
        values = {f"{part}/{name.removeprefix(f'{part}_')}": value
                  for name, value in zip(terms, numbers, strict=True)}
        self._check(self._by_rank(values, stacked), batch, image)
        values[f"{part}/total"] = sum(values.values())
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value / count

    def _by_rank(self, means: dict[str, float], own: Tensor) -> dict[str, float]:
        """Means whose names say, of those that are no numbers, which processes made them so."""
        if self.accelerator.num_processes == 1 or all(map(math.isfinite, means.values())):
            return means
        lost = self.accelerator.gather(own.isfinite().logical_not()[None].int()).tolist()  # all of them come here
        ranks = [", ".join(str(rank) for rank, flags in enumerate(lost) if flags[place]) for place in range(len(own))]
        return {name + (f" of rank {where}" if where else ""): mean
                for (name, mean), where in zip(means.items(), ranks, strict=True)}

    def _finish(self, part: str, adam: Any, module: nn.Module, sums: dict[str, float], batch: Batch,
                image: Tensor) -> None:
        """Norms of the gradients, and the step of the optimiser if they are finite.

        A scaled loss (fp16) may overflow: such a step is skipped and the scale lowered, but not for ever.
        """
        self.accelerator.unscale_gradients(adam)
        norms = {f"{part}.{name}": norm for name, norm in gradient_norms(module).items()}
        if self.accelerator.scaler is None:  # which skips such a step by itself
            self._check({f"gradient of {name}": norm for name, norm in norms.items()}, batch, image)
        sums[f"gradient/{part}"] = sum(norm * norm for norm in norms.values()) ** 0.5
        adam.step()
        if not adam.step_was_skipped:
            self._norms |= norms
            self._skipped[part] = 0
            return
        sums[f"skipped/{part}"] = 1.0
        self._skipped[part] += 1
        if self._skipped[part] >= SKIPPED:
            lost = ", ".join(name for name, norm in norms.items() if not math.isfinite(norm))
            raise diverged(f"the gradient of {lost or part} is no number in {SKIPPED} steps in a row, which a lower "
                           f"scale of the loss did not mend", self._step, {**_inputs(batch), "output": image},
                           batch.names, self._norms, self._good)

    def _check(self, values: dict[str, float], batch: Batch, image: Tensor) -> None:
        check_losses(values, self._step, {**_inputs(batch), "output": image}, batch.names, self._norms, self._good)


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients go through the module, and none is of its parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {"condition": batch.condition, "exemplar": batch.exemplar,
            "exemplar's condition": batch.exemplar_condition, "truth": batch.image}
