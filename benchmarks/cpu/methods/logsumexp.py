"""The textbook iteration as anyone writes it in torch: two ``logsumexp`` over the cost, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Problem
from .base import Answer, Method, Runner

Pair = tuple[Tensor, Tensor]


def half_steps(cost: Tensor, log_a: Tensor, log_b: Tensor, f: Tensor, g: Tensor, reg: float, step: float) -> Pair:
    """One iteration in the "kl" convention; any batch dimensions.  Potentials are in units of the cost."""
    f = -step * torch.logsumexp(log_b[..., None, :] + (g[..., None, :] - cost) / reg, -1)
    g = -step * torch.logsumexp(log_a[..., :, None] + (f[..., :, None] - cost) / reg, -2)
    return f, g


def logsumexp_method(compiled: bool) -> Method:
    def prepare(problem: Problem) -> Runner:
        log_a, log_b = problem.a.log(), problem.b.log()
        step = problem.reg_m * problem.reg / (problem.reg_m + problem.reg)
        iteration: Callable[..., Pair] = torch.compile(half_steps, dynamic=False) if compiled else half_steps
        zeros = torch.zeros_like(log_a), torch.zeros_like(log_b)
        with torch.no_grad():
            iteration(problem.cost, log_a, log_b, *zeros, problem.reg, step)  # compiles

        def run(iterations: int) -> Pair:
            f, g = zeros
            with torch.no_grad():
                for _ in range(iterations):
                    f, g = iteration(problem.cost, log_a, log_b, f, g, problem.reg, step)
            return f, g

        return Runner(run, lambda raw, _: Answer(raw[0].double(), raw[1].double()))

    return Method("torch.compile, two logsumexp" if compiled else "torch, two logsumexp", "float32", prepare)


EAGER, COMPILED = logsumexp_method(False), logsumexp_method(True)
