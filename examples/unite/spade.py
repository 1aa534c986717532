"""Spatially adaptive normalisation and the residual block that every stage of the networks is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import BatchNorm, convolution, leaky, positional_norm, resize


class Activation(Protocol):
    """The semantic-activation matrix M of a stage, as what it does to maps."""

    side: tuple[int, int]

    def __call__(self, values: Tensor) -> Tensor: ...


class Guidance(NamedTuple):
    """What modulates a stage; maps come at any resolution."""

    condition: Tensor                     # (B, Cx, h, w)
    style: Tensor | None = None           # (B, Cz, h, w): of the exemplar, moved to the condition's layout
    activation: Activation | None = None  # M; None is the identity
    confidence: Tensor | None = None      # (B, 1, h, w) in [0, 1]: how far the style is to be trusted


class Spade(nn.Module):
    r"""A norm without parameters, then a scale and a shift for each position, made from the guiding maps.

    .. math:: \mathrm{out} = \mathrm{norm}(x)\,(1 + \gamma(h)) + \beta(h),\qquad
              h = \mathrm{ReLU}(\mathrm{conv}([\mathrm{condition}, c\,\mathrm{style}]))

    with c the confidence, 1 where there is none.

    Args:
        channels: Of x.
        guiding: Channels of all guiding maps.
        hidden: Of h.
        batch: Normalise by `BatchNorm`, as SPADE was published, in place of `positional_norm`.

    Source: Park et al., SPADE, CVPR 2019.
    """

    def __init__(self, channels: int, guiding: int, hidden: int, *, batch: bool = False) -> None:
        super().__init__()
        self.norm: Callable[[Tensor], Tensor] = BatchNorm(channels) if batch else positional_norm
        self.shared = convolution(guiding, hidden, reflect=True)
        self.gamma = convolution(hidden, channels, reflect=True)
        self.beta = convolution(hidden, channels, reflect=True)

    def forward(self, x: Tensor, guidance: Guidance) -> Tensor:
        side = (x.shape[2], x.shape[3])
        guiding = resize(guidance.condition, side)
        if guidance.style is not None:
            style = resize(guidance.style, side)
            if guidance.confidence is not None:
                style = style * resize(guidance.confidence, side)
            guiding = torch.cat([guiding, style.to(guiding.dtype)], dim=1)
        h = functional.relu(self.shared(guiding))
        return self.norm(x) * (1 + self.gamma(h)) + self.beta(h)


class ResidualBlock(nn.Module):
    r"""Two modulated convolutions beside a shortcut.

    .. math:: \mathrm{shortcut}(x) + \mathrm{conv}(\mathrm{lrelu}(N_1(\mathrm{conv}(\mathrm{lrelu}(N_0(x))))))

    The shortcut is the identity, or, where channels change, a norm of its own and a 1 x 1 convolution.

    Args:
        inputs, outputs: Channels; those between are the smaller of both.
        norm: Makes the modulated norm of a number of channels: `Spade`, `Seace` or `ReleasedSeace`.
        dilation: Of both convolutions.
    """

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module], dilation: int = 1) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.norm0 = norm(inputs)
        self.conv0 = convolution(inputs, middle, dilation=dilation, reflect=True, spectral=True)
        self.norm1 = norm(middle)
        self.conv1 = convolution(middle, outputs, dilation=dilation, reflect=True, spectral=True)
        self.learned = inputs != outputs
        if self.learned:
            self.norm_shortcut = norm(inputs)
            self.conv_shortcut = convolution(inputs, outputs, 1, bias=False, spectral=True)

    def forward(self, x: Tensor, guidance: Guidance) -> Tensor:
        shortcut = self.conv_shortcut(self.norm_shortcut(x, guidance)) if self.learned else x
        x = self.conv0(leaky(self.norm0(x, guidance)))
        return shortcut + self.conv1(leaky(self.norm1(x, guidance)))
