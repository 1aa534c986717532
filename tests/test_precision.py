"""Split products of tensor cores emulated bit by bit: the errors that `uotlib.precision` reckons with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from uotlib import CosineCost, DotCost, SqEuclideanCost
from uotlib.kernels.tiles import feature_depth
from uotlib.precision import ACCEPTED, ERRORS, cheapest

#: Parts of the splits in the order in which the compiler adds their products, and features that one instruction takes.
SPLITS = {"tf32": ([(0, 0)], 8), "tf32x3": ([(1, 0), (0, 1), (0, 0)], 8), "bf16x3": ([(1, 0), (0, 1), (0, 0)], 16),
          "bf16x6": ([(1, 1), (2, 0), (0, 2), (1, 0), (0, 1), (0, 0)], 16), "float32": ([(0, 0)], 1)}


def rounded(x: Tensor, name: str) -> Tensor:
    if name.startswith("bf16"):
        return x.bfloat16().float()
    if name == "float32":
        return x
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)  # tf32: 10 bits, ties away from zero


def split(x: Tensor, name: str) -> list[Tensor]:
    parts = []
    for _ in range(3):
        parts.append(rounded(x, name))
        x = x - parts[-1]
    return parts


def towards_zero(x: Tensor) -> Tensor:
    """float64 to float32."""
    nearest = x.float()
    return torch.where(nearest.double().abs() > x.abs(), torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


def accumulated(total: Tensor, x: Tensor, z: Tensor, step: int) -> Tensor:
    """As tensor cores add: terms aligned to the largest and cut off a bit behind float32's last, sums cut off."""
    for start in range(0, x.shape[1], step):
        piece = slice(start, start + step)
        terms = torch.cat([total.double()[:, None], x[:, piece].double() * z[:, piece]], 1)
        if step == 1:  # a fused multiply-add instead
            total = terms.sum(1).float()
            continue
        unit = torch.exp2(terms.abs().amax(1, keepdim=True).clamp_min(1e-300).log2().floor() - 24)
        total = towards_zero((torch.trunc(terms / unit) * unit).sum(1))
    return total


def inner_products(x: Tensor, z: Tensor, name: str, chunk: int) -> Tensor:
    """<x_p, z_p> in chunks of so many features, as the kernels add them."""
    order, step = SPLITS[name]
    total = torch.zeros(len(x))
    for start in range(0, x.shape[1], chunk):
        parts = [split(part[:, start : start + chunk], name) for part in (x, z)]
        part = torch.zeros(len(x))
        for i, j in order:
            part = accumulated(part, parts[0][i], parts[1][j], step)
        total = total + part
    return total


def error(name: str, d: int, angle: float, chunk: int | None = None) -> float:
    """Largest error of 1000 products of unit vectors that are so far apart."""
    generator = torch.Generator().manual_seed(d)
    x, noise = torch.randn(2, 1000, d, generator=generator)
    depth, own = feature_depth(d)
    x, z = (pad(normalize(part, dim=1), (0, depth - d)) for part in (x, x + angle * noise))
    return float((inner_products(x, z, name, chunk or own).double() - (x.double() * z.double()).sum(1)).abs().max())


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_are_those_reckoned_with(name):
    worst = max(error(name, d, angle) for d in (2, 3, 32, 130, 1024) for angle in (0.01, 10.0))
    assert ERRORS[name] / 8 < worst < ERRORS[name]


def test_products_in_one_piece_would_err_far_more():
    """What cutting off does to 1024 features of one direction, and why kernels add chunks by themselves."""
    assert error("bf16x6", 1024, 0.01, chunk=1024) > 8 * ERRORS["bf16x6"]


@pytest.mark.parametrize("reg", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("largest", [1.0, 30.0])
def test_the_cheapest_sufficient_precision_is_taken(largest, reg):
    offered = ("tf32", "bf16x3", "bf16x6")
    name = cheapest(offered, largest, reg)
    fitting = [each for each in offered if ERRORS[each] * largest <= ACCEPTED * reg]
    assert name == (fitting[0] if fitting else "float64")
    assert cheapest((), largest, reg) == "float64"


@pytest.mark.parametrize("kind", [CosineCost, SqEuclideanCost, DotCost])
def test_products_are_no_larger_than_a_cost_says(kind):
    x, z = (torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    offered = ("tf32", "bf16x3", "bf16x6")
    left, right = kind(x, z, precision="float32").prepare(torch.float32, 1.0)
    largest = float(left[..., :-2].norm(dim=-1).max() * right[..., :-2].norm(dim=-1).max())
    for reg in (1.0, 1e-2, 1e-4):
        assert kind(x, z).product_precision((left, right), reg, offered) == cheapest(offered, largest * 0.99999, reg)
    with pytest.raises(ValueError, match="precision='tf32' is of float32 features"):
        kind(x, z, precision="tf32").product_precision((left.double(), right.double()), 1.0, offered)
    assert kind(x, z, precision="tf32").product_precision((left, right), 1e-4, offered) == "tf32"
