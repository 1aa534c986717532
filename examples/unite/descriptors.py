"""From the extractors' last maps to the descriptors that are matched."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import ModelConfig
from .layers import convolution, resize, unit_length, wide
from .structures import Features

#: Standard deviation of the noise that stands for a mask.
NOISE = 0.01


class PlainBlock(nn.Module):
    """x + IN(conv(PReLU(IN(conv(x))))), then the same PReLU; convolutions without the bias that IN would cancel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = convolution(channels, channels, bias=False, reflect=True)
        self.conv1 = convolution(channels, channels, bias=False, reflect=True)
        self.norm = nn.InstanceNorm2d(channels)
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.norm(self.conv0(x)))
        return self.activation(x + self.norm(self.conv1(inner)))


class Descriptors(nn.Module):
    r"""Descriptors of condition and exemplar: f6, shared residual layers, a projection each, centred, unit length.

    Before the shared layers f6 may get coordinates (x, y in [-1, 1] and the distance from the middle) and, by
    ``config.mask``, the own condition ("mix"), noise of standard deviation 0.01 in its place ("noise": drawn anew for
    each branch while training, 0 in evaluation, and no exemplar condition is needed), or nothing ("none").

    ``config.centring`` "channel": zero mean over channels at each position; "position": zero mean of each channel over
    positions (the mean descriptor is then near 0, and masses by Eq. 3 say little).

    Shape:
        Features with f6 (B, 4 base, h, w) and conditions (B, S, H, W) to two maps (B, d, h, w), float32 at least; d is
        ``config.descriptor_dim``, nine times that with ``match_kernel`` 3 (neighbourhoods unfolded as channels).

    Raises:
        ValueError: for "mix" without a condition of the exemplar.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.match_kernel % 2 == 0:
            raise ValueError(f"match_kernel must be odd, got {config.match_kernel}")
        self.config, width = config, shared_width(config)
        self.shared = nn.Sequential(*(PlainBlock(width) for _ in range(config.residual_layers)))
        bias = config.centring == "channel"  # the other centring takes it off again
        self.theta = convolution(width, config.descriptor_dim, 1, bias=bias)
        self.phi = convolution(width, config.descriptor_dim, 1, bias=bias)

    def forward(self, features_x: Features, features_z: Features, condition: Tensor,
                exemplar_condition: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.project(*self.shared_features(features_x, features_z, condition, exemplar_condition))

    def shared_features(self, features_x: Features, features_z: Features, condition: Tensor,
                        exemplar_condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the shared layers make of both sides, each (B, `shared_width`, h, w)."""
        return (self.shared(self._with_extras(features_x.f6, condition)),
                self.shared(self._with_extras(features_z.f6, exemplar_condition)))

    def project(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors of `shared_features`."""
        return self._finished(self.theta(x)), self._finished(self.phi(z))

    def _with_extras(self, f6: Tensor, condition: Tensor | None) -> Tensor:
        side, parts = (f6.shape[2], f6.shape[3]), [f6]
        if self.config.coordinates:
            parts.append(coordinates(f6))
        if self.config.mask == "mix":
            if condition is None:
                raise ValueError("the exemplar needs its own condition with mask='mix' (mask='noise' does without)")
            parts.append(resize(condition, side).to(f6.dtype))
        elif self.config.mask == "noise":
            shape = (len(f6), self.config.condition_channels, *side)
            parts.append(NOISE * torch.randn(shape, dtype=f6.dtype, device=f6.device) if self.training
                         else f6.new_zeros(shape))
        return torch.cat(parts, dim=1)

    def _finished(self, x: Tensor) -> Tensor:
        x = wide(x)
        if self.config.match_kernel > 1:
            kernel = self.config.match_kernel
            x = functional.unfold(x, kernel, padding=kernel // 2).unflatten(2, (x.shape[2], x.shape[3]))
        return centred_directions(x, self.config.centring)


class Projections(nn.Module):
    """A 1x1 convolution for each side, then centred and of unit length as descriptors are: what masses and the learned
    confidence are made of.

    Args:
        config: Of the networks.
        alike: Both begin with the same weights: unrelated ones would make about half of all masses by Eq. 3 negative,
            where the clamp stops their gradient.

    Shape:
        `Descriptors.shared_features` (B, `shared_width`, h, w) to two maps (B, descriptor_dim, h, w).
    """

    def __init__(self, config: ModelConfig, *, alike: bool) -> None:
        super().__init__()
        self.centring = config.centring
        bias = config.centring == "channel"
        self.x, self.z = (convolution(shared_width(config), config.descriptor_dim, 1, bias=bias) for _ in range(2))
        if alike:
            self.z.load_state_dict(self.x.state_dict())

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return centred_directions(self.x(x), self.centring), centred_directions(self.z(z), self.centring)


def shared_width(config: ModelConfig) -> int:
    """Channels of the shared layers: f6 and what is appended to it."""
    return 4 * config.base + 3 * config.coordinates + (config.condition_channels if config.mask != "none" else 0)


def centred_directions(x: Tensor, centring: str) -> Tensor:
    """(B, C, h, w) less its mean over channels ("channel") or positions ("position"), of unit length over channels."""
    return unit_length(x - x.mean(dim=1 if centring == "channel" else (2, 3), keepdim=True))


def coordinates(like: Tensor) -> Tensor:
    """x, y in [-1, 1] from edge pixel to edge pixel, and sqrt(x^2 + y^2): (B, 3, h, w)."""
    batch, _, height, width = like.shape
    y = torch.linspace(-1, 1, height, dtype=like.dtype, device=like.device)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, dtype=like.dtype, device=like.device).expand(height, width)
    return torch.stack([x, y, torch.hypot(x, y)]).expand(batch, 3, height, width)
