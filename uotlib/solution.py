r"""The answer: potentials and certificate at once, everything else when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from .autograd import EnvelopeValue, primal_value, transport_cost
from .costs import full_precision_matmul
from .operators import GibbsKernel
from .problem import Problem
from .solver import Outcome


class Solution:
    r"""Solution of a batch of unbalanced optimal transport problems.

    Shapes are those of the problem's batch, written ``...``; potentials are in units of the cost, masses in units of a
    and b.  The plan is never stored: what reads it streams over blocks of rows.

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

    violation: Tensor
    gap: Tensor
    n_iter: Tensor
    converged: Tensor

    def __init__(self, problem: Problem, kernel: GibbsKernel, outcome: Outcome, grad: str) -> None:
        self._problem, self._kernel, self._pair = problem, kernel, outcome.pair
        self._attached = grad != "none" and torch.is_grad_enabled() and any(
            tensor.requires_grad for _, tensor in problem.named)
        self._versions = tuple(_version(tensor) for _, tensor in problem.named)
        self.violation, self.gap = self._scalar(outcome.violation), self._scalar(outcome.gap)
        self.n_iter = outcome.n_iter.reshape(problem.batch_shape)
        self.converged = outcome.converged.reshape(problem.batch_shape)

    def __repr__(self) -> str:
        batch = f"batch {tuple(self._problem.batch_shape)}, " if self._problem.batch_shape else ""
        state = f"{int(self.converged.sum())}/{self.converged.numel()} converged" if batch else \
            f"converged={bool(self.converged)}"
        worst = f", violation {float(self.violation.max()):.2e}" if self.violation.numel() else ""
        return f"Solution({batch}{self._kernel.n} x {self._kernel.m}, {state}{worst})"

    @cached_property
    def value(self) -> Tensor:
        r"""The whole primal objective of the plan, (...): cost, both penalties and the entropic term.

        Differentiable in the cost, a, b, reg and reg_m by the envelope theorem: dV/dC = T.
        Source: Feydy et al. 2019, *Interpolating between optimal transport and MMD*, section 2.
        """
        self._check_inputs()
        problem = self._problem
        if not self._attached:
            return self._scalar(primal_value(problem, self._pair))
        with torch.enable_grad():
            prepared = problem.cost.prepare(problem.dtype, problem.smallest_reg)
            value = EnvelopeValue.apply(problem, self._pair, self._kernel, self._check_inputs,
                                        *problem.inputs, *prepared)
            return self._scalar(value)

    @cached_property
    def transport_cost(self) -> Tensor:
        """<C, T>, (...)."""
        self._begin("transport_cost")
        return self._scalar(transport_cost(self._problem, self._pair, self._kernel))

    @property
    def f(self) -> Tensor:
        """Row potential, (..., n); +inf for a row that reaches no column."""
        return self._vector("f", self._pair.f)

    @property
    def g(self) -> Tensor:
        """Column potential, (..., m); +inf for a column that no row reaches."""
        return self._vector("g", self._pair.g)

    @property
    def row_mass(self) -> Tensor:
        """Row sums of the plan, (..., n)."""
        return self._vector("row_mass", self._pair.row_mass)

    @property
    def col_mass(self) -> Tensor:
        """Column sums of the plan, (..., m)."""
        return self._vector("col_mass", self._pair.col_mass)

    @property
    def plan(self) -> Tensor:
        """The dense plan, (..., n, m), built on demand."""
        self._begin("plan")
        plan = torch.empty(self._problem.batch, self._kernel.n, self._kernel.m, dtype=self._problem.dtype,
                           device=self._problem.device)
        for rows, panel in self._panels(self._pair.log_u, self._pair.log_v):
            plan[:, rows] = panel
        return plan.reshape(*self._problem.batch_shape, self._kernel.n, self._kernel.m)

    def apply(self, v: Tensor) -> Tensor:
        """T v, (..., n, k), for v of shape (..., m, k), or (m,) for a vector."""
        self._begin("apply")
        return self._rows_times(self._pair.log_u, v, "apply")

    def apply_t(self, v: Tensor) -> Tensor:
        """T' v, (..., m, k), for v of shape (..., n, k), or (n,) for a vector."""
        self._begin("apply_t")
        return self._columns_times(self._pair.log_v, v, "apply_t")

    def barycentric(self, v: Tensor) -> Tensor:
        r"""Row-normalised :math:`\mathrm{diag}(1/T\mathbf 1)\,T v`: each row's average of v, zero for an isolated row.

        f and a drop out, so that rows without mass get the average that they would have with some.
        """
        self._begin("barycentric")
        return self._rows_times(_negated(self._pair.row_lse), v, "barycentric")

    def barycentric_t(self, v: Tensor) -> Tensor:
        r"""Column-normalised :math:`\mathrm{diag}(1/T^\top\mathbf 1)\,T^\top v`; see `barycentric`."""
        self._begin("barycentric_t")
        return self._columns_times(_negated(self._pair.col_lse), v, "barycentric_t")

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
        self._begin("topk")
        return self._best(k, dim)

    def _best(self, k: int, dim: int) -> tuple[Tensor, Tensor]:
        self._check_inputs()
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
        for rows, cost, items in self._kernel.blocks(bytes_per_entry=32):
            cost = cost if items is None else cost.index_select(0, items)
            scaling = log_scaling[:, None, :] if side == "cols" else log_scaling[:, rows, None]
            yield rows, scaling - cost.double() / self._problem.reg[:, None, None]

    def _panels(self, log_u: Tensor, log_v: Tensor) -> Iterator[tuple[slice, Tensor]]:
        return self._kernel.panels(log_u, log_v, self._problem.reg)

    def _rows_times(self, log_u: Tensor, v: Tensor, name: str) -> Tensor:
        operand, finish = self._operand(name, v, self._kernel.m, self._kernel.n)
        log_v = self._pair.log_v
        product = operand.new_empty(self._problem.batch, self._kernel.n, operand.shape[-1])
        with torch.no_grad(), full_precision_matmul(operand.device):
            for rows, panel in self._panels(log_u, log_v):
                product[:, rows] = panel @ operand
        return finish(product)

    def _columns_times(self, log_v: Tensor, v: Tensor, name: str) -> Tensor:
        operand, finish = self._operand(name, v, self._kernel.n, self._kernel.m)
        total = operand.new_zeros(self._problem.batch, self._kernel.m, operand.shape[-1])
        with torch.no_grad(), full_precision_matmul(operand.device):
            for rows, panel in self._panels(self._pair.log_u, log_v):
                total += panel.mT @ operand[:, rows]
        return finish(total)

    def _operand(self, name: str, v: Tensor, points: int,
                 answers: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """v as (B, points, k) in the solver's type, and what turns the product into the user's shape."""
        if not isinstance(v, Tensor):
            raise TypeError(f"{name}: v must be a torch.Tensor, got {type(v).__name__}")
        if not v.dtype.is_floating_point:
            raise TypeError(f"{name}: v must have a floating-point dtype, got {v.dtype}")
        matrix = v[:, None] if v.ndim == 1 else v
        if v.ndim == 0 or matrix.shape[-2] != points:
            raise ValueError(f"{name}: v must have shape (..., {points}, k) or ({points},), got {tuple(v.shape)}")
        if v.device != self._problem.device:
            raise ValueError(f"{name}: v is on {v.device} but the plan is on {self._problem.device}")
        if v.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"gradients through Solution.{name} to v are not available: detach v")
        try:
            matrix = matrix.expand(*self._problem.batch_shape, *matrix.shape[-2:])
        except RuntimeError as error:
            raise ValueError(f"{name}: batch dimensions of v {tuple(v.shape[:-2])} do not broadcast to the problem's "
                             f"{tuple(self._problem.batch_shape)}") from error
        operand = matrix.to(self._problem.dtype).reshape(self._problem.batch, points, matrix.shape[-1])

        def finish(product: Tensor) -> Tensor:
            product = product.reshape(*self._problem.batch_shape, answers, product.shape[-1])
            return product[..., 0] if v.ndim == 1 else product

        return operand, finish

    def _vector(self, name: str, vector: Tensor) -> Tensor:
        self._begin(name)
        return vector.to(self._problem.dtype, copy=True).reshape(*self._problem.batch_shape, vector.shape[-1])

    def _scalar(self, scalar: Tensor) -> Tensor:
        return scalar.to(self._problem.dtype).reshape(self._problem.batch_shape)

    def _begin(self, name: str) -> None:
        """Refuse what would lose a gradient without a word."""
        self._check_inputs()
        if self._attached:
            raise RuntimeError(f"an input requires grad and Solution.{name} is not differentiable: only value is. "
                               "Solve with grad='none' or under torch.no_grad() to use it as a constant.")

    def _check_inputs(self) -> None:
        for (name, tensor), version in zip(self._problem.named, self._versions, strict=True):
            if _version(tensor) != version:
                raise RuntimeError(f"{name} was modified in place after the solve; solve again, or pass a clone")


def _negated(lse: Tensor) -> Tensor:
    """The log-scaling that normalises; -inf where there is nothing to normalise."""
    return torch.where(lse > -torch.inf, -lse, -torch.inf)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
