r"""What a backend is: four operations on a block of rows of the cost, and one sentence.  Where it has more, passes of
the adjoint of its own, which are made of panels else, a whole solve, and a whole solve of the adjoint.

All of them work with the Gibbs kernel :math:`K = e^{-C/\varepsilon}` and the scalings of the plan,
:math:`T_{ij} = u_i K_{ij} v_j`, given by their logarithms.  A backend never sees masses, penalties or
conventions: `uotlib.problem` turns them into ``offset`` and ``damping``.

Shapes and types, for every operation:

* ``cost``: (B, n, m), float32 or float64, unit stride along m (any other strides, batch stride 0 included);
  entries are finite or ``+inf`` (a forbidden pair).  A backend with ``storages`` takes these types too, and computes
  in float32: that is "the cost's type" of its other arguments and results then.
* ``log_u`` (B, n), ``log_v`` (B, m), ``offset`` (B, n): float64, finite or ``-inf`` (a point that takes no part).
* ``reg``, ``damping``, ``shift``: (B,), float64.
* ``items``: None, or (A,) int64 on the cost's device, the entries of its batch to work on; every vector in and out
  then has A rows instead of B.  So finished problems of a batch cost nothing and no cost is copied.

Vectors are float64 whatever the cost's type, because an error :math:`\delta` in a log-scaling is a relative error
:math:`\delta` in the plan, and at small eps log-scalings are in the tens of thousands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..costs import full_precision_matmul

if TYPE_CHECKING:
    from ..gradients.adjoint import Scaled
    from ..operators import GibbsKernel
    from ..options import SolverOptions
    from ..outcome import Outcome
    from ..problem import Problem
    from .features import Features

#: Column sums of a sweep below this (in units of exp(shift)) may have lost terms to underflow.
WEAK_COLUMN = 1e-25
#: So may those below n times this share of the heaviest row's sum.
LOST_TERMS = 2.0**-98
#: Most entries of the cost that are copied at a time to redo single columns.
MASKED_ENTRIES = 1 << 21


def log_scaling(offset: Tensor, damping: Tensor, lse: Tensor) -> Tensor:
    r"""The Sinkhorn half-step in the log domain: ``offset - damping * lse``, ``-inf`` where ``lse`` is.

    ``lse = -inf`` belongs to a point that nothing can reach: it carries no mass.
    """
    return (offset - damping[:, None] * lse).masked_fill_(torch.isneginf(lse), -torch.inf)


def arithmetic(cost: Tensor) -> torch.dtype:
    """Type of the arithmetic on a cost of this type."""
    return torch.float64 if cost.dtype == torch.float64 else torch.float32


def near_one(total: Tensor, expected: Tensor) -> Tensor:
    """Total over expected; 1 where there is neither, and where only rounding can have moved it far from that."""
    ratio = total / torch.where(expected > 0, expected, 1.0)
    return torch.where((ratio > 0.5) & (ratio < 2.0), ratio, 1.0)


class Backend(ABC):
    """One way of running the operations; those of the adjoint are here for all.  Stateless; a module of this package
    holds one instance."""

    name: ClassVar[str]
    #: Temporary memory of an operation, per entry of the block it is given.
    bytes_per_entry: ClassVar[int] = 0
    #: Temporary memory of `schur` and `eliminate`, per entry of the block, in units of the cost's type.
    adjoint_temporaries: ClassVar[int] = 2
    #: The same of `weigh` and `weigh_columns`; 0 means that their products are computed without any block.
    weigh_temporaries: ClassVar[int] = 3
    #: The same of `weigh_cost`.
    weigh_cost_temporaries: ClassVar[int] = 4
    #: Types of half the size that a cost may be kept in.
    storages: ClassVar[tuple[str, ...]] = ()
    #: Whether "auto" may choose it.
    automatic: ClassVar[bool] = True
    #: True where asking for a value on the host would wait for the device.
    asynchronous: ClassVar[bool] = False

    @abstractmethod
    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None if costs of this device and type can be handled here, else one sentence that says why not."""

    @abstractmethod
    def row_lse(self, cost: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        r""":math:`\log\sum_j e^{\log v_j - C_{ij}/\varepsilon}`, (B, n)."""

    @abstractmethod
    def col_lse(self, cost: Tensor, log_u: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        r""":math:`\log\sum_i e^{\log u_i - C_{ij}/\varepsilon}`, (B, m), with a running maximum: never underflows."""

    @abstractmethod
    def sweep(self, cost: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
              col_mass: Tensor, items: Tensor | None = None) -> Tensor:
        r"""One read of the cost for a whole iteration: row update, and the columns' sums of the new plan.

        .. math:: r_i = \log\sum_j e^{\log v_j - C_{ij}/\varepsilon}, \quad
                  \log u_i = \mathtt{offset}_i - \mathtt{damping}\, r_i, \quad
                  \mathtt{col\_mass}_j \mathrel{+}= \sum_i e^{\log u_i + \log v_j - C_{ij}/\varepsilon - \mathtt{shift}}

        Args:
            col_mass: (B, m), float64, added to in place, so that blocks of rows can follow one another.

        Returns:
            The row log-sum-exps r, (B, n).  Column sums under `WEAK_COLUMN` are not exact: see `GibbsKernel.sweep`.

        A backend may take more keywords, None by default, that say what the result is expected to be
        (`NativeBackend.sweep`).
        """

    @abstractmethod
    def panel(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        r"""Block of the plan, :math:`e^{\log u_i + \log v_j - C_{ij}/\varepsilon}`, (B, n, m), in the cost's type."""

    def weigh(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None, right: Tensor | None,
              row_sum: Tensor | None, col_sum: Tensor | None, items: Tensor | None = None, *,
              scale: Tensor | None = None, out: Tensor | None = None, add: bool = False,
              factor: Tensor | None = None, product: Tensor | None = None) -> None:
        r"""Sums of :math:`W_{ij} = T_{ij} \sum_k L_{ik} R_{jk}` along rows and columns, T a block of the plan; and s W.

        Args:
            left, right: L, (B, n, k), and R, (B, m, k), in the cost's type; None for W = T.
            row_sum: (B, n), float64, the result; or None.
            col_sum: (B, m), float64, added to in place; or None.
            scale: s, (B,), float64; 1 if None.
            out: Where s W is wanted, (B, n, m), in the cost's type, unit stride along m; not with a factor.
            add: Whether that is added to what is there.
            factor: F, (B, m, d), in the cost's type, of which s W F is added to ``product`` (B, n, d).
        """
        self.weigh_cost(cost, log_u, log_v, reg, left, right, row_sum, col_sum, None, items, scale=scale, out=out,
                        add=add, factor=factor, product=product)

    def weigh_columns(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None,
                      right: Tensor | None, factor: Tensor, product: Tensor, items: Tensor | None = None, *,
                      scale: Tensor | None = None) -> None:
        """Add s W' F, for the W of `weigh`, to ``product`` (B, m, d); F is ``factor`` (B, n, d)."""
        self.weigh_cost(cost, log_u, log_v, reg, left, right, None, None, None, items, scale=scale, factor=factor,
                        product=product, transposed=True)

    def weigh_cost(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None,
                   right: Tensor | None, row_sum: Tensor | None, col_sum: Tensor | None, cost_sum: Tensor | None,
                   items: Tensor | None = None, *, direct: Tensor | None = None, scale: Tensor | None = None,
                   out: Tensor | None = None, add: bool = False, factor: Tensor | None = None,
                   product: Tensor | None = None, transposed: bool = False) -> None:
        r"""`weigh`, or ``transposed`` `weigh_columns`, of weights that are or meet costs.

        Args:
            cost_sum: (B,), float64, to which :math:`\langle W, C\rangle` is added; an empty entry of W costs nothing.
            direct: d, (B,), float64: then :math:`W = T \circ C`, without L and R, and :math:`s\,W + d\,T` takes the
                place of s W in ``out`` and ``product``.
            transposed: Whether F is (B, n, d), and the transpose times F is added to ``product`` (B, m, d).
        """
        def times(factors: Tensor, block: Tensor) -> Tensor:
            return block * factors[:, None, None].to(block.dtype)

        plan = weight = self.panel(cost, log_u, log_v, reg, items)
        if items is not None and (direct is not None or cost_sum is not None):
            cost = cost.index_select(0, items)
        if direct is not None:
            weight = torch.where(plan != 0, plan * cost, 0.0)
        elif left is not None and right is not None:
            with full_precision_matmul(cost.device):
                weight = torch.bmm(left, right.mT).mul_(plan)
        if row_sum is not None:
            row_sum.copy_(weight.sum(2))
        if col_sum is not None:
            col_sum += weight.sum(1)
        if cost_sum is not None:
            cost_sum += torch.where(weight != 0, weight * cost, 0.0).sum(2).double().sum(1)
        if out is None and product is None:
            return
        weight = weight if scale is None else times(scale, weight)
        weight = weight if direct is None else weight + times(direct, plan)
        if out is not None:
            out.copy_(out + weight if add else weight)
        if factor is not None and product is not None:
            with full_precision_matmul(cost.device):
                product += torch.bmm(weight.mT if transposed else weight, factor)

    def fresh(self, memory: Tensor) -> Tensor:
        """Memory for a whole cost, or its gradient, that nothing was written to yet: as it is best written."""
        return memory

    def product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        """A block of a cost from features: left (B, n, d) times right (B, d, m), to ``out``, all of one type."""
        with full_precision_matmul(out.device):
            out.copy_(torch.bmm(left, right))

    def product_precisions(self, device: torch.device) -> tuple[str, ...]:
        """What `features` can multiply float32 features in, cheapest first, as `uotlib.precision` names it."""
        return ()

    def features(self, prepared: tuple[Tensor, ...], dtype: torch.dtype, precision: str) -> Features | None:
        """Costs of features, `InnerProductCost.prepare`, to be read without being made; None where that is not done."""
        return None

    def solve(self, problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
              init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome | None:
        """A whole solve of a cost that is in memory, (B', n, m), where the backend has a loop of its own; else None.

        The same iteration as `uotlib.solver`'s, which runs pass by pass what this does not.
        """
        return None

    def iterate(self, problem: Problem, gibbs: GibbsKernel, method: str, max_iter: int, tol: float | None,
                init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome | None:
        """The same iteration around passes over any cost, where the backend has all work on vectors too; else None."""
        return None

    def schur(self, cost: Tensor, log_x: Tensor, log_y: Tensor, row_diagonal: Tensor, vector: Tensor, reg: Tensor,
              total: Tensor, items: Tensor | None = None) -> None:
        r"""One read of the cost for a product of the adjoint's Schur complement, over these rows.

        .. math:: \mathtt{total} \mathrel{+}= N^\top \mathrm{diag}(1/\mathtt{row\_diagonal})\, N\, \mathtt{vector},
                  \qquad N_{ij} = e^{\log x_i + \log y_j - C_{ij}/\varepsilon} \le 1

        Args:
            row_diagonal: (B, n), positive.
            vector: (B, m); no entry above 1, so that the type of the cost can hold it.
            total: (B, m), float64, added to in place.
        """
        plan = self.panel(cost, log_x, log_y, reg, items)
        with full_precision_matmul(cost.device):
            through = torch.bmm(plan, vector.to(plan.dtype)[:, :, None]) / row_diagonal[:, :, None]
            total += torch.bmm(plan.mT, through.to(plan.dtype))[:, :, 0]

    def eliminate(self, cost: Tensor, log_x: Tensor, log_y: Tensor, root_r: Tensor, root_c: Tensor, row_side: Tensor,
                  row_ratio: Tensor, reg: Tensor, sums: Tensor, items: Tensor | None = None,
                  empty: Tensor | None = None) -> Tensor:
        r"""One read of the cost for what the adjoint's Schur complement is made of besides products with it.

        Args:
            root_r, root_c: (B, n) and (B, m), which N is expected to turn into one another; no entry above 1.
            row_side: (B, n), right-hand side of the rows; no entry above 1.
            row_ratio: (B,).
            sums: (B, 3, m), float64, added to in place: :math:`N^\top \sqrt r`, :math:`N^\top (\mathtt{row\_side} / d)`
                and :math:`(N \circ N)^\top (1 / d)`, d being the result.
            empty: What `adjoint_blocks` gave for this cost, to be filled in; or None.

        Returns:
            :math:`d = \mathtt{row\_ratio}\; N \sqrt c / \sqrt r`, the quotient as `near_one` has it, (B, n).
        """
        plan = self.panel(cost, log_x, log_y, reg, items)
        with full_precision_matmul(cost.device):
            through = torch.bmm(plan, root_c.to(plan.dtype)[:, :, None])[:, :, 0].double()
            diagonal = near_one(through, root_r) * row_ratio[:, None]
            back = torch.stack([root_r, row_side / diagonal], 2).to(plan.dtype)
            sums[:, :2] += torch.bmm(plan.mT, back).mT
            sums[:, 2] += torch.bmm(plan.square_().mT, (1 / diagonal).to(plan.dtype)[:, :, None])[:, :, 0]
        return diagonal

    def adjoint_blocks(self, cost: Tensor, items: Tensor | None = None) -> Tensor | None:
        """A table for `eliminate` to mark blocks of N that `conjugate_gradients` may skip, where it does; else None."""
        return None

    def conjugate_gradients(self, system: Scaled, cost: Tensor, rhs: Tensor, start: Tensor, tol: float,
                            max_iter: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """All of `uotlib.gradients.adjoint`'s iteration for a cost in memory, where the backend has it; else None.

        Args:
            start: Multiple of ``system.root_c`` that it starts from, (B,): what takes the residual's part along it
                away, which the steps leave alone then; 0 leaves it to them.

        Returns:
            The solution (B, m), its relative residual (B,), and N times the solution, (B, n).
        """
        return None

    def col_lse_masked(self, cost: Tensor, log_u: Tensor, reg: Tensor, mask: Tensor,
                       items: Tensor | None = None) -> Tensor:
        """`col_lse` where ``mask`` (B, m) holds, -inf elsewhere; only those columns are read, a few at a time."""
        result = torch.full(mask.shape, -torch.inf, dtype=torch.float64, device=mask.device)
        for item in mask.any(1).nonzero()[:, 0].tolist():
            entry = item if items is None else int(items[item])
            for columns in mask[item].nonzero()[:, 0].split(max(1, MASKED_ENTRIES // max(1, cost.shape[1]))):
                part = cost[entry, :, columns].contiguous()[None]
                result[item, columns] = self.col_lse(part, log_u[item : item + 1], reg[item : item + 1])[0]
        return result
