r"""Annealing of eps as path following: every level's solution predicts the next one's.

The optimal potentials are a smooth function of eps, so that the ends of the last levels, extrapolated as a polynomial
in eps, start the next level far closer than its predecessor's end does.  A level is therefore worth solving well: its
tolerance falls with the square root of eps.  What that saves is in docs/performance.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import SolverOptions


class Annealing:
    """The eps of A items, each on its own way down; nothing here waits for the device.

    Args:
        reg: Target eps, (A,), float64.
        spread: Scale of the costs, (A,), in the same units; 0 where there is nothing to anneal.
        size: Entries of a potential, m.
        max_iter: Passes that the whole solve may take; annealing ends within half of them.
        options: Schedule.
    """

    def __init__(self, reg: Tensor, spread: Tensor, size: int, max_iter: int, options: SolverOptions) -> None:
        self.options, self.max_iter = options, max_iter
        self.reg, self.spread = reg, spread
        self.start = torch.maximum(reg, options.anneal_start * spread)
        self.eps = self._deadline(0)
        self.next_eps = self.eps
        self.level_pass = torch.zeros(len(reg), dtype=torch.int64, device=reg.device)
        levels = options.anneal_order + 1
        self.ends = torch.zeros(len(reg), levels, size, dtype=torch.float64, device=reg.device)
        self.ends_eps = torch.zeros(len(reg), levels, dtype=torch.float64, device=reg.device)
        self.known = torch.zeros(len(reg), levels, dtype=torch.bool, device=reg.device)

    @property
    def at_target(self) -> Tensor:
        return self.eps <= self.reg

    def level_done(self, violation: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        """After a pass: which items leave their level, and which of them have solved it well enough to predict from."""
        options = self.options
        self.level_pass = self.level_pass + 1
        tolerance = options.anneal_accuracy * (self.eps / self.spread).sqrt()
        solved = violation <= tolerance.clamp_max(options.anneal_violation)
        deadline = self._deadline(passes)
        lower = torch.maximum(self.reg, self.eps * options.anneal_factor)
        late = (self.level_pass >= options.anneal_passes) | (deadline <= lower)
        self.next_eps = torch.minimum(lower, deadline)
        return ~self.at_target & (solved | late), solved

    def descend(self, leaving: Tensor, solved: Tensor, potential: Tensor) -> Tensor:
        """Lower eps where ``leaving`` holds; the potential to start the new level from, (A, m), there.

        The prediction is Lagrange's through the ends of the levels that are known; a level that was not solved well
        breaks the chain.
        """
        leave = leaving[:, None]
        keep = self.known[:, :-1] & solved[:, None]
        first = torch.ones_like(leave)
        self.known = torch.where(leave, torch.cat([first, keep], 1), self.known)
        self.ends_eps = torch.where(leave, torch.cat([self.eps[:, None], self.ends_eps[:, :-1]], 1), self.ends_eps)
        self.ends = torch.where(leave[:, :, None], torch.cat([potential[:, None], self.ends[:, :-1]], 1), self.ends)
        self.eps = torch.where(leaving, self.next_eps, self.eps)
        self.level_pass = torch.where(leaving, 0, self.level_pass)
        return torch.where(leave, torch.bmm(self._lagrange()[:, None], self.ends)[:, 0], potential)

    def _lagrange(self) -> Tensor:
        """Weights of the known ends for a polynomial's value at the new eps, (A, levels)."""
        nodes, usable = self.ends_eps, self.known[:, :, None] & self.known[:, None, :]
        apart = nodes[:, :, None] - nodes[:, None, :]
        usable = usable & (apart != 0)
        factors = (self.eps[:, None, None] - nodes[:, None, :]) / torch.where(usable, apart, 1.0)
        return torch.where(usable, factors, 1.0).prod(2) * self.known

    def _deadline(self, passes: int) -> Tensor:
        """The eps that the pass after these must not exceed."""
        share = 2 * (passes + 1) / self.max_iter
        return torch.maximum(self.reg, self.start * (self.reg / self.start) ** share) if share < 1 else self.reg

    def select(self, kept: Tensor) -> None:
        """Go on with these items only."""
        for name in ("reg", "spread", "start", "eps", "next_eps", "level_pass", "ends", "ends_eps", "known"):
            setattr(self, name, getattr(self, name)[kept])
