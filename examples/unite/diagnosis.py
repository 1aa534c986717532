"""Why a training had to stop, in words: losses that are no numbers, and memory that ran out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import Config
from .processes import which


class TrainingError(RuntimeError):
    """A training that cannot go on; the message says why and what to do."""


class Diverged(TrainingError):
    """A loss or a gradient is NaN or infinite."""


class OutOfMemory(TrainingError):
    """The device's memory, or the process's, does not suffice."""


def check_losses(values: Mapping[str, float], step: int, inputs: Mapping[str, Tensor], names: list[str],
                 norms: Mapping[str, float], good: Path | None) -> None:
    """Stop if a value is NaN or infinite.

    Args:
        values: Losses, or norms of gradients, by name.
        step: Number of the step that computes them, from 1.
        inputs: What the networks were given and gave, by name.
        names: Of the batch's examples.
        norms: Of gradients, the newest known.
        good: The newest checkpoint.

    Raises:
        Diverged: saying which value, at which step, for which inputs, and how to go on.
    """
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
        reason = ", ".join(f"{name} is {value}" for name, value in bad.items())
        fine = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name not in bad)
        raise diverged(f"{reason}; beside it {fine}" if fine else reason, step, inputs, names, norms, good)


def diverged(reason: str, step: int, inputs: Mapping[str, Tensor], names: list[str], norms: Mapping[str, float],
             good: Path | None) -> Diverged:
    """The error with everything that is known of a step; arguments as those of `check_losses`."""
    lines = [f"step {step}{which()}: {reason}"]
    lines += [f"{name}: {describe(tensor)}" for name, tensor in inputs.items()]
    lines.append("examples: " + ", ".join(names))
    lines.append("gradient norms before: " + (", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())
                                             or "none, this is the first step"))
    lines.append(advice(good))
    return Diverged("\n  ".join(lines))


def advice(good: Path | None) -> str:
    """Where to go on from."""
    if good is None:
        return "no checkpoint was written yet; try lower rates (--set train.generator_rate=...)"
    return f"nothing of this was saved: the last good checkpoint is {good}; --resume goes on from it, " \
           "with lower rates if you give them (--set train.generator_rate=...)"


def describe(tensor: Tensor) -> str:
    """Range of a tensor and how much of it is no number."""
    values = tensor.detach().float()
    finite = torch.isfinite(values)
    lost = int((~finite).sum())
    if lost == values.numel():
        return f"{tuple(tensor.shape)}, no finite value"
    kept = values[finite]
    note = f", {lost} of {values.numel()} not finite" if lost else ""
    return f"{tuple(tensor.shape)} in [{float(kept.min()):.4g}, {float(kept.max()):.4g}]{note}"


def check_parameters(modules: Mapping[str, nn.Module], step: int, good: Path | None) -> None:
    """Stop before a checkpoint would hold parameters or buffers that are no numbers.

    Raises:
        Diverged: naming the first of them.
    """
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise Diverged(f"step {step}{which()}: {part}.{name} is not finite: {describe(tensor)}\n"
                               f"  {advice(good)}")


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each child of a module, in one transfer from the device."""
    names, norms = [], []
    for name, child in module.named_children():
        gradients = [parameter.grad for parameter in child.parameters() if parameter.grad is not None]
        if gradients:
            names.append(name)
            norms.append(nn.utils.get_total_norm(gradients))
    return dict(zip(names, torch.stack(norms).tolist(), strict=True)) if norms else {}


@contextlib.contextmanager
def memory_advice(config: Config) -> Iterator[None]:
    """Turn an allocation that failed into words about the settings.

    Raises:
        OutOfMemory: In place of the allocator's error.
    """
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.cuda.OutOfMemoryError) \
                and not any(words in str(error) for words in ("not enough memory", "can't allocate memory",
                                                              "out of memory")):
            raise
        model, train = config.model, config.train
        ways = []
        if train.batch > 1:
            ways.append(f"--batch below {train.batch} (and --set train.accumulate={2 * train.accumulate}, which "
                        "keeps the size of a step)")
        if not model.checkpointing:
            ways.append("--set model.checkpointing=true")
        if model.stride == 2:
            ways.append("--set model.stride=4 (a matching grid with a quarter of the positions)")
        if train.precision == "no":
            ways.append("--precision bf16")
        if model.size > 64:
            ways.append(f"--size below {model.size}")
        ways.append(f"--set model.base below {model.base}")
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OutOfMemory(f"out of memory ({first[:160]}); lower, in this order: " + "; ".join(ways)) from error
