r"""The adjoint of the optimality equations: one symmetric positive definite system for any loss of (f, g).

With l and u the multipliers of the equations :math:`T\mathbf 1 = a e^{-f/\tau_a}` and :math:`T^\top\mathbf 1 =
b e^{-g/\tau_b}` linearised at the pair that was found, and with r and c the marginals of that pair's plan T (which
makes the system symmetric and definite wherever the solver stopped),

.. math::
    \begin{pmatrix} \mathrm{diag}(r)\,(1/\tau_a + 1/\varepsilon) & T/\varepsilon \\
                    T^\top/\varepsilon & \mathrm{diag}(c)\,(1/\tau_b + 1/\varepsilon) \end{pmatrix}
    \begin{pmatrix} l \\ u \end{pmatrix} =
    \begin{pmatrix} \partial L/\partial f \\ \partial L/\partial g \end{pmatrix}

is solved for :math:`\hat l = \sqrt r\,l` and :math:`\hat u = \sqrt c\,u`, whose matrix
:math:`N_{ij} = T_{ij}/\sqrt{r_i c_j}` has no entry above 1, however small the masses.  Rows are eliminated, and
conjugate gradients run on the columns, preconditioned by a diagonal.  N turns :math:`\sqrt c` into :math:`\sqrt r`
and back, so that what the Schur complement makes of :math:`\sqrt c` is known: the start takes that part of the error
away, which is the slowest to go (its eigenvalue is about :math:`\varepsilon/\tau_a + \varepsilon/\tau_b`), and the
steps are kept conjugate to it (deflation), without a pass.

Source: implicit differentiation of transport as in Cuturi et al. 2020, *Supervised quantile normalization for low-rank
matrix approximation*, and Blondel et al. 2022, *Efficient and modular implicit differentiation*, section 2; elimination
of the rows as in Newton's method on the dual; deflation as in Saad et al. 2000, *A deflated version of the conjugate
gradient algorithm*.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends.base import near_one
from ..exceptions import ConvergenceWarning
from ..precision import ROUNDOFF
from ..process import on_threads
from .solved import LowRank, Solved, low_rank_sums, matmul

#: Least diagonal of the preconditioner, relative to that of the system before the rows are eliminated.
LEAST_DIAGONAL = 1e-6
#: Part of the diagonal, in the mean over the columns, up to which that before the elimination preconditions better.
MOVED_LITTLE = 0.1
#: Roundings of its terms that a component is to exceed for the start to follow it.
START_ROUNDINGS = 256.0
#: Iterations between looks at the residual where each one waits for the device.
CHECK_EVERY = 10


@dataclass
class Scaled:
    r"""The system in :math:`\hat l, \hat u`, times eps: rows ``row_diagonal`` and N, columns N' and ``col_diagonal``.

    Args:
        log_x, log_y: Of N, (B, n) and (B, m); -inf for a point that takes no part.
        root_r, root_c: Square roots of the marginals, 0 for a point that takes no part.
        row_diagonal, col_diagonal: (1 + eps/tau) times the sums of N's plan over the marginals, which rounding moves
            from 1: taken from the very entries that the products use, they keep the system definite.
        preconditioner: Diagonal of the Schur complement, (B, m), or, where eliminating rows moved it little, that from
            before: of this ``root_c`` is an eigenvector.
        empty: Blocks of N that the backend found to be negligible, `Backend.adjoint_blocks`.
    """

    solved: Solved
    log_x: Tensor
    log_y: Tensor
    root_r: Tensor
    root_c: Tensor
    row_diagonal: Tensor
    col_diagonal: Tensor
    preconditioner: Tensor
    empty: Tensor | None = None

    @classmethod
    def of(cls, solved: Solved) -> Scaled:
        """With diagonals still to be found: `eliminate_rows` does."""
        log_x, root_r = _half_scaling(solved.pair.log_u, solved.pair.row_lse)
        log_y, root_c = _half_scaling(solved.pair.log_v, solved.pair.col_lse)
        return cls(solved, log_x, log_y, root_r, root_c, torch.ones_like(root_r), torch.ones_like(root_c),
                   torch.ones_like(root_c))

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        r""":math:`1 + \varepsilon/\tau` of both sides, (B,)."""
        problem = self.solved.problem
        return 1 + problem.reg * problem.rows.penalty.inverse, 1 + problem.reg * problem.cols.penalty.inverse

    @property
    def along(self) -> Tensor:
        """The Schur complement turns ``root_c`` into this times ``col_diagonal * root_c``, (B,); 0 for both exact."""
        row_ratio, col_ratio = self.ratios
        return torch.where(self.solved.problem.both_exact, 0.0, 1 - 1 / (row_ratio * col_ratio))

    @property
    def image(self) -> Tensor:
        """N ``root_c``, (B, n), by what the diagonal was made of."""
        return self.row_diagonal * self.root_r / self.ratios[0][:, None]

    def start(self, row_side: Tensor, col_side: Tensor) -> Tensor:
        """Multiple of ``root_c``, (B,), that takes the slowest part of the error away, from the sides of the system.

        What is divided by ``along``, which may be tiny, must be more than rounding: 0 where it is not.
        """
        terms_r, terms_c = self.root_r * row_side / self.ratios[0][:, None], self.root_c * col_side
        component = terms_c.sum(1) - terms_r.sum(1)
        known = component.abs() > START_ROUNDINGS * ROUNDOFF[self.solved.kernel.dtype] * (
            terms_c.abs().sum(1) + terms_r.abs().sum(1))
        norm = (self.root_c.square() * self.col_diagonal).sum(1).clamp_min(torch.finfo(component.dtype).tiny)
        along = self.along
        return torch.where(known & (along > 0), component / norm / torch.where(along > 0, along, 1.0), 0.0)

    def eliminate_rows(self, row_side: Tensor, col_side: Tensor) -> Tensor:
        """Find the diagonals, and the right-hand side of the Schur complement, (B, m), in one pass over the cost."""
        problem, kernel = self.solved.problem, self.solved.kernel
        row_ratio, col_ratio = self.ratios
        # Both roots in one unit, which the type of the cost holds; the diagonals are quotients.
        largest = torch.maximum(self.root_r.amax(1), self.root_c.amax(1))[:, None]
        largest = torch.where(largest > 0, largest, 1.0)
        root_r, root_c = self.root_r / largest, self.root_c / largest
        if kernel.matrix is not None:
            self.empty = kernel.backend.adjoint_blocks(kernel.matrix, kernel.cost_items)
        if kernel.features is not None:
            self.row_diagonal, sums = kernel.features.eliminate(
                self.log_x, self.log_y, root_r, root_c, row_side, row_ratio, problem.reg, kernel.cost_items)
        else:
            sums = root_c.new_zeros(len(root_c), 3, root_c.shape[1])
            for span, block, entries in self.blocks():
                self.row_diagonal[:, span] = kernel.backend.eliminate(
                    block, self.log_x[:, span], self.log_y, root_r[:, span], root_c, row_side[:, span], row_ratio,
                    problem.reg, sums, entries, self.empty)
        self.col_diagonal = near_one(sums[:, 0], root_c) * col_ratio[:, None]
        least = (self.col_diagonal - 1 / row_ratio[:, None]).clamp_min(LEAST_DIAGONAL)
        diagonal = torch.maximum(self.col_diagonal - sums[:, 2], least)
        some = root_c > 0
        moved = torch.where(some, 1 - diagonal / self.col_diagonal, 0.0).sum(1) / some.sum(1).clamp_min(1)
        self.preconditioner = torch.where((moved < MOVED_LITTLE)[:, None], self.col_diagonal, diagonal)
        return col_side - sums[:, 1]

    def blocks(self, items: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """(rows, cost block, items of that block): as many rows at a time as the backend's passes have memory for."""
        kernel = self.solved.kernel
        held = kernel.backend.adjoint_temporaries
        return kernel.blocks(items, held * kernel.dtype.itemsize, kernel.panel_limit if held else None)


@dataclass
class Multipliers:
    r""":math:`\hat l`, (B, n), :math:`\hat u`, (B, m), and :math:`N\hat u`, (B, n)."""

    l: Tensor
    u: Tensor
    nu: Tensor


def solve_adjoint(system: Scaled, grad_f: Tensor, grad_g: Tensor) -> Multipliers:
    r"""Multipliers of a loss with gradients (B, n) and (B, m) to the potentials.

    Where both marginals are exact, (f + t, g - t) is as good as (f, g), and the gradient is that of the potentials
    whose change has :math:`\langle c, \delta g\rangle = 0`; a loss of the plan does not depend on this choice.

    Warns:
        ConvergenceWarning: if an item's residual is above ``adjoint_tol`` after ``adjoint_max_iter`` steps.
    """
    reg, options = system.solved.problem.reg[:, None], system.solved.settings
    row_side, col_side = (torch.where(root > 0, reg * grad / torch.where(root > 0, root, 1.0), 0.0)
                          for root, grad in ((system.root_r, grad_f), (system.root_c, grad_g)))
    # The products are in the type of the cost, which may not hold numbers as small or large as these.
    scale = torch.maximum(row_side.abs().amax(1), col_side.abs().amax(1))[:, None]
    scale = torch.where(scale > 0, scale, 1.0)
    row_side, col_side = row_side / scale, col_side / scale
    rhs = system.eliminate_rows(row_side, col_side)
    start = system.start(row_side, col_side)
    u, residual, nu = _conjugate_gradients(system, rhs, start, options.adjoint_tol, options.adjoint_max_iter)
    _warn(residual, options.adjoint_tol, options.adjoint_max_iter)
    return Multipliers((row_side - nu) / system.row_diagonal * scale, u * scale, nu * scale)


def system_product(system: Scaled, vector: Tensor, side: int) -> Tensor:
    """N times a vector (B, m) for ``side`` 0, N' times one (B, n) for 1."""
    solved, features = system.solved, system.solved.kernel.features
    if features is not None:
        reg, items = solved.problem.reg, solved.kernel.cost_items
        if side:
            return features.transposed().times(system.log_y, system.log_x, reg, vector, items)
        return features.times(system.log_x, system.log_y, reg, vector, items)
    total = torch.zeros_like(solved.pair.g if side else solved.pair.f)
    ones = torch.ones_like(total)[:, :, None]
    factors = (vector[:, :, None], ones) if side else (ones, vector[:, :, None])
    low_rank_sums(solved, system.log_x, system.log_y, LowRank.of(*factors, solved.kernel.dtype),
                  None if side else total, total if side else None)
    return total


def _conjugate_gradients(system: Scaled, rhs: Tensor, start: Tensor, tol: float,
                         max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Solution u (B, m), residual relative to rhs in the preconditioner's norm, (B,), and N u; finished items stop."""
    kernel = system.solved.kernel
    if kernel.matrix is not None:
        found = kernel.backend.conjugate_gradients(system, kernel.matrix, rhs, start, tol, max_iter)
        if found is not None:
            return found
    threads = torch.get_num_threads()
    with on_threads(1 if rhs.device.type == "cpu" else threads):
        u, residual = _iterate(system, rhs, start, tol, max_iter, threads)
    return u, residual, system_product(system, u, side=0)


def _iterate(system: Scaled, rhs: Tensor, start: Tensor, tol: float, max_iter: int,
             threads: int) -> tuple[Tensor, Tensor]:
    """The first two of these, product by product, those on so many ``threads``."""
    asynchronous = system.solved.kernel.backend.asynchronous
    items: Tensor | None = None
    inverse = 1 / system.preconditioner
    null, weight = system.root_c, system.col_diagonal * system.root_c
    norm = (null * weight).sum(1).clamp_min(torch.finfo(null.dtype).tiny)
    along = system.along

    def without(vector: Tensor, along: Tensor, other: Tensor) -> Tensor:
        return vector - (rate * (along * vector).sum(1))[:, None] * other

    answer, left = torch.zeros_like(rhs), torch.zeros_like(system.solved.problem.reg)
    rate = torch.where(along > 0, 0.0, 1 / norm)  # both marginals exact: nothing can change the sum of the equations
    residual = without(rhs, null, weight)
    first = (inverse * residual.square()).sum(1)
    rate = torch.where((along > 0) & (start == 0), 0.0, 1 / norm)
    x, residual = start[:, None] * null, without(residual - (start * along)[:, None] * weight, null, weight)
    z = without(inverse * residual, weight, null)
    p, size = z, (residual * z).sum(1)
    running = size > tol**2 * first
    for step in range(max_iter):
        if (not asynchronous or step % CHECK_EVERY == 0) and not bool(running.all()):
            done = ~running
            target = done.nonzero()[:, 0] if items is None else items[done]
            answer[target], left[target] = x[done], _relative(size, first)[done]
            kept = running.nonzero()[:, 0]
            items = kept if items is None else items[kept]
            x, residual, p, size, first, inverse, null, weight, rate, running = (
                part[kept] for part in (x, residual, p, size, first, inverse, null, weight, rate, running))
        if not len(x):
            break
        with on_threads(threads):
            product = _schur_product(system, p, items)
        curvature = (p * product).sum(1)
        length = torch.where(running & (curvature > 0), size / curvature, 0.0)
        x = x + length[:, None] * p
        residual = without(residual - length[:, None] * product, null, weight)
        z = without(inverse * residual, weight, null)
        before, size = size, (residual * z).sum(1)
        p = z + (size / torch.where(before > 0, before, 1.0))[:, None] * p
        running = running & (curvature > 0) & (size > tol**2 * first)
    target = torch.arange(len(answer), device=answer.device) if items is None else items
    answer[target], left[target] = x, _relative(size, first)
    return answer, left


def _schur_product(system: Scaled, vector: Tensor, items: Tensor | None) -> Tensor:
    """(column diagonal - N' N / row diagonal) times a vector (A, m), reading the cost once."""
    parts = system.log_x, system.log_y, system.row_diagonal, system.col_diagonal, system.solved.problem.reg
    log_x, log_y, rows, cols, reg = parts if items is None else tuple(part[items] for part in parts)
    backend, features = system.solved.kernel.backend, system.solved.kernel.features
    if features is not None:
        entries = system.solved.kernel.items_of(items)
        return cols * vector - features.schur(log_x, log_y, rows, vector, reg, entries)
    largest = vector.abs().amax(1, keepdim=True)
    operand = vector / torch.where(largest > 0, largest, 1.0)  # so that the type of the cost can hold it
    total = torch.zeros_like(operand)
    for span, block, entries in system.blocks(items):
        backend.schur(block, log_x[:, span], log_y, rows[:, span], operand, reg, total, entries)
    return cols * vector - total * largest


def _half_scaling(log_scaling: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Log-scaling of N and square root of the marginal; -inf and 0 for a point that carries nothing."""
    some = (log_scaling > -torch.inf) & (lse > -torch.inf)
    log_x = torch.where(some, 0.5 * (log_scaling - lse), -torch.inf)
    root = torch.where(some, torch.exp(0.5 * (log_scaling + lse)), 0.0)
    return torch.where(root > 0, log_x, -torch.inf), root


def times(block: Tensor, vector: Tensor) -> Tensor:
    """Batched matrix-vector product, the vector float64 before and after; it may have numbers of any size."""
    largest = vector.abs().amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1.0)
    return matmul(block, (vector / largest).to(block.dtype)[:, :, None])[:, :, 0].double() * largest


def _relative(size: Tensor, first: Tensor) -> Tensor:
    return torch.where(first > 0, size / first, size).sqrt()


def _warn(residual: Tensor, tol: float, max_iter: int) -> None:
    late = ~(residual <= tol)
    if bool(late.any()):
        warnings.warn(f"the adjoint solve of {int(late.sum())} of {len(residual)} problems did not reach "
                      f"adjoint_tol={tol:g} within adjoint_max_iter={max_iter} steps: residual "
                      f"{float(residual[late].max()):.2e}; gradients are that inexact",
                      ConvergenceWarning, stacklevel=2)
