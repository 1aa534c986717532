"""The networks of the authors' checkpoints as their tensors' names say them, for the tests of the importer.

Attributes are named as in fnzhan/UNITE at 948a5d0, and what they do is written from the formulas alone.
"""

from __future__ import annotations

import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def spectral(layer: nn.Module) -> nn.Module:
    """The spectral norm that checkpoints of their time have: weight_orig, weight_u, weight_v."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(layer)


def normed(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, bias=False, **{"padding": 1, **options})
    return nn.Sequential(spectral(layer), nn.InstanceNorm2d(outputs))


def pono(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()


def nearest(x: Tensor, side: tuple[int, int]) -> Tensor:
    return functional.interpolate(x, size=side, mode="nearest")


def reflected(layer: nn.Conv2d, x: Tensor, by: int = 1) -> Tensor:
    return layer(functional.pad(x, (by,) * 4, mode="reflect"))


class Spade(nn.Module):
    def __init__(self, channels: int, guiding: int, hidden: int) -> None:
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(guiding, hidden, 3), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = nn.Conv2d(hidden, channels, 3), nn.Conv2d(hidden, channels, 3)

    def forward(self, x: Tensor, guiding: Tensor) -> Tensor:
        h = self.mlp_shared(nearest(guiding, x.shape[-2:]))
        return pono(x) * (1 + reflected(self.mlp_gamma, h)) + reflected(self.mlp_beta, h)


class Seace(nn.Module):
    def __init__(self, channels: int, condition: int, style: int, hidden: int, attended: bool) -> None:
        super().__init__()
        self.attended = attended
        self.seg_shared = nn.Sequential(nn.Conv2d(condition, hidden, 3, padding=1), nn.ReLU())
        self.gamma = nn.Conv2d(hidden, channels, 3, padding=1)
        self.beta = nn.Conv2d(hidden, channels, 3, padding=1)
        self.ref_shared = nn.Sequential(nn.Conv2d(style, style, 3, padding=1), nn.ReLU())
        self.ref_shared2 = nn.Sequential(nn.Conv2d(style, hidden, 3, padding=1), nn.ReLU())
        self.coef = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, condition: Tensor, style: Tensor, m: Tensor | None, confidence: float) -> Tensor:
        side = x.shape[-2:]
        style = nearest(style, side)
        if self.attended:
            root = round(m.shape[1] ** 0.5)
            value = self.ref_shared(nearest(style, (root, root)))
            moved = torch.einsum("bij,bcj->bci", m, value.flatten(2)).unflatten(2, (root, root))
            style = style + self.coef * nearest(moved, side)
        h = (1 - confidence) * self.seg_shared(nearest(condition, side)) + confidence * self.ref_shared2(style)
        return pono(x) * (1 + self.gamma(h)) + self.beta(h)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm, dilation: int = 1) -> None:
        super().__init__()
        middle, self.dilation = min(inputs, outputs), dilation
        self.conv_0 = spectral(nn.Conv2d(inputs, middle, 3, dilation=dilation))
        self.conv_1 = spectral(nn.Conv2d(middle, outputs, 3, dilation=dilation))
        self.norm_0, self.norm_1 = norm(inputs), norm(middle)
        if inputs != outputs:
            self.conv_s, self.norm_s = spectral(nn.Conv2d(inputs, outputs, 1, bias=False)), norm(inputs)

    def forward(self, x: Tensor, *guiding) -> Tensor:
        short = self.conv_s(self.norm_s(x, *guiding)) if hasattr(self, "conv_s") else x
        for conv, norm in ((self.conv_0, self.norm_0), (self.conv_1, self.norm_1)):
            x = reflected(conv, functional.leaky_relu(norm(x, *guiding), 0.2), self.dilation)
        return short + x


class Attention(nn.Module):
    def __init__(self, channels: int, normalised: bool) -> None:
        super().__init__()
        wrap = spectral if normalised else (lambda layer: layer)
        for name, inputs, outputs in (("theta", channels, channels // 8), ("phi", channels, channels // 8),
                                      ("g", channels, channels // 2), ("o", channels // 2, channels)):
            setattr(self, name, wrap(nn.Conv2d(inputs, outputs, 1, bias=False)))
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        key, value = (functional.max_pool2d(layer(x), 2).flatten(2) for layer in (self.phi, self.g))
        m = torch.einsum("bci,bcj->bij", self.theta(x).flatten(2), key).softmax(-1)
        return x + self.gamma * self.o(torch.einsum("bij,bcj->bci", m, value).unflatten(2, x.shape[-2:]))


class Extractor(nn.Module):
    def __init__(self, channels: int, base: int, hidden: int, kernel: int, attended: bool) -> None:
        super().__init__()
        widths = (channels, base, 2 * base, 4 * base, 8 * base, 8 * base)
        for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
            strides = {"kernel": kernel, "stride": 2} if number in (2, 4) else {}
            setattr(self, f"layer{number}", normed(inputs, outputs, **strides))

        def norm(width: int) -> Spade:
            return Spade(width, channels, hidden)

        self.head_0 = Block(8 * base, 8 * base, norm)
        if attended:
            self.attn = Attention(8 * base, normalised=False)
        self.G_middle_0, self.G_middle_1 = Block(8 * base, 8 * base, norm), Block(8 * base, 8 * base, norm)
        self.deeper2 = Block(8 * base, 4 * base, norm, dilation=4)
        self.degridding0 = normed(4 * base, 4 * base, padding=2, dilation=2)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, kept = image, []
        for number in range(1, 6):
            x = getattr(self, f"layer{number}")(x if number == 1 else functional.leaky_relu(x, 0.2))
            kept += [x] if number in (2, 3) else []
        f4 = self.head_0(x, image)
        f5 = self.G_middle_1(self.G_middle_0(self.attn(f4) if hasattr(self, "attn") else f4, image), image)
        f6 = self.degridding0(self.deeper2(f5, image))
        return [*kept, f4, f5, f6 / f6.norm(dim=1, keepdim=True)]


class Plain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        self.prelu, self.norm = nn.PReLU(), nn.InstanceNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.prelu(self.norm(reflected(self.conv1, x)))
        return self.prelu(x + self.norm(reflected(self.conv2, inner)))


class Correspondence(nn.Module):
    """netCorr; ``mask`` and ``coordinates`` are what is appended to the features."""

    def __init__(self, channels: int, *, base: int = 4, hidden: int = 8, kernel: int = 3, layers: int = 4, dim: int = 6,
                 mask: bool = True, coordinates: bool = False, attended: bool = False) -> None:
        super().__init__()
        self.adaptive_model_seg = Extractor(channels, base, hidden, kernel, attended)
        self.adaptive_model_img = Extractor(3, base, hidden, kernel, attended)
        width = 4 * base + channels * mask + 3 * coordinates
        self.layer = nn.Sequential(*(Plain(width) for _ in range(layers)))
        for name in ("phi", "theta", "phi_w", "theta_w", "phi_conf", "theta_conf"):
            setattr(self, name, nn.Conv2d(width, dim, 1))
        self.mask, self.coordinates = mask, coordinates

    def descriptors(self, f6: Tensor, condition: Tensor, project: nn.Conv2d, window: int = 3) -> Tensor:
        side, parts = f6.shape[-2:], [f6]
        if self.coordinates:
            y, x = torch.meshgrid(*(torch.linspace(-1, 1, length) for length in side), indexing="ij")
            parts.append(torch.stack([x, y, (x * x + y * y).sqrt()]).expand(len(f6), -1, -1, -1))
        if self.mask:
            parts.append(nearest(condition, side))
        x = functional.unfold(project(self.layer(torch.cat(parts, 1))), window, padding=window // 2)
        x = x - x.mean(1, keepdim=True)
        return (x / x.norm(dim=1, keepdim=True)).unflatten(2, side)

    def masses(self, target: tuple[Tensor, Tensor], exemplar: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Of (f6, condition) of both sides."""
        x = self.descriptors(*target, self.theta_w, window=1).flatten(2)
        z = self.descriptors(*exemplar, self.phi_w, window=1).flatten(2)
        return [torch.einsum("bdi,bd->bi", side, other.mean(2)).softmax(1) for side, other in ((x, z), (z, x))]

    def confidence(self, target: tuple[Tensor, Tensor], exemplar: tuple[Tensor, Tensor]) -> Tensor:
        x = self.descriptors(*target, self.theta_conf, window=1)
        z = self.descriptors(*exemplar, self.phi_conf, window=1)
        highest = torch.einsum("bdhw,bdj->bhwj", x, z.flatten(2)).amax(3)
        return torch.sigmoid(10 * (highest - highest.mean((1, 2), keepdim=True)))[:, None]


class Products(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = (nn.Conv2d(channels, channels // 4, 1, bias=False) for _ in range(2))

    def forward(self, features: Tensor, side: int) -> Tensor:
        query, key = (layer(nearest(features, (side, side))).flatten(2) for layer in (self.query_conv, self.key_conv))
        return torch.einsum("bci,bcj->bij", query, key).softmax(-1)


class Generator(nn.Module):
    """netG; the maps M are on 1/4, 1/8 and 1/16 of the image's side."""

    def __init__(self, channels: int, *, base: int = 4, hidden: int = 8) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, width: int, attended: bool) -> Block:
            condition = channels if width == 3 else width
            return Block(inputs * base, outputs * base, lambda norm: Seace(norm, condition, width, hidden, attended))

        self.fc = nn.Conv2d(16 * base, 16 * base, 3, padding=1)
        self.G_head_0 = block(16, 16, 8 * base, False)
        self.G_middle_0 = block(16, 16, 8 * base, True)
        self.G_middle_1 = block(16, 16, 8 * base, False)
        self.G_up_0 = block(16, 8, 4 * base, True)
        self.G_up_1 = block(8, 4, 4 * base, False)
        self.attn = Attention(4 * base, normalised=True)
        self.G_out_0 = block(4, 2, 2 * base, True)
        self.G_out_1 = block(2, 1, 3, False)
        self.conv_img1 = nn.Conv2d(base, 3, 3, padding=1)
        self.attn2, self.attn3, self.attn4 = Products(2 * base), Products(4 * base), Products(8 * base)

    def forward(self, condition: list[Tensor], style: list[Tensor], confidence: float) -> Tensor:
        """Of (condition, f2, f3, f4, f5) and (rgb, f2, f3, f4, f5), the latter moved."""
        size = condition[0].shape[-1]
        m2, m3, m4 = (net(condition[level], size // share) for net, level, share in
                      ((self.attn2, 1, 4), (self.attn3, 2, 8), (self.attn4, 3, 16)))
        start = torch.cat([nearest(each[4], (size // 32, size // 32)) for each in (condition, style)], 1)
        x = self.G_head_0(self.fc(start), condition[4], style[4], None, confidence)
        x = self.G_middle_0(_up(x), condition[3], style[3], m4, confidence)
        x = self.G_middle_1(x, condition[3], style[3], None, confidence)
        x = self.G_up_0(_up(x), condition[2], style[2], m3, confidence)
        x = self.G_up_1(_up(x), condition[2], style[2], None, confidence)
        x = self.G_out_0(self.attn(_up(x)), condition[1], style[1], m2, confidence)
        x = self.G_out_1(_up(x), condition[0], style[0], None, confidence)
        return torch.tanh(self.conv_img1(functional.leaky_relu(x, 0.2)))


class Patches(nn.Module):
    def __init__(self, inputs: int, base: int, channels: int, attended: bool) -> None:
        super().__init__()
        if attended:
            self.attn = Attention(4 * base, normalised=True)
        widths = (4 * base, 2 * base, base, base // 2)
        steps = [part for before, behind in pairwise(widths)
                 for part in (nn.Upsample(scale_factor=2), normed(before, behind), nn.LeakyReLU(0.2))]
        self.dec = nn.Sequential(*steps, nn.Conv2d(base // 2, channels, 3, padding=1))
        self.model0 = nn.Sequential(nn.Conv2d(inputs, base, 4, 2, 1), nn.LeakyReLU(0.2))
        for number, stride in ((1, 2), (2, 2), (3, 1)):
            wide = base * 2**number
            setattr(self, f"model{number}",
                    nn.Sequential(normed(wide // 2, wide, 4, stride=stride), nn.LeakyReLU(0.2)))
        self.model4 = nn.Sequential(nn.Conv2d(8 * base, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for number in range(5):
            x = getattr(self, f"model{number}")(self.attn(x) if number == 3 and hasattr(self, "attn") else x)
            maps.append(x)
        return maps


class Discriminator(nn.Module):
    """netD."""

    def __init__(self, channels: int, *, base: int = 4, scales: int = 2, attended: bool = True) -> None:
        super().__init__()
        for number in range(scales):
            setattr(self, f"discriminator_{number}", Patches(channels + 3, base, channels, attended))

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        maps = []
        for patches in self.children():
            maps.append(patches(x))
            x = functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return maps


def _up(x: Tensor) -> Tensor:
    return nearest(x, (2 * x.shape[-2], 2 * x.shape[-1]))


@torch.no_grad()
def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every tensor drawn anew, gains and biases too, and the vectors of spectral norms where they converge."""
    drawn = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        fan = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.copy_(torch.randn(parameter.shape, generator=drawn) / fan**0.5)
    for layer in module.modules():
        if hasattr(layer, "weight_u"):
            left, _, right = torch.linalg.svd(layer.weight_orig.flatten(1), full_matrices=False)
            layer.weight_u.copy_(left[:, 0])
            layer.weight_v.copy_(right[0])
    return module.eval()
