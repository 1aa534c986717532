"""PatchGANs at several scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import NonLocal
from .config import ModelConfig
from .layers import convolution, leaky, normalised_convolution


class Patches(nn.Module):
    """One PatchGAN: four maps on the way and one prediction for each of overlapping patches.

    Convolutions of kernel 4 and padding 1: strides 2, 2, 2, 1, 1.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        base = config.base
        self.first = convolution(config.condition_channels + 3, base, 4, stride=2, padding=1)
        self.second = normalised_convolution(base, 2 * base, 4, stride=2, padding=1)
        self.third = normalised_convolution(2 * base, 4 * base, 4, stride=2, padding=1)
        self.attention = NonLocal(4 * base) if config.discriminator_attention else nn.Identity()
        self.fourth = normalised_convolution(4 * base, 8 * base, 4, padding=1)
        self.last = convolution(8 * base, 1, 4, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        one = leaky(self.first(x))
        two = leaky(self.second(one))
        three = leaky(self.third(two))
        four = leaky(self.fourth(self.attention(three)))
        return [one, two, three, four, self.last(four)]


class Discriminator(nn.Module):
    """Patches judged at ``config.discriminators`` scales, each half the one before, with weights of its own.

    Shape:
        Condition (B, S, H, W) and image (B, 3, H, W) to a list over scales of lists of five maps: four of features,
        for feature matching, and the prediction last ((B, 1, 30, 30) and (B, 1, 14, 14) at 256 px).

    Raises:
        ValueError: if ``config.size`` is too small for that many scales.

    Source: the multi-scale discriminators of pix2pixHD (Wang et al., CVPR 2018), without the branches of the authors'
    code that nothing uses.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.size < 32 * 2 ** (config.discriminators - 1):
            raise ValueError(f"discriminators must be fewer at size {config.size}, got {config.discriminators}: "
                             "the smallest scale needs 32 pixels")
        self.scales = nn.ModuleList(Patches(config) for _ in range(config.discriminators))

    def forward(self, condition: Tensor, image: Tensor) -> list[list[Tensor]]:
        x = torch.cat([condition, image.to(condition.dtype)], dim=1)
        judged = [self.scales[0](x)]
        for scale in list(self.scales)[1:]:
            x = functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            judged.append(scale(x))
        return judged
