"""How well a model does on held-out pairs whose truth is known, and the grids that show it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .grids import columns
from .structures import Batch, Transported


class Judged(NamedTuple):
    """Means over pairs, and the columns of a grid of the first ones."""

    values: dict[str, float]
    tiles: dict[str, Tensor]


def psnr(image: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image (B, 3, H, W) in [-1, 1]; the peak is 2."""
    error = (image.float() - truth.float()).square().mean((1, 2, 3))
    return -10 * torch.log10(error / 4)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, which draws nothing at random, without gradients; the mode is as before afterwards."""
    training = model.training
    with torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def _kept(moved: Transported) -> Tensor:
    """Share of the condition's mass that found a partner, (B,)."""
    return (moved.kept * moved.a).float().sum((1, 2)) / moved.a.float().sum((1, 2))


def judge(model: nn.Module, batches: Sequence[Batch], rows: int) -> Judged:
    """Translate held-out pairs and hold the outputs against the truth.

    Args:
        model: Conditions and exemplars to an `Output`.
        batches: The pairs, on the model's device.
        rows: Pairs in the grid.

    Returns:
        PSNR of outputs and of warped exemplars in dB, mean absolute error of outputs on a scale from 0 to 1, the
        share of mass that found a partner, the largest violation of a plan where plans are solved; and the grid's
        columns.
    """
    sums: dict[str, float] = {}
    shown: list[dict[str, Tensor]] = []
    violations: list[float] = []
    with evaluating(model):
        for batch in batches:
            output = model(batch.condition, batch.exemplar, batch.exemplar_condition)
            measures = {
                "psnr": psnr(output.image, batch.image),
                "warped_psnr": psnr(output.transported.warped, batch.image),
                "l1": (output.image.float() - batch.image).abs().mean((1, 2, 3)) / 2,
                "kept": _kept(output.transported),
            }
            for name, values in measures.items():
                sums[name] = sums.get(name, 0.0) + float(values.double().sum())
            if output.transported.violation is not None:
                violations += output.transported.violation.tolist()
            if sum(len(tiles["output"]) for tiles in shown) < rows:
                shown.append(columns(batch, output))
    count = sum(len(batch.image) for batch in batches)
    tiles = {name: torch.cat([each[name] for each in shown])[:rows] for name in shown[0]}
    worst = {"violation": max(violations)} if violations else {}
    return Judged({name: total / count for name, total in sums.items()} | worst, tiles)
