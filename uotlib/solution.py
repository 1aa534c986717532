r"""The answer: potentials and certificate at once, everything else when it is asked for."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from .gradients.potentials import Potentials
from .gradients.products import Marginal, Plan, PlanProduct, TransportCost
from .gradients.solved import Solved, version_of
from .gradients.unrolled import unrolled_potentials, unrolled_value
from .gradients.value import EnvelopeValue, primal_value
from .operators import GibbsKernel
from .options import SolverOptions
from .problem import Problem
from .solver import Outcome


class Solution:
    r"""Solution of a batch of unbalanced optimal transport problems.

    Shapes are those of the problem's batch, written ``...``; potentials are in units of the cost, masses in units of a
    and b.  The plan is never stored: what reads it streams over blocks of rows, forward and backward.  Outputs share
    one node of the graph, so that a loss of several costs one adjoint solve.

    Attributes:
        violation: Norm of the dual's gradient relative to the plan's mass, (...): what ``tol`` is compared with.  NaN
            where numbers left the range of the type.
        gap: Primal minus dual of this plan, without cancellation and never negative, (...), in units of the value.  An
            exact marginal (``reg_m = inf``) contributes its L1 error instead.  Both are computed from the sums of the
            last pass: in float32 they cannot see the rounding of those sums, about 1e-5 of the mass at eps 1e-4.
        n_iter: Iterations, (...), int64: passes over the cost, annealing included.  ``method="sinkhorn"`` reads the
            cost once more for its certificate.
        converged: Whether the violation is within ``tol`` (its default where ``tol=0``), (...), bool.
    """

    def __init__(self, problem: Problem, kernel: GibbsKernel, outcome: Outcome, grad: str,
                 options: SolverOptions, start: tuple[Tensor, Tensor] | None = None) -> None:
        self._problem, self._kernel, self._pair = problem, kernel, outcome.pair
        self._solved = Solved(problem, kernel, outcome.pair, options,
                              tuple(version_of(tensor) for _, tensor in problem.named))
        self._grad, self._start = grad, start
        self._attached = grad != "none" and torch.is_grad_enabled() and any(
            tensor.requires_grad for _, tensor in problem.named)
        self._outcome = outcome

    @cached_property
    def violation(self) -> Tensor:
        return self._scalar(self._outcome.violation)

    @cached_property
    def gap(self) -> Tensor:
        return self._scalar(self._outcome.gap)

    @cached_property
    def n_iter(self) -> Tensor:
        return self._outcome.n_iter.reshape(self._problem.batch_shape)

    @cached_property
    def converged(self) -> Tensor:
        return self._outcome.converged.reshape(self._problem.batch_shape)

    def __repr__(self) -> str:
        batch = f"batch {tuple(self._problem.batch_shape)}, " if self._problem.batch_shape else ""
        state = f"{int(self.converged.sum())}/{self.converged.numel()} converged" if batch else \
            f"converged={bool(self.converged)}"
        worst = f", violation {float(self.violation.max()):.2e}" if self.violation.numel() else ""
        return f"Solution({batch}{self._kernel.n} x {self._kernel.m}, {state}{worst})"

    @cached_property
    def value(self) -> Tensor:
        r"""The whole primal objective of the plan, (...): cost, both penalties and the entropic term.

        Differentiable in the cost, a, b, reg and reg_m by the envelope theorem, dV/dC = T, and twice through the
        adjoint (``grad="unrolled"``: as the iterations are).
        Source: Feydy et al. 2019, *Interpolating between optimal transport and MMD*, section 2.
        """
        self._solved.check()
        if not self._attached:
            return self._scalar(primal_value(self._problem, self._pair))
        with torch.enable_grad():
            if self._grad == "unrolled":
                f, g = self._inputs[3:5]
                return self._scalar(unrolled_value(self._solved, *self._problem.inputs, f, g, *self._prepared))
            twice = self._grad == "implicit"
            return self._scalar(EnvelopeValue.apply(self._solved, twice, *self._problem.inputs, *self._prepared))

    @cached_property
    def transport_cost(self) -> Tensor:
        """<C, T>, (...)."""
        with self._differentiably("transport_cost"):
            return self._scalar(TransportCost.apply(self._solved, *self._inputs))

    @property
    def f(self) -> Tensor:
        """Row potential, (..., n); +inf for a row that reaches no column.

        Where both marginals are exact, it is determined up to a constant, and its gradient is that of the potentials
        whose change has <T'1, dg> = 0.
        """
        with self._differentiably("f"):
            return self._vector(self._inputs[3])

    @property
    def g(self) -> Tensor:
        """Column potential, (..., m); +inf for a column that no row reaches.  See `f`."""
        with self._differentiably("g"):
            return self._vector(self._inputs[4])

    @property
    def row_mass(self) -> Tensor:
        """Row sums of the plan, (..., n)."""
        with self._differentiably("row_mass"):
            return self._vector(Marginal.apply(self._solved, 0, *self._inputs))

    @property
    def col_mass(self) -> Tensor:
        """Column sums of the plan, (..., m)."""
        with self._differentiably("col_mass"):
            return self._vector(Marginal.apply(self._solved, 1, *self._inputs))

    @property
    def plan(self) -> Tensor:
        """The dense plan, (..., n, m), built on demand."""
        with self._differentiably("plan"):
            plan = Plan.apply(self._solved, *self._inputs)
            return plan.reshape(*self._problem.batch_shape, self._kernel.n, self._kernel.m)

    def apply(self, v: Tensor) -> Tensor:
        """T v, (..., n, k), for v of shape (..., m, k), or (m,) for a vector; differentiable in v too."""
        return self._product("apply", v, side=0, normalised=False)

    def apply_t(self, v: Tensor) -> Tensor:
        """T' v, (..., m, k), for v of shape (..., n, k), or (n,) for a vector; differentiable in v too."""
        return self._product("apply_t", v, side=1, normalised=False)

    def barycentric(self, v: Tensor) -> Tensor:
        r"""Row-normalised :math:`\mathrm{diag}(1/T\mathbf 1)\,T v`: each row's average of v, zero for an isolated row.

        f and a drop out, so that rows without mass get the average that they would have with some.
        """
        return self._product("barycentric", v, side=0, normalised=True)

    def barycentric_t(self, v: Tensor) -> Tensor:
        r"""Column-normalised :math:`\mathrm{diag}(1/T^\top\mathbf 1)\,T^\top v`; see `barycentric`."""
        return self._product("barycentric_t", v, side=1, normalised=True)

    def argmax(self, dim: int = -1) -> Tensor:
        """Best match: of each row (dim=-1), (..., n), or of each column (dim=-2), (..., m).

        -1 for a point that reaches no other.  A point of zero mass has the match that it would have with some.
        """
        return self._best(1, dim)[1][..., 0]

    def topk(self, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
        """The k largest entries of the plan in each row (dim=-1) or column (dim=-2), without building it.

        Args:
            k: At most the number of columns (rows).
            dim: -1 or -2.

        Returns:
            Masses (..., n, k) in decreasing order and indices, int64; index -1 where no pair is left.
        """
        self._differentiably("topk")
        return self._best(k, dim)

    def _best(self, k: int, dim: int) -> tuple[Tensor, Tensor]:
        self._solved.check()
        if dim not in (-1, -2):
            raise ValueError(f"dim must be -1 (matches of rows) or -2 (matches of columns), got {dim}")
        others = self._kernel.m if dim == -1 else self._kernel.n
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"k must be an int, got {type(k).__name__}")
        if not 1 <= k <= others:
            raise ValueError(f"k must be between 1 and {others}, got {k}")
        with torch.no_grad():
            log_mass, index = self._best_of_rows(k) if dim == -1 else self._best_of_columns(k)
        index = torch.where(log_mass > -torch.inf, index, -1)
        own = self._pair.log_u if dim == -1 else self._pair.log_v
        mass = torch.exp(log_mass + own[:, :, None]).to(self._problem.dtype)
        shape = (*self._problem.batch_shape, own.shape[1], k)
        return mass.reshape(shape), index.reshape(shape)

    def _best_of_rows(self, k: int) -> tuple[Tensor, Tensor]:
        values = self._pair.log_u.new_empty(self._problem.batch, self._kernel.n, k)
        indices = torch.empty_like(values, dtype=torch.int64)
        for rows, score in self._scores(self._pair.log_v, side="cols"):
            values[:, rows], indices[:, rows] = torch.topk(score, k, dim=2)
        return values, indices

    def _best_of_columns(self, k: int) -> tuple[Tensor, Tensor]:
        values = self._pair.log_u.new_empty(self._problem.batch, 0, self._kernel.m)
        indices = torch.empty_like(values, dtype=torch.int64)
        for rows, score in self._scores(self._pair.log_u, side="rows"):
            index = torch.arange(rows.start, rows.stop, device=score.device)[None, :, None].expand_as(score)
            values, indices = torch.cat([values, score], 1), torch.cat([indices, index], 1)
            values, order = torch.topk(values, min(k, values.shape[1]), dim=1)
            indices = indices.gather(1, order)
        return values.mT, indices.mT

    def _scores(self, log_scaling: Tensor, side: str) -> Iterator[tuple[slice, Tensor]]:
        """log K + one side's log-scaling, float64: what the entries of a row (column) are ranked by."""
        for rows, cost, items in self._kernel.blocks(bytes_per_entry=32, limit=self._kernel.panel_limit):
            cost = cost if items is None else cost.index_select(0, items)
            scaling = log_scaling[:, None, :] if side == "cols" else log_scaling[:, rows, None]
            yield rows, scaling - cost.double() / self._problem.reg[:, None, None]

    @cached_property
    def _prepared(self) -> tuple[Tensor, ...]:
        """The cost's tensors, attached to the user's."""
        return self._problem.cost.prepare(self._problem.dtype, self._problem.smallest_reg)

    @cached_property
    def _inputs(self) -> tuple[Tensor, ...]:
        """What outputs are functions of: a, b, reg, f, g and the cost's tensors; f and g are one node of the graph."""
        problem = self._problem
        if not self._attached:
            return (*(tensor.detach() for tensor in problem.inputs[:3]), self._pair.f, self._pair.g,
                    *(tensor.detach() for tensor in self._kernel.prepared))
        if self._grad == "unrolled":
            start = torch.zeros_like(self._pair.g) if self._start is None else self._start[1]
            f, g = unrolled_potentials(self._solved, start, self.n_iter.reshape(-1), problem.inputs, self._prepared)
        else:
            f, g = Potentials.apply(self._solved, *problem.inputs, *self._prepared)
        return (*problem.inputs[:3], f, g, *self._prepared)

    def _detached(self) -> Solution:
        """The same solution, every output a constant."""
        constant = copy.copy(self)
        for name in ("value", "transport_cost", "_prepared", "_inputs"):
            constant.__dict__.pop(name, None)
        constant._attached = False
        return constant

    def _product(self, name: str, v: Tensor, side: int, normalised: bool) -> Tensor:
        """M v or M' v in the user's shape."""
        operand = self._operand(name, v, self._kernel.n if side else self._kernel.m)
        with self._differentiably(name):
            problem = self._problem
            matrix = (operand[:, None] if v.ndim == 1 else operand).to(problem.dtype)
            matrix = matrix.expand(*problem.batch_shape, *matrix.shape[-2:]).reshape(problem.batch, *matrix.shape[-2:])
            product = PlanProduct.apply(self._solved, side, normalised, matrix, *self._inputs)
            product = product.reshape(*problem.batch_shape, *product.shape[1:])
            return product[..., 0] if v.ndim == 1 else product

    def _operand(self, name: str, v: object, points: int) -> Tensor:
        """v, checked; without its gradient where gradients are off."""
        if not isinstance(v, Tensor):
            raise TypeError(f"{name}: v must be a torch.Tensor, got {type(v).__name__}")
        if not v.dtype.is_floating_point:
            raise TypeError(f"{name}: v must have a floating-point dtype, got {v.dtype}")
        if v.ndim == 0 or v.shape[0 if v.ndim == 1 else -2] != points:
            raise ValueError(f"{name}: v must have shape (..., {points}, k) or ({points},), got {tuple(v.shape)}")
        if v.device != self._problem.device:
            raise ValueError(f"{name}: v is on {v.device} but the plan is on {self._problem.device}")
        try:
            fits = torch.broadcast_shapes(v.shape[:-2], self._problem.batch_shape) == self._problem.batch_shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"{name}: batch dimensions of v {tuple(v.shape[:-2])} do not broadcast to the problem's "
                             f"{tuple(self._problem.batch_shape)}")
        return v if torch.is_grad_enabled() else v.detach()

    def _vector(self, vector: Tensor) -> Tensor:
        return vector.to(self._problem.dtype, copy=True).reshape(*self._problem.batch_shape, vector.shape[-1])

    def _scalar(self, scalar: Tensor) -> Tensor:
        return scalar.to(self._problem.dtype).reshape(self._problem.batch_shape)

    def _differentiably(self, name: str) -> contextlib.AbstractContextManager:
        """The grad mode of the solve, for one output; refuses what would lose a gradient without a word."""
        self._solved.check()
        if not self._attached:
            return contextlib.nullcontext()
        if self._grad == "envelope" or name == "topk":
            reason = "with grad='envelope' only value is" if self._grad == "envelope" else \
                "its masses come from a search; gather from plan, or use argmax"
            raise RuntimeError(f"an input requires grad and Solution.{name} is not differentiable: {reason}. "
                               "Solve with grad='none' or under torch.no_grad() to use it as a constant.")
        return torch.enable_grad()
