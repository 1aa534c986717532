"""What all networks are made of: initialised convolutions, two normalisations, resizing, checkpointing."""

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

from . import processes

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


class BatchNorm(nn.Module):
    r"""Zero mean and unit variance of each channel over positions and samples, of all processes; no parameters.

    .. math:: (x - \mu) / \sqrt{\sigma^2 + \epsilon}

    In evaluation :math:`\mu` and :math:`\sigma^2` are averages over the training's batches, as `torch.nn.BatchNorm2d`
    keeps them.  `torch.nn.SyncBatchNorm` refuses tensors of a CPU; this one gives the same wherever processes have a
    group, two sums over channels at a time.

    Args:
        channels: Of x.
        eps: Added to the variance.
        momentum: Share of a batch in the averages.

    Shape:
        (B, C, H, W) to the same; B, H and W are those of every process.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.tracking = True  # whether a batch counts in the averages
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        share = self.momentum if self.tracking else 0.0
        if not self.training or processes.count() == 1:
            rows = functional.batch_norm(wide(x), self.running_mean, self.running_var, training=self.training,
                                         momentum=share, eps=self.eps)
            return rows.to(x.dtype)
        rows, count = wide(x), processes.count() * x.numel() // x.shape[1]
        mean = processes.total(rows.sum((0, 2, 3))) / count
        rows = rows - mean[:, None, None]
        variance = processes.total(rows.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / (count - 1)), share)
        return (rows * torch.rsqrt(variance + self.eps)[:, None, None]).to(x.dtype)


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / |x| over channels, in float32 at least; vectors shorter than ``eps`` shrink instead of being blown up."""
    return functional.normalize(wide(x), dim=1, eps=eps)


def resize(x: Tensor, side: tuple[int, int]) -> Tensor:
    """The nearest pixels of x (B, C, H, W) on a grid of ``side`` (h, w)."""
    return x if tuple(x.shape[-2:]) == side else functional.interpolate(x, size=side, mode="nearest")


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``module(*inputs)``; with ``recompute``, its activations are dropped and made again in the backward.

    The second time spectral norms keep the vectors of the first and batch norms their averages, so that all is as it
    is without recomputing.
    """
    if not (recompute and torch.is_grad_enabled()):
        return module(*inputs)
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False,
                      context_fn=lambda: (nullcontext(), _frozen(module)))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No power iteration inside (parametrisations, spectral norms alone here, as in evaluation), and no averages."""
    spectra = [part for parent in module.modules() if parametrize.is_parametrized(parent)
               for chain in parent.parametrizations.values() for part in chain if part.training]
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    try:
        for part in spectra:
            part.train(False)
        for norm in norms:
            norm.tracking = False
        yield
    finally:
        for part in spectra:
            part.train(True)
        for norm in norms:
            norm.tracking = True
