"""Small networks of examples/unite, and what goes into them: shared by its tests."""

import torch
from torch import nn
from torch.nn import functional

from examples.unite.config import LEVELS, Config, ModelConfig, preset
from examples.unite.structures import Transported

CLASSES = 5


def small(name: str = "default", **changes) -> Config:
    """A preset whose widths and side are cut down."""
    cut = {"size": 64, "base": 4, "hidden": 8, "descriptor_dim": 8, "residual_layers": 1,
           "condition_channels": CLASSES} | changes
    return preset(name).replace("model", **cut)


def inputs(batch: int = 2, side: tuple[int, int] = (64, 64), seed: int = 1):
    """condition, exemplar, exemplar's condition, truth."""
    random = torch.Generator().manual_seed(seed)

    def one_hot():
        return functional.one_hot(torch.randint(CLASSES, (batch, *side), generator=random), CLASSES).movedim(-1, 1)

    def image():
        return torch.rand(batch, 3, *side, generator=random) * 2 - 1

    return one_hot().float(), image(), one_hot().float(), image()


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def moved(config: ModelConfig, batch: int = 1, device: str = "meta", **changes) -> Transported:
    """What a matcher would hand on, at random."""
    side = config.size // config.stride
    widths = dict(zip(LEVELS, (3, *(config.base * times for times in (2, 4, 8, 8))), strict=True))

    def maps(channels: int) -> torch.Tensor:
        return torch.randn(batch, channels, side, side, device=device)

    parts = {"levels": {level: maps(widths[level]) for level in config.levels}, "warped": maps(3),
             "warped_condition": maps(CLASSES), "cycle": maps(3), "exemplar_small": maps(3), "a": maps(1)[:, 0],
             "b": maps(1)[:, 0], "kept": maps(1)[:, 0], "kept_back": maps(1)[:, 0],
             "confidence": None if config.confidence == "off" else maps(1).sigmoid()}
    return Transported(**(parts | changes))
