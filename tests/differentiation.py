"""What tests of gradients share: leaves, functions of leaves, and what autograd keeps between forward and backward."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from problems import INF, Case, draw, generator
from torch import Tensor

from uotlib import unbalanced_sinkhorn


def leaf(value) -> Tensor:
    """A float64 leaf; an infinite penalty is no place to differentiate at."""
    tensor = torch.as_tensor(value, dtype=torch.float64).clone()
    return tensor.requires_grad_(not math.isinf(tensor.max()))


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def value_of_everything(reg_type: str, **settings) -> Callable[..., Tensor]:
    """The value as a function of cost, a, b, reg, tau_a, tau_b."""
    def value(cost, a, b, reg, tau_a, tau_b):
        return unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=(tau_a, tau_b), reg_type=reg_type, **settings).value

    return value


def value_of_equal_totals(reg_type: str, **settings) -> Callable[..., Tensor]:
    """The value with both marginals exact, as a function of cost, log_a, log_b, reg.

    Masses may then only move along equal totals, which softmax does.
    """
    def value(cost, log_a, log_b, reg):
        return unbalanced_sinkhorn(cost, log_a.softmax(0), log_b.softmax(0), reg=reg, reg_m=INF, reg_type=reg_type,
                                   **settings).value

    return value


def with_an_empty_item(seed: int) -> tuple[Case, list[Tensor]]:
    """A batch of three of which the second has no mass at all, and its leaves: cost, a, b."""
    case = draw(4, 5, seed=seed, batch=(3,))
    a, b = case.a.clone(), case.b.clone()
    a[1], b[1] = 0.0, 0.0
    leaves = [leaf(tensor) for tensor in (case.cost, a, b)]
    return case.but(cost=leaves[0], a=leaves[1], b=leaves[2]), leaves


@contextlib.contextmanager
def saved_sizes() -> Iterator[list[int]]:
    """Entries of every tensor that autograd saves inside the block."""
    sizes: list[int] = []

    def remember(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        yield sizes
