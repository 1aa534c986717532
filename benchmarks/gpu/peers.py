"""Peers on dense costs: the methods of the CPU benchmarks, set for a device, whose runs end when the device is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cpu.case import Problem
from benchmarks.cpu.methods import EAGER, OTT, Answer, Runner
from benchmarks.cpu.methods.base import need
from benchmarks.cpu.methods.geomloss import ALL_GEOMLOSS
from benchmarks.cpu.methods.logsumexp import half_steps
from benchmarks.cpu.methods.pot import ALL_PLAIN, ALL_TRANSLATION_INVARIANT

from .stage import Stage


@dataclass(frozen=True)
class Peer:
    """A peer as it is timed here.

    Args:
        name: In the record.
        prepare: Sets it on a problem, untimed.
        convention: Of the entropic term.
        textbook: Its iterates are the textbook's, so that they are judged one by one.
        graph: Whether a CUDA graph can hold its iterations.
        batched: Whether it takes a batch.
    """

    name: str
    prepare: Callable[[Problem], Runner]
    convention: str = "kl"
    textbook: bool = True
    graph: bool = False
    batched: bool = False


def dense_peers(stage: Stage) -> tuple[Peer, ...]:
    """All of them, in order of worth."""
    return (
        Peer("torch.compile, two logsumexp", compiled(stage), graph=True, batched=True),
        Peer("torch, two logsumexp", EAGER.prepare, graph=True, batched=True),
        Peer("GeomLoss", _geomloss, textbook=False, batched=True),
        Peer("POT, torch float64", ALL_PLAIN["torch", "float64"].prepare),
        Peer("POT translation-invariant, torch float64", ALL_TRANSLATION_INVARIANT["torch", "float64"].prepare,
             textbook=False),
        *(Peer(f"OTT-JAX, {method.setting}", method.prepare, convention="entropy", textbook=False)
          for method in stage.choose(OTT, OTT[:1])),
    )


def compiled_by(stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function under torch.compile, for the shapes of one problem; an error where it would give up compiling."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, fullgraph=True, backend=stage.choose("inductor", "aot_eager"))


def compiled(stage: Stage) -> Callable[[Problem], Runner]:
    """Two log-sum-exps under torch.compile.  eps is a tensor, so that one compilation serves all of them."""
    def prepare(problem: Problem) -> Runner:
        iteration = compiled_by(stage, half_steps)
        log_a, log_b = problem.a.log(), problem.b.log()
        reg = torch.full((), problem.reg, device=problem.cost.device)
        step = torch.full((), problem.reg_m * problem.reg / (problem.reg_m + problem.reg), device=problem.cost.device)

        def run(iterations: int) -> tuple[Tensor, Tensor]:
            f, g = torch.zeros_like(log_a), torch.zeros_like(log_b)
            with torch.no_grad():
                for _ in range(iterations):
                    f, g = iteration(problem.cost, log_a, log_b, f, g, reg, step)
            return f, g

        run(1)  # compiles
        return Runner(run, lambda raw, _: Answer(raw[0].double(), raw[1].double()))
    return prepare


def _geomloss(problem: Problem) -> Runner:
    """Of a batch too, by its own function for that."""
    if problem.cost.ndim == 2:
        return ALL_GEOMLOSS["float32"].prepare(problem)
    need("geomloss", "geomloss")
    from geomloss import ot

    def run(iterations: int) -> tuple[Tensor, Tensor]:
        solution = ot.solve_batch(problem.cost, a=problem.a, b=problem.b, reg=problem.reg, unbalanced=problem.reg_m,
                                  max_iter=iterations)
        return solution.potential_a, solution.potential_b

    return Runner(run, lambda raw, _: Answer(raw[0].double(), raw[1].double()))
