"""Peers on features: flash-sinkhorn, which stores no cost, and torch.compile and GeomLoss, which do."""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.methods.base import Missing, need

from .feature_problem import FeatureProblem, draw
from .peers import compiled_by
from .stage import Stage

Pair = tuple[Tensor, Tensor]
#: Settings of flash-sinkhorn: the textbook's iteration in both precisions, and its default.
FLASH = (("alternating", True), ("alternating", False), ("symmetric", True))
#: Seconds that compiling ahead may take.
AHEAD = 60.0


@dataclass(frozen=True)
class FeaturePeer:
    """A peer on features.

    Args:
        name: In the record.
        prepare: A run of so many iterations, which returns (f, g).
        kinds: Of the costs that it has.
        judged: Whether g is the half-step of the f that it returns; the others' arithmetic is not compared.
        largest: Points a side from which on it is left out, for the memory or the time that it takes.
    """

    name: str
    prepare: Callable[[FeatureProblem], Callable[[int], Any]]
    kinds: tuple[str, ...]
    judged: bool = True
    largest: int = 1 << 30


def feature_peers(stage: Stage) -> tuple[FeaturePeer, ...]:
    """All of them, in order of worth."""
    both = "squared Euclidean", "cosine"
    return (
        *(FeaturePeer(f"flash-sinkhorn, {backend}, {'tf32' if tf32 else 'float32'}", _flash(backend, tf32), both[:1],
                      judged=backend == "alternating", largest=1 << 30 if tf32 else 65536) for backend, tf32 in FLASH),
        FeaturePeer("torch.compile, product and two logsumexp", _compiled(stage), both, largest=65536),
        FeaturePeer("GeomLoss, ot.solve_sample", _geomloss, both[:1], judged=False, largest=16384),
    )


def _flash(backend: str, tf32: bool) -> Callable[[FeatureProblem], Callable[[int], Pair]]:
    """Its own class with its own defaults (autotuned) but for a fixed number of iterations at a fixed eps.

    "symmetric" is its default; "alternating" is the textbook's iteration, and so comparable.  tf32 is its default.
    """
    def prepare(problem: FeatureProblem) -> Callable[[int], Pair]:
        if problem.x.device.type != "cuda":
            raise Missing("flash-sinkhorn needs a GPU")
        flash = need("flash_sinkhorn", "flash-sinkhorn")

        def run(iterations: int) -> Pair:
            loss = flash.SamplesLoss("sinkhorn", backend=backend, potentials=True, use_epsilon_scaling=False,
                                     eps=problem.reg, n_iters=iterations, normalize=False, allow_tf32=tf32)
            with torch.no_grad():
                return loss(problem.a, problem.x, problem.b, problem.z)
        return run
    return prepare


def compile_ahead(stage: Stage, sizes: Iterable[tuple[int, int]]) -> None:
    """Let flash-sinkhorn compile the candidates of its autotuner side by side: in turn they take minutes.

    Triton keeps them on disk.  What n has to do with them is whether tiles divide it.

    Args:
        sizes: (n, d) of problems to come.
    """
    if stage.rehearsing or importlib.util.find_spec("flash_sinkhorn") is None:
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_flash_once, args=(n, d, backend, tf32))
               for n, d in sorted({(512 + n % 512, d) for n, d in sizes}) for backend, tf32 in FLASH]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + AHEAD
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()


def _flash_once(n: int, d: int, backend: str, tf32: bool) -> None:
    _flash(backend, tf32)(draw("squared Euclidean", n, d, torch.device("cuda")))(1)


def feature_half_steps(x: Tensor, z: Tensor, alpha: Tensor, beta: Tensor, log_a: Tensor, log_b: Tensor, g: Tensor,
                       k: Tensor, reg: Tensor, step: Tensor) -> Pair:
    """An iteration from features: C = alpha + beta - k x.z, as a user of torch would write it."""
    cost = alpha[:, None] + beta - k * (x @ z.T)
    f = -step * torch.logsumexp(log_b + (g - cost) / reg, 1)
    return f, -step * torch.logsumexp(log_a[:, None] + (f[:, None] - cost) / reg, 0)


def _compiled(stage: Stage) -> Callable[[FeatureProblem], Callable[[int], Pair]]:
    def prepare(problem: FeatureProblem) -> Callable[[int], Pair]:
        iteration = compiled_by(stage, feature_half_steps)
        if problem.kind == "cosine":
            x, z = (torch.nn.functional.normalize(part, dim=1) for part in (problem.x, problem.z))
            alpha, beta, scale = torch.ones_like(problem.a), torch.zeros_like(problem.b), 1.0
        else:
            x, z = problem.x, problem.z
            alpha, beta, scale = x.square().sum(1), z.square().sum(1), 2.0
        k, reg, step = (torch.full((), value, device=x.device) for value in (scale, problem.reg, problem.step))
        log_a, log_b = problem.a.log(), problem.b.log()

        def run(iterations: int) -> Pair:
            f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
            with torch.no_grad():
                for _ in range(iterations):
                    f, g = iteration(x, z, alpha, beta, log_a, log_b, g, k, reg, step)
            return f, g
        return run
    return prepare


def _geomloss(problem: FeatureProblem) -> Callable[[int], Pair]:
    """With a dense cost, unless KeOps is installed."""
    need("geomloss", "geomloss")
    from geomloss import ot

    def run(iterations: int) -> Pair:
        with torch.no_grad():
            solution = ot.solve_sample(problem.x, problem.z, a=problem.a, b=problem.b, reg=problem.reg,
                                       max_iter=iterations)
            return solution.potential_a, solution.potential_b
    return run
