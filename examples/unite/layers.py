"""What all networks are made of: initialised convolutions, positional normalisation, resizing, checkpointing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

SLOPE = 0.2


def convolution(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1, bias: bool = True,
                reflect: bool = False, spectral: bool = False, padding: int | None = None) -> nn.Conv2d:
    """A convolution with xavier-normal weights of gain 0.02 and bias 0, that keeps the side unless it strides.

    Args:
        inputs, outputs, kernel, stride, dilation, bias: Of `torch.nn.Conv2d`.
        reflect: Pad by reflection instead of zeros.
        spectral: Divide the weight by its largest singular value (one power iteration a training step).
        padding: None is what keeps the side of an odd kernel.
    """
    if padding is None:
        padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias,
                      padding_mode="reflect" if reflect and padding else "zeros")
    nn.init.xavier_normal_(layer.weight, gain=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return spectral_norm(layer) if spectral else layer  # after the weights are drawn: it starts its vectors from them


def normalised_convolution(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1,
                           padding: int | None = None) -> nn.Sequential:
    """Convolution with spectral norm, then instance norm without parameters; a bias would cancel in it."""
    return nn.Sequential(
        convolution(inputs, outputs, kernel, stride=stride, dilation=dilation, bias=False, spectral=True,
                    padding=padding),
        nn.InstanceNorm2d(outputs))


def leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SLOPE)


def wide(x: Tensor) -> Tensor:
    """In float32 at least: half precision loses statistics and unit lengths."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def positional_norm(x: Tensor, eps: float = 1e-5) -> Tensor:
    r"""Zero mean and unit (unbiased) variance over channels, at each position of each sample.

    .. math:: (x - \mu) / \sqrt{\sigma^2 + \epsilon}

    The fused layer norm divides by C where the unbiased variance divides by C - 1: eps and the result are scaled.

    Source: Li et al., Positional Normalization, NeurIPS 2019.
    """
    channels = x.shape[1]
    share = (channels - 1) / channels
    rows = functional.layer_norm(wide(x).permute(0, 2, 3, 1), (channels,), eps=eps * share)
    return (rows.permute(0, 3, 1, 2) * math.sqrt(share)).to(x.dtype)


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / |x| over channels, in float32 at least; vectors shorter than ``eps`` shrink instead of being blown up."""
    return functional.normalize(wide(x), dim=1, eps=eps)


def resize(x: Tensor, side: tuple[int, int]) -> Tensor:
    """The nearest pixels of x (B, C, H, W) on a grid of ``side`` (h, w)."""
    return x if tuple(x.shape[-2:]) == side else functional.interpolate(x, size=side, mode="nearest")


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``module(*inputs)``; with ``recompute``, its activations are dropped and made again in the backward.

    The second time spectral norms keep the vectors of the first, so that gradients are those without recomputing.
    """
    if not (recompute and torch.is_grad_enabled()):
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (nullcontext(), _frozen_spectra(module)))


@contextmanager
def _frozen_spectra(module: nn.Module) -> Iterator[None]:
    """No power iteration inside: parametrisations (spectral norms alone, here) as in evaluation."""
    spectra = [part for parent in module.modules() if parametrize.is_parametrized(parent)
               for chain in parent.parametrizations.values() for part in chain if part.training]
    try:
        for part in spectra:
            part.train(False)
        yield
    finally:
        for part in spectra:
            part.train(True)
