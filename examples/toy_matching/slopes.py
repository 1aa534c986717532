"""Why some eps learn: what the gradients of an untrained matcher agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .clouds import World
from .learning import GRADIENTS, Matcher, Task

#: Fresh clouds whose gradients are compared.
CLOUDS = 8


@dataclass(frozen=True)
class Slopes:
    """Gradients of one eps before training, medians over seeds.

    Args:
        eps: Of the plan.
        partners: Columns that a row's average is spread over, exp of the entropy of the row-normalised plan; a median
            over rows.
        agreement: For each gradient, mean cosine between the gradients of two different clouds: the part that training
            can follow.
        aligned: For each gradient, mean cosine with the implicit one of the same cloud.
        size: For each gradient, its norm, a mean over clouds.
    """

    eps: float
    partners: float
    agreement: dict[str, float]
    aligned: dict[str, float]
    size: dict[str, float]


def slopes(eps: float, seeds: int, task: Task) -> Slopes:
    """Compare gradients at one eps."""
    found = {gradient: [_gradients(eps, gradient, seed, task) for seed in range(seeds)]
             for gradient in GRADIENTS}
    agreement, aligned, size = {}, {}, {}
    for gradient, worlds in found.items():
        unit = [torch.nn.functional.normalize(rows, dim=1) for rows, _ in worlds]
        exact = [torch.nn.functional.normalize(rows, dim=1) for rows, _ in found["implicit"]]
        agreement[gradient] = _median([(rows.sum(0).square().sum() - CLOUDS) / (CLOUDS * (CLOUDS - 1))
                                       for rows in unit])
        aligned[gradient] = _median([(rows * own).sum(1).mean() for rows, own in zip(unit, exact, strict=True)])
        size[gradient] = _median([rows.norm(dim=1).mean() for rows, _ in worlds])
    return Slopes(eps, _median([partners for _, partners in found["implicit"]]), agreement, aligned, size)


def _gradients(eps: float, gradient: str, seed: int, task: Task) -> tuple[Tensor, Tensor]:
    """Gradients of `CLOUDS` losses to all maps, (CLOUDS, parameters), and the partners of a row."""
    torch.manual_seed(seed)
    matcher, world = Matcher(eps, gradient, task).double(), World(seed, task.outliers)
    rows, partners = [], []
    for _ in range(CLOUDS):
        clouds = world.draw(task.points)
        matcher.zero_grad()
        matcher(clouds)[0].backward()
        rows.append(torch.cat([parameter.grad.flatten() for parameter in matcher.parameters()]))
        with torch.no_grad():
            plan = matcher.transport(matcher.left(clouds.x), matcher.right(clouds.z)).solution.plan
        weights = plan / plan.sum(1, keepdim=True)
        partners.append(torch.special.entr(weights).sum(1).exp().median())
    return torch.stack(rows), torch.stack(partners).mean()


def _median(values: Sequence[Tensor]) -> float:
    return float(torch.stack(list(values)).median())


def slope_lines(table: Sequence[Slopes]) -> list[str]:
    """What `slopes` found, an eps a line."""
    lines = ["eps       partners" + "".join(f"{gradient:>24}" for gradient in GRADIENTS),
             " " * 18 + "  agree  aligned    norm" * len(GRADIENTS)]
    for row in table:
        cells = "".join(f"{row.agreement[gradient]:7.2f}{row.aligned[gradient]:9.2f}{row.size[gradient]:8.1f}"
                        for gradient in GRADIENTS)
        lines.append(f"{row.eps:<10g}{row.partners:8.1f}{cells}")
    return lines
