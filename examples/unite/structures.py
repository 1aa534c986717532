"""What goes between data, model, losses and trainer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One training example: a condition, the image that shows it, and an exemplar with a condition of its own.

    Images are in [-1, 1]; conditions in [0, 1], one channel a class (or an edge, a distance, a box).
    """

    condition: Tensor           # (S, H, W)
    image: Tensor               # (3, H, W): the truth
    exemplar: Tensor            # (3, H, W)
    exemplar_condition: Tensor  # (S, H, W)
    self_reference: bool        # a pseudo pair: the exemplar is the truth, moved
    name: str


@dataclass(frozen=True)
class Batch:
    """`Sample`s side by side; ``self_reference`` as 0 and 1 in float32."""

    condition: Tensor           # (B, S, H, W)
    image: Tensor               # (B, 3, H, W)
    exemplar: Tensor
    exemplar_condition: Tensor
    self_reference: Tensor      # (B,)
    names: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> Batch:
        return dataclasses.replace(self, **{
            item.name: value.to(device) for item in dataclasses.fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)})


def collate(samples: list[Sample]) -> Batch:
    """Samples of one size as a batch."""
    tensors = {name: torch.stack([getattr(sample, name) for sample in samples])
               for name in ("condition", "image", "exemplar", "exemplar_condition")}
    flags = torch.tensor([float(sample.self_reference) for sample in samples])
    return Batch(**tensors, self_reference=flags, names=[sample.name for sample in samples])


class Features(NamedTuple):
    """Kept maps of an extractor; at 256 px: f2 (B,2w,128,128), f3 (B,4w,128,128), f4, f5 (B,8w,64,64), f6 (B,4w,64,64).

    w is `ModelConfig.base`; f6 has unit length over channels.
    """

    f2: Tensor
    f3: Tensor
    f4: Tensor
    f5: Tensor
    f6: Tensor


@dataclass(frozen=True)
class Transported:
    """What one plan carried, on the matching grid (h, w) unless it says otherwise."""

    levels: dict[str, Tensor]         # level of the exemplar -> (B, C, h, w), or its own resolution with ``unfold``
    warped: Tensor                    # (B, 3, H, W): the exemplar moved to the condition's layout
    warped_condition: Tensor          # (B, S, h, w): the exemplar's condition, moved with it
    cycle: Tensor                     # (B, 3, h, w): moved there and back
    exemplar_small: Tensor            # (B, 3, h, w): the exemplar on the grid, what `cycle` should be
    a: Tensor                         # (B, h, w): masses of the condition's positions
    b: Tensor                         # (B, h, w): masses of the exemplar's
    kept: Tensor                      # (B, h, w): share of a that the plan takes
    kept_back: Tensor                 # (B, h, w): share of b
    confidence: Tensor | None         # (B, 1, h, w) in [0, 1]
    feature_cycle: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # level -> (there and back, constant)
    violation: Tensor | None = None   # (B,): how far the plan's passes were from a solution; None where none is solved


@dataclass(frozen=True)
class Output:
    """The model's answer."""

    image: Tensor                     # (B, 3, H, W) in [-1, 1]
    transported: Transported
    condition_features: Features      # F_X of the condition
    truth_f6: Tensor | None           # f6 of F_Z of the truth, where a truth was given (Eq. 9)
