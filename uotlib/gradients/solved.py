r"""What every backward starts from: a solved problem, and the gradients of any loss of its plan.

Inputs of all functions of this package stand in one order: a (B, n), b (B, m), reg (B,), tau_a (B,), tau_b (B,),
f (B, n), g (B, m), float64, and the cost's prepared tensors; and so do lists of what is needed, and of gradients.  A
loss of the plan is known by blocks of :math:`W = T\cdot\partial L/\partial T`; its gradients are sums of W along
rows, columns and the cost, so that nothing of size n x m is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..costs import full_precision_matmul
from ..operators import GibbsKernel
from ..outcome import Pair
from ..problem import Problem
from ..settings import Settings, flat_problem, kernel_of
from ..tracing import lazy
from . import streamed

#: Gradients to the cost's tensors, None where there is no need of one.
Gradients = list[Tensor | None]
#: Temporaries of a pass, in units of the plan's block: plan, dL/dT, W, what goes to the cost, and a product.
TEMPORARIES = 5
#: Place of the cost's first tensor among the inputs.
COST = 7


@dataclass(frozen=True)
class LowRank:
    r"""A W of rank k: :math:`W_{ij} = s\,M_{ij} \sum_k L_{ik} R_{jk}`, which backends sum as they make it.

    Args:
        left, right: L, (B, n, k), and R, (B, m, k), in the solver's type.
        scale: s, (B,), float64: entries of any size need not fit that type.
    """

    left: Tensor
    right: Tensor
    scale: Tensor

    @classmethod
    def of(cls, left: Tensor, right: Tensor, dtype: torch.dtype) -> LowRank:
        """From factors of any type and size."""
        if left.shape[2] == 0:
            return cls(left.to(dtype), right.to(dtype), left.new_ones(len(left), dtype=torch.float64))
        by_left, by_right = (torch.maximum(factor.amax(1), -factor.amin(1)).double().clamp_min(
            torch.finfo(factor.dtype).tiny) for factor in (left, right))  # (B, k); 1 over less would overflow
        scale = (by_left * by_right).amax(1)
        scale = torch.where(scale > 0, scale, 1.0)
        return cls((left * (by_right / scale[:, None])[:, None].to(left.dtype)).to(dtype),
                   (right / by_right[:, None].to(right.dtype)).to(dtype), scale)

    def joined(self, other: LowRank) -> LowRank:
        """The sum of both, of one M."""
        scale = torch.maximum(self.scale, other.scale)
        left = [one.left * (one.scale / scale)[:, None, None].to(one.left.dtype) for one in (self, other)]
        return LowRank(torch.cat(left, 2), torch.cat([self.right, other.right], 2), scale)

    def rescaled(self, rows: Tensor, cols: Tensor) -> LowRank:
        """Of an M whose rows and columns are divided by these, (B, n) and (B, m), and so its factors' multiplied."""
        top = [torch.where(factor.amax(1) > 0, factor.amax(1), 1.0) for factor in (rows, cols)]
        left, right = (part * (factor / most[:, None])[:, :, None].to(part.dtype) for part, factor, most in (
            (self.left, rows, top[0]), (self.right, cols, top[1])))
        return LowRank(left, right, self.scale * top[0] * top[1])


@dataclass(frozen=True)
class ByCost:
    r"""A W by the cost: :math:`W = g\,M \circ C`, and :math:`g\,M` reaches the cost itself.

    Args:
        scale: g, (B,), float64.
    """

    scale: Tensor


#: W, as a backend makes it, or turned out of a block of the plan: (rows, plan) to (B, rows, m).
Weigh = LowRank | ByCost | Callable[[slice, Tensor], Tensor]


@dataclass(frozen=True)
class Solved:
    """A problem with its solution, made of what an operator gets."""

    problem: Problem
    kernel: GibbsKernel
    pair: Pair
    settings: Settings

    @classmethod
    def of(cls, inputs: Sequence[Tensor], scalings: Sequence[Tensor], matrix: Tensor | None, items: Tensor | None,
           settings: str) -> Solved:
        """From `inputs` (a, b, reg, tau_a, tau_b, f, g, cost), log u, log v and the log-sum-exps, all detached.

        Args:
            inputs: In that order; f and g may be other potentials than the log-scalings belong to.
            scalings: log_u (B, n), log_v (B, m), row_lse (B, n), col_lse (B, m).
            matrix: The cost where it was built from features.
            items: Entries of the cost's batch, (B,).
            settings: `Settings.encode`.
        """
        how = Settings.decode(settings)
        a, b, reg, tau_a, tau_b, f, g, *prepared = inputs
        problem = flat_problem(how, a, b, reg, tau_a, tau_b, items)
        kernel = kernel_of(problem, tuple(prepared), matrix, how)
        return cls(problem, kernel, Pair(f, g, *scalings), how)

    @property
    def by_product(self) -> bool:
        """Whether the plan carries the factor a b' ("kl")."""
        return self.problem.reg_type == "kl"

    @lazy
    def massless(self) -> tuple[Tensor, Tensor]:
        """Rows and columns without mass that have a potential all the same, (B, n) and (B, m)."""
        return (~self.problem.rows.massive & torch.isfinite(self.pair.f),
                ~self.problem.cols.massive & torch.isfinite(self.pair.g))

    def blocks(self, log_x: Tensor, log_y: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, cost, e^(x + y - C/eps)) block by block, in blocks small enough for the cache of a CPU."""
        return self.kernel.plan_and_cost(log_x, log_y, self.problem.reg, TEMPORARIES)


def normalising(lse: Tensor) -> Tensor:
    """The log-scaling that makes sums 1; -inf where there is nothing to normalise."""
    return torch.where(lse > -torch.inf, -lse, -torch.inf)


def dot(weight: Tensor, potential: Tensor) -> Tensor:
    """<weight, potential> over the last dimension, where no weight meets any potential, infinite ones included."""
    some = weight != 0
    return torch.where(some, weight * torch.where(some, potential, 0.0), 0.0).sum(-1)


def plan_gradients(solved: Solved, log_x: Tensor, log_y: Tensor, weigh: Weigh, needs: Sequence[bool], *,
                   rows: bool = True, cols: bool = True, into: Gradients | None = None) -> list[Tensor | None]:
    r"""Gradients of a loss of :math:`M_{ij} = e^{x_i + y_j - C_{ij}/\varepsilon}` to the inputs; none to tau_a, tau_b.

    .. math:: \frac{\partial L}{\partial f} = \frac{W\mathbf 1}{\varepsilon},\quad
              \frac{\partial L}{\partial a_i} = \sum_j \frac{W_{ij}}{a_i},\quad
              \frac{\partial L}{\partial C} = -\frac{W}{\varepsilon},\quad
              \frac{\partial L}{\partial\varepsilon} = -\frac{\langle W, f + g - C\rangle}{\varepsilon^2},\qquad
              W = M \cdot \frac{\partial L}{\partial M}

    the second in the "kl" convention only, and at :math:`a_i = 0` from :math:`M_{ij}/a_i`, which is finite.  Between a
    row and a column that both have no mass nothing is passed on: :math:`M_{ij}/(a_i b_j)` has no bound.

    Args:
        log_x, log_y: (B, n) and (B, m): log u and log v, or what normalises rows or columns instead.
        weigh: Called for every block in turn; once more for massless points, with M divided by their mass.
        needs: Which of the gradients are wanted.
        rows: Whether x is log u, so that f and a matter.
        cols: Whether y is log v, so that g and b matter.
        into: Gradients to the cost's tensors, to which these are added in place; None for nothing yet.
    """
    kernel, pair, reg = solved.kernel, solved.pair, solved.problem.reg
    wanted = rows and (needs[0] or needs[2] or needs[5]), cols and (needs[1] or needs[2] or needs[6])
    row_sum, col_sum = (torch.zeros_like(potential) if want else potential.new_zeros(()).expand_as(potential)
                        for potential, want in ((pair.f, wanted[0]), (pair.g, wanted[1])))
    cost_sum = torch.zeros_like(reg)
    if isinstance(weigh, LowRank) and kernel.features is not None:
        row_sum, col_sum, cost_sum, found = streamed.low_rank_sums(
            solved, kernel.features, log_x, log_y, weigh, *wanted, needs[2], needs[COST:])
        into = _added(into, found)
    elif isinstance(weigh, (LowRank, ByCost)):
        into = low_rank_sums(solved, log_x, log_y, weigh, row_sum if wanted[0] else None,
                             col_sum if wanted[1] else None, needs[COST:], into, cost_sum if needs[2] else None)
    else:
        into = into or _sums(kernel.prepared, needs[COST:])
        for span, cost, plan in solved.blocks(log_x, log_y):
            weight = weigh(span, plan)
            if wanted[0]:
                row_sum[:, span] = weight.sum(2)
            if wanted[1]:
                col_sum += weight.sum(1)
            if needs[2]:
                cost_sum += torch.where(weight != 0, weight * cost, 0.0).sum(2).double().sum(1)
            if into is not None:
                _pull_back(solved, span, weight / -reg[:, None, None].to(weight.dtype), into)

    def mass_gradient(sums: Tensor, mass: Tensor, at_zero: Callable[[], Tensor]) -> Tensor:
        some = mass > 0
        gradient = torch.where(some, sums / torch.where(some, mass, 1.0), 0.0)
        return gradient + at_zero()

    def at_massless_rows() -> Tensor:
        return _massless_sums(solved, log_x, log_y, weigh, 0)

    def at_massless_cols() -> Tensor:
        return _massless_sums(solved, log_x, log_y, weigh, 1)

    sides = solved.problem.rows, solved.problem.cols
    return [
        mass_gradient(row_sum, sides[0].mass, at_massless_rows) if needs[0] and rows and solved.by_product else None,
        mass_gradient(col_sum, sides[1].mass, at_massless_cols) if needs[1] and cols and solved.by_product else None,
        (cost_sum - dot(row_sum, pair.f) - dot(col_sum, pair.g)) / reg.square() if needs[2] else None,
        None, None,
        row_sum / reg[:, None] if needs[5] and rows else None,
        col_sum / reg[:, None] if needs[6] and cols else None,
        *(into or [None] * len(needs[COST:]))]


def low_rank_sums(solved: Solved, log_x: Tensor, log_y: Tensor, weigh: LowRank | ByCost, row_sum: Tensor | None,
                  col_sum: Tensor | None, to_cost: Sequence[bool] = (), into: Gradients | None = None,
                  cost_sum: Tensor | None = None) -> Gradients | None:
    """Sums of W along rows and columns, and <W, C>, into ``row_sum``, ``col_sum`` and ``cost_sum``, zeros or None; the
    cost's gradients as asked for, added to ``into`` if there is one."""
    kernel, reg = solved.kernel, solved.problem.reg
    backend, scale = kernel.backend, weigh.scale / -reg
    direct = weigh.scale if isinstance(weigh, ByCost) else None
    by_cost = direct is not None or cost_sum is not None
    temporaries = backend.weigh_cost_temporaries if by_cost else backend.weigh_temporaries
    in_place, add = kernel.cost.dense and kernel.cost_items is None, into is not None
    if into is None and in_place:
        into = [backend.fresh(torch.empty_like(kernel.prepared[0]))] if any(to_cost) else None
    elif into is None:
        into = _sums(kernel.prepared, to_cost)
    # Features of the solver's type that belong to one problem each: their gradients are products of W.
    fused = (kernel.cost.bilinear and temporaries == 0 and kernel.cost_items is None
             and kernel.prepared[0].dtype == kernel.dtype)
    needs_panel = into is not None and not in_place and not fused
    panel = None  # one for all blocks
    for rows, block, entries in kernel.panel_blocks(temporaries + needs_panel):
        left, right = (None, None) if isinstance(weigh, ByCost) else (weigh.left[:, rows], weigh.right)
        factors = block, log_x[:, rows], log_y, reg, left, right
        give: dict[str, Any] = {}
        if needs_panel:
            panel = block.new_empty(kernel.batch, *block.shape[1:], dtype=kernel.dtype) if panel is None else panel
            give["out"] = panel[:, : block.shape[1]]
        elif into is not None and into[0] is not None:
            give = {"out": into[0][:, rows], "add": add} if in_place else {
                "factor": kernel.prepared[1], "product": into[0][:, rows]}
        along = None if row_sum is None else row_sum[:, rows]
        if by_cost:
            backend.weigh_cost(*factors, along, col_sum, cost_sum, entries, scale=scale, direct=direct, **give)
        elif give or along is not None or col_sum is not None:
            backend.weigh(*factors, along, col_sum, entries, scale=scale, **give)
        if into is not None and needs_panel:
            _pull_back(solved, rows, give["out"], into)
        elif into is not None and fused and into[1] is not None and direct is not None:
            backend.weigh_cost(*factors, None, None, None, entries, scale=scale, direct=direct, transposed=True,
                               factor=kernel.prepared[0][:, rows], product=into[1])
        elif into is not None and fused and into[1] is not None:
            backend.weigh_columns(*factors, kernel.prepared[0][:, rows], into[1], entries, scale=scale)
    for total in (row_sum, col_sum, cost_sum):
        if total is not None:
            total *= weigh.scale if total.dim() == 1 else weigh.scale[:, None]
    return into


def _massless_sums(solved: Solved, log_x: Tensor, log_y: Tensor, weigh: Weigh, side: int) -> Tensor:
    """Sums of W over mass for the rows (side 0) or columns (1) that have none; 0 for the others."""
    potential = solved.pair.f if side == 0 else solved.pair.g
    massless = solved.massless[side]
    sums = torch.zeros_like(potential)
    if not bool(massless.any()):
        return sums
    scaling = torch.where(massless, potential / solved.problem.reg[:, None], -torch.inf)
    # The other side may be normalised, and then has entries for points without mass.
    if side == 0:
        log_x, log_y = scaling, torch.where(solved.problem.cols.massive, log_y, -torch.inf)
    else:
        log_x, log_y = torch.where(solved.problem.rows.massive, log_x, -torch.inf), scaling
    if isinstance(weigh, LowRank) and solved.kernel.features is not None:
        found = streamed.low_rank_sums(solved, solved.kernel.features, log_x, log_y, weigh, side == 0, side == 1)
        return found[1] if side else found[0]
    if isinstance(weigh, (LowRank, ByCost)):
        low_rank_sums(solved, log_x, log_y, weigh, *((None, sums) if side else (sums, None)))
        return sums
    for span, _, plan in solved.blocks(log_x, log_y):
        weight = weigh(span, plan)
        if side == 0:
            sums[:, span] = weight.sum(2)
        else:
            sums += weight.sum(1)
    return sums


def _sums(prepared: Sequence[Tensor], needs: Sequence[bool]) -> Gradients | None:
    """Zeros for the gradients to the cost's tensors that are needed, None for the others; None if none is."""
    if not any(needs):
        return None
    return [torch.zeros_like(tensor) if need else None for tensor, need in zip(prepared, needs, strict=True)]


def _added(into: Gradients | None, found: Gradients | None) -> Gradients | None:
    """Both, one of which may be nothing; in place."""
    if into is None or found is None:
        return found if into is None else into
    return [one if other is None else other if one is None else one.add_(other)
            for one, other in zip(into, found, strict=True)]


def _pull_back(solved: Solved, rows: slice, gradient: Tensor, into: Sequence[Tensor | None]) -> None:
    """Add the gradients to the prepared tensors that come through these rows of the cost; a shared cost gets sums."""
    kernel = solved.kernel
    kernel.cost.pull_back(kernel.prepared, rows, kernel.dtype, shared_sum(solved, gradient), into)


def shared_sum(solved: Solved, block: Tensor) -> Tensor:
    """A block (B, rows, m) summed over the problems that share a cost: over the cost's own batch."""
    if solved.kernel.cost_items is None:
        return block
    shared = block.new_zeros(len(solved.kernel.prepared[0]), *block.shape[1:])
    return shared.index_add_(0, solved.kernel.cost_items, block)


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Batched product in full precision, whatever autocast says."""
    with full_precision_matmul(left.device):
        return torch.bmm(left, right)
