"""SEACE: style moved within semantic regions, then into the normalisation (Eq. 6 and 7), and the released variant."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .attention import as_maps, as_rows, attend
from .layers import convolution, positional_norm, resize, unit_length
from .spade import Guidance


class RowSoftmax:
    r"""M = row softmax of :math:`q k^\top`, applied without being kept."""

    def __init__(self, query: Tensor, key: Tensor, side: tuple[int, int]) -> None:
        self.query, self.key, self.side = query, key, side

    def __call__(self, values: Tensor) -> Tensor:
        return as_maps(attend(self.query, self.key, as_rows(values)), self.side)


class DotProduct:
    r""":math:`M = X X^\top / n`, applied as :math:`X (X^\top v) / n`: the paper's text, divided by n."""

    def __init__(self, rows: Tensor, side: tuple[int, int]) -> None:
        self.rows, self.side = rows, side

    def __call__(self, values: Tensor) -> Tensor:
        rows = self.rows.to(values.dtype)
        summed = rows.transpose(1, 2) @ as_rows(values)
        return as_maps(rows @ (summed / rows.shape[1]), self.side)


class CosineActivation(nn.Module):
    r"""M = row softmax of t cos(x_i, x_j) over the condition's features, with a learned t that starts at 10."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: Tensor, side: tuple[int, int]) -> RowSoftmax:
        rows = as_rows(unit_length(resize(features, side)))
        return RowSoftmax(rows * self.log_temperature.exp(), rows, side)


class DotActivation(nn.Module):
    """The raw products of the condition's features over n, as `DotProduct`."""

    def forward(self, features: Tensor, side: tuple[int, int]) -> DotProduct:
        return DotProduct(as_rows(resize(features, side)), side)


class LearnedActivation(nn.Module):
    """M = row softmax of learned queries and keys of C/4 channels, as the authors' code has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = convolution(channels, channels // 4, 1, bias=False)
        self.key = convolution(channels, channels // 4, 1, bias=False)

    def forward(self, features: Tensor, side: tuple[int, int]) -> RowSoftmax:
        features = resize(features, side)
        return RowSoftmax(as_rows(self.query(features)), as_rows(self.key(features)), side)


class Seace(nn.Module):
    r"""Semantic-activation denormalisation.

    .. math::
        \gamma_x = M\,\gamma_z,\quad \mu_x = M\,\mu_z,\quad
        X'_{act} = \gamma_x X_{act} + \mu_x,\quad
        \mathrm{out} = \gamma(X'_{act})\,\mathrm{norm}(x) + \mu(X'_{act})

    with :math:`X_{act}` of the condition, :math:`\gamma_z, \mu_z` of the style, both gammas 1 plus a convolution.  With
    a confidence c in [0, 1], :math:`X'_{act} = c\,(\gamma_x X_{act} + \mu_x) + (1 - c) X_{act}`: where nothing came
    over, the condition stays as it is.  M works on its own grid; what it gives is enlarged to that of x.

    Args:
        channels: Of x.
        condition, style: Channels of the guiding maps.
        hidden: Channels of all maps between.

    Source: Zhan et al., UNITE, CVPR 2021, Eq. 6 and 7.
    """

    def __init__(self, channels: int, condition: int, style: int, hidden: int) -> None:
        super().__init__()
        self.condition = convolution(condition, hidden, reflect=True)
        self.style = convolution(style, hidden, reflect=True)
        self.style_gamma = convolution(hidden, hidden, reflect=True)
        self.style_mu = convolution(hidden, hidden, reflect=True)
        self.gamma = convolution(hidden, channels, reflect=True)
        self.mu = convolution(hidden, channels, reflect=True)

    def modulation(self, guidance: Guidance, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """gamma_x and mu_x of Eq. 6, each (B, hidden, *side)."""
        assert guidance.style is not None
        grid = side if guidance.activation is None else guidance.activation.side
        style = functional.relu(self.style(resize(guidance.style, grid)))
        gamma, mu = 1 + self.style_gamma(style), self.style_mu(style)
        if guidance.activation is not None:
            gamma, mu = guidance.activation(torch.cat([gamma, mu], dim=1)).chunk(2, dim=1)
        return resize(gamma, side), resize(mu, side)

    def forward(self, x: Tensor, guidance: Guidance) -> Tensor:
        side = (x.shape[2], x.shape[3])
        gamma, mu = self.modulation(guidance, side)
        activation = functional.relu(self.condition(resize(guidance.condition, side)))
        modulated = gamma * activation + mu
        if guidance.confidence is not None:
            modulated = torch.lerp(activation, modulated, resize(guidance.confidence, side).to(modulated.dtype))
        return positional_norm(x) * (1 + self.gamma(modulated)) + self.mu(modulated)


class ReleasedSeace(nn.Module):
    r"""What the authors' code has under this name: a SPADE of two inputs, the style with attention added.

    .. math::
        s' = s + g\,M\,\mathrm{ReLU}(\mathrm{conv}(s)),\quad
        h = (1 - c)\,\mathrm{ReLU}(\mathrm{conv}(\mathrm{condition})) + c\,\mathrm{ReLU}(\mathrm{conv}(s')),\quad
        \mathrm{out} = \mathrm{norm}(x)\,(1 + \gamma(h)) + \beta(h)

    with s the style, g a gain that starts at 0, c the confidence, 1/2 where there is none; zeros as padding.

    Args:
        activated: Whether the stage has an M; without one, s' = s.
    """

    def __init__(self, channels: int, condition: int, style: int, hidden: int, activated: bool) -> None:
        super().__init__()
        self.condition = convolution(condition, hidden)
        self.style = convolution(style, hidden)
        self.gamma = convolution(hidden, channels)
        self.beta = convolution(hidden, channels)
        self.activated = activated
        if activated:
            self.value = convolution(style, style)
            self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, guidance: Guidance) -> Tensor:
        assert guidance.style is not None
        side = (x.shape[2], x.shape[3])
        style = resize(guidance.style, side)
        if self.activated:
            assert guidance.activation is not None
            value = functional.relu(self.value(resize(guidance.style, guidance.activation.side)))
            style = style + self.gain * resize(guidance.activation(value), side)
        of_condition = functional.relu(self.condition(resize(guidance.condition, side)))
        of_style = functional.relu(self.style(style))
        share = 0.5 if guidance.confidence is None else resize(guidance.confidence, side).to(of_style.dtype)
        h = torch.lerp(of_condition, of_style, share)
        return positional_norm(x) * (1 + self.gamma(h)) + self.beta(h)
