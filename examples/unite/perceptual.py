"""Networks that judge images: VGG-16 or VGG-19 by file, or a random one of their form; each says its name."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

#: Convolutions of each block; losses want nothing behind relu5_2.
BLOCKS = {"vgg16": (2, 2, 3, 3, 2), "vgg19": (2, 2, 4, 4, 2)}
#: All convolutions, up to the last max-pool.
WHOLE = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
#: Channels of each block.
WIDTHS = (64, 128, 256, 512, 512)
#: What `PerceptualNetwork` returns: the second activation of every block.
LAYERS = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")
#: Mean and standard deviation that torchvision's weights expect, RGB in [0, 1].
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Mean that Caffe's weights expect, BGR in [0, 255].
CAFFE = (103.939, 116.779, 123.68)
#: Width of the random network over VGG's: it judges by no knowledge, so that more width would buy nothing.
RANDOM_SHARE = 0.25


class PerceptualNetwork(nn.Module):
    """Constant features of images in [-1, 1], (B, 3, H, W) to {"relu1_2": ..., ..., "relu5_2": ...}.

    Args:
        weights: (weight, bias) of the convolutions of each block.
        name: Of what judges; it belongs beside every number that it leads to.
        caffe: Input in BGR, 0 to 255, minus `CAFFE`; else RGB, 0 to 1, normalised by `IMAGENET`.
    """

    def __init__(self, weights: list[list[tuple[Tensor, Tensor]]], name: str, *, caffe: bool) -> None:
        super().__init__()
        self.name, self.caffe = name, caffe
        self.blocks = nn.ModuleList(nn.ModuleList(_convolution(*pair) for pair in block) for block in weights)
        mean, deviation = (CAFFE, (1.0,) * 3) if caffe else IMAGENET
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, last: str = LAYERS[-1]) -> dict[str, Tensor]:
        """`LAYERS` up to ``last``; what lies behind it is not computed."""
        return self._layers(images, last)[0]

    def pooled(self, images: Tensor) -> Tensor:
        """The feature after the last max-pool, (B, 3, H, W) to (B, C, H // 32, W // 32), of a ``whole`` network."""
        if len(self.blocks[-1]) <= 2:
            raise ValueError("the network ends at relu5_2: load_perceptual(..., whole=True) reads all of it")
        if min(images.shape[-2:]) < 32:
            raise ValueError(f"images must have at least 32 pixels a side, got {tuple(images.shape[-2:])}")
        return nn.functional.max_pool2d(self._layers(images)[1], 2)

    def _layers(self, images: Tensor, last: str | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """`LAYERS` up to ``last``, and the activation behind which nothing was computed."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")
        if min(images.shape[-2:]) < 16:
            raise ValueError(f"images must have at least 16 pixels a side, got {tuple(images.shape[-2:])}")
        x = (images + 1) / 2
        x = x.flip(1) * 255 if self.caffe else x
        x = (x - self.mean) / self.deviation
        found = {}
        for index, block in enumerate(self.blocks):
            if index:
                x = nn.functional.max_pool2d(x, 2)
            for number, convolution in enumerate(block, 1):
                x = torch.relu(convolution(x))
                if number == 2:
                    found[name := f"relu{index + 1}_2"] = x
                    if name == last:
                        return found, x
        return found, x


def load_perceptual(kind: str, file: str | Path = "", device: torch.device | str = "cpu", *,
                    seed: int = 0, whole: bool = False) -> PerceptualNetwork:
    """The network that a configuration names.

    Args:
        kind: "vgg19", "vgg16", or "random": a quarter of VGG-16's width, weights drawn by ``seed``, with a warning.
        file: Weights, .pth or .safetensors: torchvision's state dict (features.N.weight) or Caffe's names
            (conv1_1.weight, for input in BGR).  Empty: torchvision's own download for a VGG, where it is installed.
        device: Where it goes.
        seed: Of "random".
        whole: With the convolutions behind relu5_2 too, which `PerceptualNetwork.pooled` is for.

    Raises:
        ValueError: for another kind, a file for "random", and a file that is no such network, by what it lacks.
        FileNotFoundError: for a file that does not exist, and for none where torchvision is not installed.
    """
    if kind == "random":
        if file:
            raise ValueError(f"the random network reads no file, got {str(file)!r}")
        warnings.warn(f"images are judged by random-vgg({seed}), a RANDOM network: perceptual and contextual losses "
                      "then know textures of any kind but nothing of what pictures show; give a VGG for real training",
                      stacklevel=2)
        return _random(seed, WHOLE if whole else BLOCKS).to(device)
    if kind not in BLOCKS:
        raise ValueError(f"kind must be one of random, {', '.join(BLOCKS)}, got {kind!r}")
    if file:
        state, source = _read(Path(file)), str(file)
    else:
        state, source = _download(kind), "torchvision"
    return _from_state(kind, state, source, WHOLE if whole else BLOCKS).to(device)


def _random(seed: int, blocks: dict[str, tuple[int, ...]]) -> PerceptualNetwork:
    drawn = torch.Generator().manual_seed(seed)
    weights, before = [], 3
    for count, whole in zip(blocks["vgg16"], WIDTHS, strict=True):
        width, block = int(whole * RANDOM_SHARE), []
        for _ in range(count):
            scale = (2 / (9 * before)) ** 0.5  # keeps the size of activations behind a ReLU
            block.append((scale * torch.randn(width, before, 3, 3, generator=drawn), torch.zeros(width)))
            before = width
        weights.append(block)
    return PerceptualNetwork(weights, f"random-vgg({seed})", caffe=False)


def _from_state(kind: str, state: dict[str, Tensor], source: str,
                blocks: dict[str, tuple[int, ...]]) -> PerceptualNetwork:
    """The layers that are needed, by either convention of names."""
    caffe = "conv1_1.weight" in state
    if not caffe and not any(re.fullmatch(r"features\.\d+\.weight", name) for name in state):
        raise ValueError(f"{source} holds no {kind}: neither features.0.weight nor conv1_1.weight is in it, "
                         f"but {', '.join(list(state)[:3]) or 'nothing'}")
    weights, place, before = [], 0, 3
    for index, (count, width) in enumerate(zip(blocks[kind], WIDTHS, strict=True)):
        block = []
        for number in range(1, count + 1):
            name = f"conv{index + 1}_{number}" if caffe else f"features.{place}"
            block.append(_pair(state, name, (width, before), source, kind))
            place, before = place + 2, width
        weights.append(block)
        place += 1
    return PerceptualNetwork(weights, f"{kind}-caffe" if caffe else f"{kind}-torchvision", caffe=caffe)


def _pair(state: dict[str, Tensor], name: str, channels: tuple[int, int], source: str,
          kind: str) -> tuple[Tensor, Tensor]:
    for part, shape in (("weight", (*channels, 3, 3)), ("bias", channels[:1])):
        if f"{name}.{part}" not in state:
            raise ValueError(f"{source} holds no {kind}: {name}.{part} is missing")
        if tuple(state[f"{name}.{part}"].shape) != shape:
            raise ValueError(f"{source} holds no {kind}: {name}.{part} must have shape {shape}, "
                             f"got {tuple(state[f'{name}.{part}'].shape)}")
    return state[f"{name}.weight"].float(), state[f"{name}.bias"].float()


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    made = nn.utils.skip_init(nn.Conv2d, weight.shape[1], weight.shape[0], 3, padding=1)
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file of a perceptual network at {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file as read
    else:
        def read(file: Path) -> object:
            return torch.load(file, map_location="cpu", weights_only=True)
    try:
        state = read(path)
    except Exception as error:  # what a broken file does to a pickle or an archive has many names
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(f"{path} holds no weights that can be read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a state dict of tensors, got {type(state).__name__}")
    return state


def _download(kind: str) -> dict[str, Tensor]:
    if importlib.util.find_spec("torchvision") is None:
        raise FileNotFoundError(f"no weights for {kind}: give a file (torchvision's {kind} state dict, .pth or "
                                ".safetensors, or one with Caffe's names conv1_1...), install torchvision, "
                                "or choose the network 'random'")
    from torchvision import models

    return models.get_model(kind, weights="DEFAULT").state_dict()
