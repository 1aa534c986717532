"""F_X and F_Z: five convolutions, four SPADE blocks modulated by the own input, one more convolution."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .attention import NonLocal
from .config import ModelConfig
from .layers import leaky, normalised_convolution, run, unit_length
from .spade import Guidance, ResidualBlock, Spade
from .structures import Features


class Extractor(nn.Module):
    """Features of a condition or of an image, on the way down to the matching grid.

    Args:
        config: Widths, strides and options.
        channels: Of the input.

    Shape:
        (B, channels, H, W) to `Features`: f2 and f3 at half the side, f4 to f6 at 1/``config.stride`` of it; f6 has
        unit length over channels.

    Source: CoCosNet's feature extractors (Zhang et al., CVPR 2020), as UNITE's code uses them.
    """

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        base, self.recompute = config.base, config.checkpointing
        kernel = config.strided_kernel
        second = {"kernel": kernel, "stride": 2, "padding": 1} if config.stride == 4 else {}
        self.conv1 = normalised_convolution(channels, base)
        self.conv2 = normalised_convolution(base, 2 * base, kernel, stride=2, padding=1)
        self.conv3 = normalised_convolution(2 * base, 4 * base)
        self.conv4 = normalised_convolution(4 * base, 8 * base, **second)
        self.conv5 = normalised_convolution(8 * base, 8 * base)
        norm = partial(Spade, guiding=channels, hidden=config.hidden)
        self.block4 = ResidualBlock(8 * base, 8 * base, norm)
        self.attention = NonLocal(8 * base) if config.extractor_attention else nn.Identity()
        self.block5a = ResidualBlock(8 * base, 8 * base, norm)
        self.block5b = ResidualBlock(8 * base, 8 * base, norm)
        self.block6 = ResidualBlock(8 * base, 4 * base, norm, dilation=4)
        self.conv6 = normalised_convolution(4 * base, 4 * base, dilation=2)

    def forward(self, x: Tensor) -> Features:
        own = Guidance(x)
        f2 = run(self.conv2, leaky(run(self.conv1, x, recompute=self.recompute)), recompute=self.recompute)
        f3 = run(self.conv3, leaky(f2), recompute=self.recompute)
        down = run(self.conv4, leaky(f3), recompute=self.recompute)
        down = run(self.conv5, leaky(down), recompute=self.recompute)
        f4 = run(self.block4, down, own, recompute=self.recompute)
        f5 = run(self.block5a, self.attention(f4), own, recompute=self.recompute)
        f5 = run(self.block5b, f5, own, recompute=self.recompute)
        f6 = self.conv6(run(self.block6, f5, own, recompute=self.recompute))
        return Features(f2, f3, f4, f5, unit_length(f6))
