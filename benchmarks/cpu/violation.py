r"""The one judge of every method: what its potentials are worth, in float64, on the numbers that it was given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from uotlib import ConvergenceWarning, unbalanced_sinkhorn

from .case import Problem

#: Entries of the plan that are worked on at a time: they stay in the cache.
BLOCK = 1 << 18
#: Violation to which the truth is solved, and the violation at which it no longer is one.
TRUTH, NO_TRUTH = 1e-9, 1e-6


@dataclass(frozen=True)
class Verdict:
    """Violation of a plan and its mass; both of the worst item of a batch."""

    violation: float
    mass: float


def judge(problem: Problem, f: Tensor, g: Tensor) -> Verdict:
    r"""Norm of the dual's gradient at (f, g) over the mass of their plan, in float64.

    .. math:: \frac{|T\mathbf 1 - a e^{-f/\tau}|_1 + |T^\top\mathbf 1 - b e^{-g/\tau}|_1}{m(T)}, \qquad
              T_{ij} = w_{ij} e^{(f_i + g_j - C_{ij})/\varepsilon}, \quad w = ab^\top \text{ or } 1

    It is zero at the solution and nowhere else, so that a method that stands still at another value is wrong.
    """
    f, g, a, b = f.double(), g.double(), problem.a.double(), problem.b.double()
    rows, cols = [], torch.zeros_like(b)
    for index, panel in panels(problem, f, g):
        rows.append(panel.sum(-1))
        cols[index[:-1]] += panel.sum(-2)
    row = torch.cat([part.flatten() for part in rows]).reshape(f.shape)
    mass = row.sum(-1)
    off = ((row - a * torch.exp(-f / problem.reg_m)).abs().sum(-1)
           + (cols - b * torch.exp(-g / problem.reg_m)).abs().sum(-1))
    relative = torch.where(mass > 0, off / mass, math.inf)
    return Verdict(float(relative.max()), float(mass.min()))  # of the batch's worst, NaN if any is


def panels(problem: Problem, f: Tensor, g: Tensor) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
    """Blocks of the plan of (f, g), float64, each with its place: rows of one problem, or whole items of a batch."""
    kl = problem.reg_type == "kl"
    log_a = problem.a.double().log() if kl else torch.zeros_like(f)
    log_b = problem.b.double().log() if kl else torch.zeros_like(g)
    one = problem.cost.ndim == 2
    step = max(1, BLOCK // (problem.cost.shape[-1] if one else problem.cost[0].numel()))
    for begin in range(0, len(f), step):
        part = slice(begin, begin + step)
        mine = () if one else (part,)
        panel = problem.cost[part].double().neg_().add_(f[part, ..., None]).add_(g[mine][..., None, :])
        panel.div_(problem.reg).add_(log_a[part, ..., None]).add_(log_b[mine][..., None, :])
        yield (*mine, part if one else slice(None)), panel.exp_()


def truth(problem: Problem) -> tuple[Tensor, Tensor]:
    """Potentials of the solution, float64.

    By the library in float64, which proves nothing: that `judge` puts their violation below 1e-6 does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = unbalanced_sinkhorn(*problem.arguments(torch.float64), reg=problem.reg, reg_m=problem.reg_m,
                                       reg_type=problem.reg_type, tol=TRUTH, max_iter=4000)
    reached = judge(problem, solution.f, solution.g).violation
    if not reached <= NO_TRUTH:
        raise RuntimeError(f"no truth to compare with: its violation is {reached:.1e}")
    return solution.f, solution.g


def plan_error(problem: Problem, f: Tensor, g: Tensor, true: tuple[Tensor, Tensor]) -> float:
    """L1 distance of the plan of (f, g) to the true one, over the mass of the true one: 1 for a plan of zeros."""
    off = mass = 0.0
    both = zip(panels(problem, f.double(), g.double()), panels(problem, *true), strict=True)
    for (_, panel), (_, wanted) in both:
        mass += float(wanted.sum())
        off += float(panel.sub_(wanted).abs_().sum())
    return off / mass
