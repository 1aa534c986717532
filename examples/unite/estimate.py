"""`python -m examples.unite.estimate`: what a training step should take on GPUs, by arithmetic; nothing is measured."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .config import LEVELS, PRESETS, Config, preset
from .discriminator import Discriminator
from .losses import Losses
from .model import Unite
from .perceptual import BLOCKS, WIDTHS, PerceptualNetwork
from .settings import assign
from .structures import Batch

#: Bytes of float32: weights, gradients and Adam's two moments of what is trained; an average of the model's weights.
TRAINED, AVERAGED = 16, 4
#: Products of n x n with the channels that are moved: forth, and three in the backward.
MOVES = 4


class Step(NamedTuple):
    """What one step takes of one process."""

    model: int         # parameters
    discriminator: int
    judge: int
    flops: int         # multiplications and additions of the networks, forward and backward
    matching: int      # of the plan: of its passes and of what it moves
    kept: int          # bytes that autograd keeps for the backward

    @property
    def fixed(self) -> int:
        """Bytes whatever the batch."""
        return TRAINED * (self.model + self.discriminator) + AVERAGED * self.model + 4 * self.judge


def count(config: Config) -> Step:
    """A step's size; tensors are fake, so that it takes no memory and no time."""
    flops, kept, loss = FlopCounterMode(display=False), Kept(), config.loss
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # the judge is real
    network = vgg() if loss.pseudo or loss.perceptual_weight or loss.contextual else None
    with fake:
        model, judge = Unite(config.model, config.match), Discriminator(config.model)
    # Fused attention is not counted, and attention in parts would keep what the fused one does not.
    with fake, sdpa_kernel(SDPBackend.MATH), flops:
        step(config, model, judge, network)
    with fake, kept.counted():
        step(config, model, judge, network)
    return Step(_parameters(model), _parameters(judge), 0 if network is None else _parameters(network),
                flops.get_total_flops(), _matching(config), kept.bytes)


def vgg() -> PerceptualNetwork:
    """A judge as large as VGG-19, which knows nothing."""
    weights, before = [], 3
    for count, width in zip(BLOCKS["vgg19"], WIDTHS, strict=True):
        weights.append([(torch.zeros(width, before if first else width, 3, 3), torch.zeros(width))
                        for first in (True, *(False,) * (count - 1))])
        before = width
    return PerceptualNetwork(weights, "of VGG-19's size", caffe=False)


def step(config: Config, unite: Unite, judge: Discriminator, network: PerceptualNetwork | None) -> None:
    """Forward and backward of both networks on random examples."""
    model, batch = config.model, config.train.batch
    losses = Losses(config, network)
    side = (model.size, model.size)
    given = Batch(torch.rand(batch, model.condition_channels, *side), torch.rand(batch, 3, *side),
                  torch.rand(batch, 3, *side), torch.rand(batch, model.condition_channels, *side), torch.ones(batch))
    judge.requires_grad_(False)
    output = unite(given.condition, given.exemplar, given.exemplar_condition, given.image)
    fake = judge(given.condition, output.image)
    with torch.no_grad():
        real = judge(given.condition, given.image)
    sum(losses.generator(output, given, fake, real).values()).backward()
    judge.requires_grad_(True)
    maps = judge(torch.cat([given.condition] * 2), torch.cat([output.image.detach(), given.image]))
    halves = [[[layer.chunk(2)[half] for layer in scale] for scale in maps] for half in (0, 1)]
    sum(losses.discriminator(*halves).values()).backward()


class Kept:
    """Bytes of what the graphs of both networks keep, each memory once, without parameters."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: dict[int, Tensor] = {}

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        def keep(tensor: Tensor) -> Tensor:
            memory = tensor.untyped_storage()
            if not isinstance(tensor, nn.Parameter) and memory._cdata not in self._seen:
                self._seen[memory._cdata] = tensor  # alive, or another one could get its place
                self.bytes += memory.nbytes()
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield
        self._seen.clear()


def _matching(config: Config) -> int:
    """Operations of a plan: a product of features a pass, and of n x n with all channels that are moved."""
    model, match = config.model, config.match
    n = (model.size // model.stride) ** 2
    widths = dict(zip(LEVELS, (3, *(model.base * times for times in (2, 4, 8, 8))), strict=True))
    channels = sum(widths[level] for level in model.levels) + model.condition_channels + 3
    return 2 * n * n * config.train.batch * (
        match.passes * model.descriptor_dim * model.match_kernel**2 + MOVES * channels)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main(argv: Sequence[str] | None = None) -> int:
    """Print; returns the exit status."""
    options = _parse(argv)
    config = preset(options.preset)
    for text in options.set:
        config = assign(config, text)
    batch, size = config.train.batch, count(config)
    total, gradients = size.flops + size.matching, 4 * (size.model + size.discriminator)
    seconds = total / (1e12 * options.tflops)
    print(f"{options.preset}, {config.model.size} px, batch {batch} in each process, float32: an estimate, not a "
          "measurement")
    print(f"parameters: model {size.model / 1e6:.1f} M, discriminator {size.discriminator / 1e6:.1f} M; judge "
          f"{size.judge / 1e6:.1f} M (VGG-19's, not trained)")
    print(f"memory of each: {size.fixed / 2**30:.1f} GiB of weights, gradients, Adam's moments and the average, "
          f"{size.kept / 2**30:.1f} GiB kept for the backwards: {(size.fixed + size.kept) / 2**30:.1f} GiB and what "
          "passes by")
    print(f"operations of each: {total / 1e12:.1f} TFLOP, {100 * size.matching / total:.1f} % of them matching")
    print(f"at {options.tflops:g} TFLOP/s, and {options.link:g} GB/s between GPUs in an exchange that hides behind "
          "nothing (assumed: --tflops, --link):")
    print(f"{'GPUs':>6}{'batch':>7}{'s a step':>10}{'of it exchange':>16}{'images/s':>10}")
    for gpus in options.gpus:
        exchange = 2 * (gpus - 1) / gpus * gradients / (1e9 * options.link)
        print(f"{gpus:6}{gpus * batch:7}{seconds + exchange:10.3f}{exchange:16.3f}"
              f"{gpus * batch / (seconds + exchange):10.1f}")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.estimate", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--preset", choices=PRESETS, default="default", help="(%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=VALUE", help="as of train")
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of them (1 2 4 8)")
    parser.add_argument("--tflops", type=float, default=20.0, help="that one sustains, in 1e12/s (%(default)g)")
    parser.add_argument("--link", type=float, default=20.0, help="between two, in 1e9 bytes/s (%(default)g)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
