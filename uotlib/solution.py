r"""The answer: potentials and certificate at once, everything else when it is asked for."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor

from .gradients.solved import COST
from .gradients.unrolled import unrolled_potentials, unrolled_value
from .gradients.value import primal_value
from .outcome import Outcome
from .primitives import State
from .problem import Problem
from .settings import Settings
from .tracing import differentiated, lazy, transformed


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

    def __init__(self, problem: Problem, prepared: tuple[Tensor, ...], matrix: Tensor | None, settings: Settings,
                 outcome: Outcome, grad: str, steps: int | None = None,
                 start: tuple[Tensor, Tensor] | None = None) -> None:
        self._problem, self._matrix, self._settings = problem, matrix, settings
        self._outcome, self._pair, self._grad, self._steps, self._start = outcome, outcome.pair, grad, steps, start
        self._attached = grad != "none" and torch.is_grad_enabled() and any(
            differentiated(tensor) for _, tensor in problem.named)
        self._prepared: tuple[Tensor, ...] | None = prepared
        # Beside the matrix that was built from them, features as prepared are for gradients alone: the graph of the
        # first output has them, until its backward.  (Making them anew may wait for a GPU.)
        self._passed_on = (self._attached and matrix is not None and problem.cost.bilinear and not problem.hidden
                           and problem.device.type == "cpu")
        self._versions = None if problem.hidden else [version_of(tensor) for _, tensor in problem.named]

    @property
    def violation(self) -> Tensor:
        return self._scalar(self._outcome.violation)

    @property
    def gap(self) -> Tensor:
        return self._scalar(self._outcome.gap)

    @property
    def n_iter(self) -> Tensor:
        return self._outcome.n_iter.reshape(self._problem.batch_shape).clone()

    @property
    def converged(self) -> Tensor:
        return self._outcome.converged.reshape(self._problem.batch_shape).clone()

    def __copy__(self) -> Solution:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, object]:
        """Deep copies have tensors of their own, of other versions."""
        return self.__dict__ | {"_versions": None}

    def __repr__(self) -> str:
        batch = f"batch {tuple(self._problem.batch_shape)}, " if self._problem.batch_shape else ""
        state = f"{int(self.converged.sum())}/{self.converged.numel()} converged" if batch else \
            f"converged={bool(self.converged)}"
        worst = f", violation {float(self.violation.max()):.2e}" if self.violation.numel() else ""
        return f"Solution({batch}{self._sizes[0]} x {self._sizes[1]}, {state}{worst})"

    @property
    def value(self) -> Tensor:
        r"""The whole primal objective of the plan, (...): cost, both penalties and the entropic term.

        Differentiable in the cost, a, b, reg and reg_m by the envelope theorem, dV/dC = T, and twice through the
        adjoint (``grad="unrolled"``: as the iterations are).
        Source: Feydy et al. 2019, *Interpolating between optimal transport and MMD*, section 2.
        """
        self._check()
        with _attaching() if self._attached else contextlib.nullcontext():
            return self._value.clone()

    @lazy
    def _value(self) -> Tensor:
        if not self._attached:
            return self._scalar(primal_value(self._problem, self._pair))
        with _attaching():
            if self._grad == "unrolled":
                return self._scalar(unrolled_value(self._state, self._inputs, self._pair))
            inputs = self._inputs_with(self._pair.f, self._pair.g)
            return self._scalar(self._state.value(inputs, self._grad == "implicit"))

    @property
    def transport_cost(self) -> Tensor:
        """<C, T>, (...)."""
        with self._differentiably("transport_cost"):
            return self._transport_cost.clone()

    @lazy
    def _transport_cost(self) -> Tensor:
        return self._scalar(self._state.transport_cost(self._inputs))

    @property
    def f(self) -> Tensor:
        """Row potential, (..., n); +inf for a row that reaches no column.

        Where both marginals are exact, it is determined up to a constant, and its gradient is that of the potentials
        whose change has <T'1, dg> = 0.
        """
        with self._differentiably("f"):
            return self._vector(self._potentials[0])

    @property
    def g(self) -> Tensor:
        """Column potential, (..., m); +inf for a column that no row reaches.  See `f`."""
        with self._differentiably("g"):
            return self._vector(self._potentials[1])

    @property
    def row_mass(self) -> Tensor:
        """Row sums of the plan, (..., n)."""
        with self._differentiably("row_mass"):
            return self._vector(self._state.marginal(self._inputs, 0))

    @property
    def col_mass(self) -> Tensor:
        """Column sums of the plan, (..., m)."""
        with self._differentiably("col_mass"):
            return self._vector(self._state.marginal(self._inputs, 1))

    @property
    def plan(self) -> Tensor:
        """The dense plan, (..., n, m), built on demand."""
        with self._differentiably("plan"):
            return self._state.plan(self._inputs).reshape(*self._problem.batch_shape, *self._sizes)

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
        self._check()
        if dim not in (-1, -2):
            raise ValueError(f"dim must be -1 (matches of rows) or -2 (matches of columns), got {dim}")
        side = 0 if dim == -1 else 1
        others = self._sizes[1 - side]
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"k must be an int, got {type(k).__name__}")
        if not 1 <= k <= others:
            raise ValueError(f"k must be between 1 and {others}, got {k}")
        mass, index = self._state.best(self._constants, k, side)
        shape = (*self._problem.batch_shape, self._sizes[side], k)
        return mass.reshape(shape), index.reshape(shape)

    @lazy
    def _state(self) -> State:
        pair = self._pair
        return State([pair.log_u, pair.log_v, pair.row_lse, pair.col_lse], self._matrix, self._problem.cost_items,
                     self._settings.encode())

    @property
    def _sizes(self) -> tuple[int, int]:
        """n and m."""
        return self._problem.rows.mass.shape[1], self._problem.cols.mass.shape[1]

    @property
    def _constants(self) -> list[Tensor]:
        """What outputs are functions of, detached: a, b, reg, tau_a, tau_b, f, g and the cost's tensors."""
        prepared = self._prepared
        found = [tensor.detach() for tensor in self._inputs_with(self._pair.f, self._pair.g)]
        self._prepared = prepared
        return found

    @property
    def _inputs(self) -> list[Tensor]:
        """The same, attached."""
        if not self._attached:
            return self._constants
        if "_potentials" in self.__dict__:
            return self._inputs_with(*self._potentials)
        inputs = self._inputs_with(self._pair.f, self._pair.g)
        self._potentials = self._potentials_of(inputs)
        return [*inputs[:COST - 2], *self._potentials, *inputs[COST:]]

    def _inputs_with(self, f: Tensor, g: Tensor) -> list[Tensor]:
        prepared = self._prepared
        if prepared is None:
            prepared = self._problem.cost.prepare(self._problem.dtype, self._problem.smallest_reg)
        if self._passed_on:
            self._prepared = None
        return [*self._problem.inputs, f, g, *prepared]

    @lazy
    def _potentials(self) -> tuple[Tensor, Tensor]:
        """f and g, one node of the graph."""
        pair = self._pair
        return self._potentials_of(self._inputs_with(pair.f, pair.g)) if self._attached else (pair.f, pair.g)

    def _potentials_of(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        pair = self._pair
        if self._grad == "unrolled":
            start = torch.zeros_like(pair.g) if self._start is None else self._start[1]
            n_iter = self.n_iter.reshape(-1)
            if self._steps is None and self._problem.hidden:
                raise ValueError("grad='unrolled' needs tol=0 under torch.compile and torch.func, where the number of "
                                 "iterations cannot be looked at")
            most = self._steps if self._steps is not None else int(n_iter.max()) if n_iter.numel() else 0
            return unrolled_potentials(self._state, inputs, start, n_iter, most)
        return self._state.potentials(inputs)

    def _detached(self) -> Solution:
        """The same solution, every output a constant."""
        constant = copy.copy(self)
        for name in ("_value", "_transport_cost", "_potentials"):
            constant.__dict__.pop(name, None)
        constant._attached = False
        return constant

    def _product(self, name: str, v: Tensor, side: int, normalised: bool) -> Tensor:
        """M v or M' v in the user's shape."""
        operand = self._operand(name, v, self._sizes[1 - side])
        with self._differentiably(name):
            problem = self._problem
            matrix = (operand[:, None] if v.ndim == 1 else operand).to(problem.dtype)
            matrix = matrix.expand(*problem.batch_shape, *matrix.shape[-2:]).reshape(problem.batch, *matrix.shape[-2:])
            product = self._product_of(matrix, side, normalised)
            product = product.reshape(*problem.batch_shape, *product.shape[1:])
            return product[..., 0] if v.ndim == 1 else product

    def _product_of(self, matrix: Tensor, side: int, normalised: bool) -> Tensor:
        # Potentials are for every later use: they share no node with what has a gradient or a transform of its own.
        alone = matrix.requires_grad or transformed(matrix)
        if not self._attached or self._grad != "implicit" or alone or "_potentials" in self.__dict__:
            return self._state.product(self._inputs, matrix, side, normalised)
        inputs = self._inputs_with(self._pair.f, self._pair.g)
        f, g, product = self._state.potentials_and_product(inputs, matrix, side, normalised)
        self._potentials = f, g
        return product

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
        given, batch = v.shape[:-2], self._problem.batch_shape
        fits = len(given) <= len(batch) and all(
            size in (1, whole) for size, whole in zip(reversed(given), reversed(batch), strict=False))
        if not fits:
            raise ValueError(f"{name}: batch dimensions of v {tuple(v.shape[:-2])} do not broadcast to the problem's "
                             f"{tuple(self._problem.batch_shape)}")
        return v if torch.is_grad_enabled() else v.detach()

    def _vector(self, vector: Tensor) -> Tensor:
        return vector.to(self._problem.dtype, copy=True).reshape(*self._problem.batch_shape, vector.shape[-1])

    def _scalar(self, scalar: Tensor) -> Tensor:
        return scalar.to(self._problem.dtype, copy=True).reshape(self._problem.batch_shape)

    def _check(self) -> None:
        """Everything but potentials and marginals is computed from the inputs again, so that those must not change."""
        if self._versions is None:
            return
        for (name, tensor), version in zip(self._problem.named, self._versions, strict=True):
            if version_of(tensor) != version:
                raise RuntimeError(f"{name} was modified in place after the solve; solve again, or pass a clone")

    def _differentiably(self, name: str) -> contextlib.AbstractContextManager:
        """The grad mode of the solve, for one output; refuses what would lose a gradient without a word."""
        self._check()
        if not self._attached:
            return contextlib.nullcontext()
        if self._grad == "envelope" or name == "topk":
            reason = "with grad='envelope' only value is" if self._grad == "envelope" else \
                "its masses come from a search; gather from plan, or use argmax"
            raise RuntimeError(f"an input requires grad and Solution.{name} is not differentiable: {reason}. "
                               "Solve with grad='none' or under torch.no_grad() to use it as a constant.")
        return _attaching()


def _attaching() -> contextlib.AbstractContextManager:
    """Gradients on, and out of inference mode: what is made once and kept is for every later use."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return torch.enable_grad()
    stack = contextlib.ExitStack()
    stack.enter_context(torch.inference_mode(False))
    stack.enter_context(torch.enable_grad())
    return stack


def version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
