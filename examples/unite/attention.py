"""Attention that keeps no n x n matrix, and the non-local block."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import convolution


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Rows of values, averaged by similarity: :math:`\mathrm{softmax}(q k^\top) v`.

    Fused kernels want one width of all three, in eights; narrower ones are filled up with zeros, which changes nothing.

    Args:
        query: (B, n, d); any scale is already in it.
        key: (B, m, d).
        value: (B, m, c).

    Returns:
        (B, n, c).
    """
    channels = value.shape[-1]
    width = -(-max(query.shape[-1], channels) // 8) * 8
    query, key, value = (functional.pad(x, (0, width - x.shape[-1])).unsqueeze(1) for x in (query, key, value))
    mixed = functional.scaled_dot_product_attention(query, key.to(query.dtype), value.to(query.dtype), scale=1.0)
    return mixed.squeeze(1)[..., :channels].to(value.dtype)


def as_rows(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B, h w, C)."""
    return x.flatten(2).transpose(1, 2)


def as_maps(rows: Tensor, side: tuple[int, int]) -> Tensor:
    """The inverse of `as_rows`."""
    return rows.transpose(1, 2).unflatten(2, side)


class NonLocal(nn.Module):
    r"""Self-attention over positions, added with a gain that starts at 0.

    .. math:: x + g\,W_o\,\mathrm{softmax}(\theta(x)\,\mathrm{pool}(\phi(x))^\top)\,\mathrm{pool}(\gamma(x))

    theta and phi have C/8 channels, gamma C/2; keys and values are max-pooled 2 x 2.

    Source: Zhang et al., Self-Attention GANs, ICML 2019, with the pooling of BigGAN's code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise ValueError(f"a non-local block needs channels in eights, got {channels}: "
                             "base must be larger, or attention off")
        self.query = convolution(channels, channels // 8, 1, bias=False, spectral=True)
        self.key = convolution(channels, channels // 8, 1, bias=False, spectral=True)
        self.value = convolution(channels, channels // 2, 1, bias=False, spectral=True)
        self.out = convolution(channels // 2, channels, 1, bias=False, spectral=True)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        key, value = (functional.max_pool2d(layer(x), 2) for layer in (self.key, self.value))
        mixed = attend(as_rows(self.query(x)), as_rows(key), as_rows(value))
        return x + self.gain * self.out(as_maps(mixed, (x.shape[2], x.shape[3])))
