"""The translation network: from the moved levels of the exemplar to the image, seven modulated blocks on the way up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import NonLocal
from .config import ModelConfig
from .layers import convolution, leaky, resize, run
from .seace import CosineActivation, DotActivation, LearnedActivation, ReleasedSeace, Seace
from .spade import Guidance, ResidualBlock, Spade
from .structures import Features, Transported

#: M is applied on grids of at most this side; what it gives is enlarged.
LARGEST_GRID = 64


class Stage(NamedTuple):
    """One residual block of the generator; widths in multiples of ``ModelConfig.base``."""

    inputs: int
    outputs: int
    level: str       # whose features and style modulate it; "rgb": the condition and the moved image
    enlarge: bool    # sides doubled behind it
    grid: int        # M works at 1/grid of the image's side
    one_of_three: bool = False  # has an M with ``activation_stages`` "three" too

    @property
    def activation_level(self) -> str:
        """The level of F_X whose features M compares; the condition itself has none, and takes the finest."""
        return "f2" if self.level == "rgb" else self.level


STAGES = {
    "head": Stage(16, 16, "f5", True, 32),
    "middle0": Stage(16, 16, "f4", False, 16, one_of_three=True),
    "middle1": Stage(16, 16, "f4", True, 16),
    "up0": Stage(16, 8, "f3", True, 8, one_of_three=True),
    "up1": Stage(8, 4, "f3", True, 4),
    "out0": Stage(4, 2, "f2", True, 4, one_of_three=True),
    "out1": Stage(2, 1, "rgb", False, 4),
}
#: Widths of the levels that extractors keep, in multiples of ``ModelConfig.base``.
WIDTHS = {"f2": 2, "f3": 4, "f4": 8, "f5": 8}


class Generator(nn.Module):
    """Image from condition and moved exemplar.

    It starts at 1/32 of the image's side from f5 of the condition beside the moved f5; every stage is a residual block
    whose norms (``config.norm``) see the condition's features of one level and the moved level.  A stage whose level is
    not in ``config.levels`` takes the condition itself and the moved RGB instead: with ``levels=("rgb",)`` that holds
    for all, the single-stage rows of the paper's ablation.  M always comes from F_X's features (f4, f3, f2; f5 too in
    "all" stages).

    Args:
        config: Widths and options.

    Shape:
        condition (B, S, H, W) with sides in 32s, F_X's features of it, what was moved (at any resolution) to
        (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: for ``spade_norm`` "batch" with another norm than "spade".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.spade_norm == "batch" and config.norm != "spade":
            raise ValueError(f"spade_norm must be position with norm {config.norm}, got 'batch': it is of norm spade")
        self.levels, self.recompute = config.levels, config.checkpointing
        base, released = config.base, config.norm == "seace_released"
        self.start = convolution(sum(self._channels(config, "f5")), 16 * base)
        self.blocks, self.activations = nn.ModuleDict(), nn.ModuleDict()
        for name, stage in STAGES.items():
            activated = stage.one_of_three or config.activation_stages == "all"
            norm = _norm(config, *self._channels(config, stage.level), activated=activated)
            self.blocks[name] = ResidualBlock(stage.inputs * base, stage.outputs * base, norm)
            if activated and config.norm != "spade":
                self.activations[name] = (LearnedActivation(WIDTHS[stage.activation_level] * base) if released else
                                          CosineActivation() if config.activation == "cosine" else DotActivation())
        self.attention = NonLocal(4 * base) if config.attention else nn.Identity()
        self.last = convolution(base, 3)

    def forward(self, condition: Tensor, condition_features: Features, transported: Transported) -> Tensor:
        height, width = condition.shape[-2:]
        guides = {level: self._guidance(level, condition, condition_features, transported)
                  for level in ("rgb", *WIDTHS)}
        own, style, *_ = guides["f5"]
        side = (height // 32, width // 32)
        x = self.start(torch.cat([resize(own, side), resize(style, side).to(own.dtype)], dim=1))
        for name, stage in STAGES.items():
            guidance = guides[stage.level]
            if name in self.activations:
                grid = (min(height // stage.grid, LARGEST_GRID), min(width // stage.grid, LARGEST_GRID))
                features = getattr(condition_features, stage.activation_level)
                guidance = guidance._replace(activation=self.activations[name](features, grid))
            if name == "out0":
                x = run(self.attention, x, recompute=self.recompute)
            x = run(self.blocks[name], x, guidance, recompute=self.recompute)
            if stage.enlarge:
                x = resize(x, (2 * x.shape[2], 2 * x.shape[3]))
        return torch.tanh(self.last(leaky(x)))

    def _guidance(self, level: str, condition: Tensor, features: Features, transported: Transported) -> Guidance:
        kept = level != "rgb" and level in self.levels
        return Guidance(getattr(features, level) if kept else condition, transported.levels[level if kept else "rgb"],
                        confidence=transported.confidence)

    @staticmethod
    def _channels(config: ModelConfig, level: str) -> tuple[int, int]:
        """Of condition and style at a stage of that level."""
        if level == "rgb" or level not in config.levels:
            return config.condition_channels, 3
        return WIDTHS[level] * config.base, WIDTHS[level] * config.base


def _norm(config: ModelConfig, condition: int, style: int, activated: bool) -> Callable[[int], nn.Module]:
    """What makes the norms of a stage, given the channels of its guiding maps."""
    if config.norm == "spade":
        return partial(Spade, guiding=condition + style, hidden=config.hidden, batch=config.spade_norm == "batch")
    if config.norm == "seace":
        return partial(Seace, condition=condition, style=style, hidden=config.hidden)
    return partial(ReleasedSeace, condition=condition, style=style, hidden=config.hidden, activated=activated)
