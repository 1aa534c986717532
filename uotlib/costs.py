r"""Costs: a dense matrix, or a pair of feature sets whose cost matrix need never exist as a whole.

A cost knows its shape, the tensors it is differentiable in, and how to give a block of its rows.  A new cost of the
form :math:`\alpha_i + \beta_j - k\,\langle x_i, z_j\rangle` is a subclass of `InnerProductCost` with one method;
any other cost is a subclass of `Cost` with four.
"""

from __future__ import annotations

import contextlib
import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from .precision import ACCEPTED, NAMES, cheapest
from .process import SharedSetting
from .tracing import values_hidden

#: A feature cost is built once, rather than streamed, while it takes at most this many bytes.
MATERIALIZE_BYTES = 1 << 30
#: Sums of gradients, None where there is no need of one.
Tensors = Sequence[Tensor | None]
#: Precision of float32 products, where a device has a choice.
_PRECISION = {device: SharedSetting(partial(getattr, matmul, "fp32_precision"),
                                    partial(setattr, matmul, "fp32_precision"))
              for device, backend in (("cpu", torch.backends.mkldnn), ("cuda", torch.backends.cuda))
              if (matmul := getattr(backend, "matmul", None)) is not None}
#: Every kind of cost by its key.
_KINDS: dict[str, type[Cost]] = {}


class Cost(ABC):
    """A batch of cost matrices, shape (..., n, m)."""

    #: Dense costs are used in place; others are built once or streamed by blocks of rows.
    dense: ClassVar[bool] = False
    #: Whether a block is the product of the first prepared tensor, (B, n, d), and the second, (B, m, d), transposed.
    bilinear: ClassVar[bool] = False
    #: What operators, which see tensors and strings alone, know the class by.
    key: ClassVar[str] = ""
    materialize: bool | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = f"{cls.__module__}.{cls.__qualname__}"
        same = sum(1 for key in _KINDS if key.partition("#")[0] == name)
        cls.key = f"{name}#{same}" if same else name
        _KINDS[cls.key] = cls

    @property
    @abstractmethod
    def tensors(self) -> tuple[tuple[str, Tensor], ...]:
        """The user's tensors with the names that error messages call them by."""

    @property
    @abstractmethod
    def shape(self) -> tuple[torch.Size, int, int]:
        """Batch shape, n, m."""

    @abstractmethod
    def prepare(self, dtype: torch.dtype, reg: float) -> tuple[Tensor, ...]:
        """Differentiable tensors with one flat batch dimension from which `block` works.

        Args:
            dtype: The solver's type, float32 or float64.
            reg: The smallest eps, for a choice of precision.
        """

    @abstractmethod
    def block(self, prepared: tuple[Tensor, ...], rows: slice, dtype: torch.dtype) -> Tensor:
        """Rows of the cost, (B, rows, m), of type ``dtype``; a differentiable expression of ``prepared``.

        As the methods below, it may use nothing else of the instance: a parameter of the cost is one more prepared
        tensor.
        """

    def product_precision(self, prepared: tuple[Tensor, ...], reg: float, offered: tuple[str, ...]) -> str:
        """Precision of the products of ``prepared`` features by a backend that streams them (`InnerProductCost`)."""
        return "float32"

    def pull_back(self, prepared: tuple[Tensor, ...], rows: slice, dtype: torch.dtype, grad: Tensor,
                  into: Tensors) -> None:
        """Add to ``into`` the gradients with respect to ``prepared`` of <block, grad>; None where there is no need."""
        with full_precision_matmul(grad.device):
            pull = torch.func.vjp(lambda *tensors: self.block(tensors, rows, dtype), *prepared)[1]
            for total, gradient in zip(into, pull(grad), strict=True):
                if total is not None:
                    total += gradient

    def tangent(self, prepared: tuple[Tensor, ...], tangents: tuple[Tensor, ...], rows: slice,
                dtype: torch.dtype) -> Tensor:
        """Derivative of `block` along ``tangents`` of ``prepared``, (B, rows, m), differentiable in ``prepared``."""
        with full_precision_matmul(prepared[0].device):
            return torch.func.jvp(lambda *moved: self.block(moved, rows, dtype), prepared, tangents)[1]

    def pull_back_tangent(self, prepared: tuple[Tensor, ...], tangents: tuple[Tensor, ...], rows: slice,
                          dtype: torch.dtype, grad: Tensor, into: Tensors) -> None:
        """Add to ``into`` the gradients with respect to ``prepared`` of <tangent, grad>."""
        with full_precision_matmul(grad.device):
            pull = torch.func.vjp(lambda *tensors: self.tangent(tensors, tangents, rows, dtype), *prepared)[1]
            for total, gradient in zip(into, pull(grad), strict=True):
                if total is not None:
                    total += gradient


def cost_of_kind(key: str) -> Cost:
    """A cost of this kind without tensors: what gives blocks of prepared ones."""
    return object.__new__(_KINDS[key])


class DenseCost(Cost):
    """A cost given as a tensor (..., n, m)."""

    dense = True

    def __init__(self, cost: Tensor) -> None:
        self.cost = cost

    @property
    def tensors(self) -> tuple[tuple[str, Tensor], ...]:
        return (("cost", self.cost),)

    @property
    def shape(self) -> tuple[torch.Size, int, int]:
        return self.cost.shape[:-2], self.cost.shape[-2], self.cost.shape[-1]

    def prepare(self, dtype: torch.dtype, reg: float) -> tuple[Tensor, ...]:
        batch, n, m = self.shape
        cost = self.cost if self.cost.dtype == dtype else self.cost.to(dtype)
        matrix = cost.reshape(math.prod(batch), n, m)
        return (matrix if matrix.stride(-1) == 1 or m == 1 else matrix.contiguous(),)

    def block(self, prepared: tuple[Tensor, ...], rows: slice, dtype: torch.dtype) -> Tensor:
        return prepared[0][:, rows]

    def pull_back(self, prepared: tuple[Tensor, ...], rows: slice, dtype: torch.dtype, grad: Tensor,
                  into: Tensors) -> None:
        if into[0] is not None:
            into[0][:, rows] += grad

    def tangent(self, prepared: tuple[Tensor, ...], tangents: tuple[Tensor, ...], rows: slice,
                dtype: torch.dtype) -> Tensor:
        return tangents[0][:, rows]

    def pull_back_tangent(self, prepared: tuple[Tensor, ...], tangents: tuple[Tensor, ...], rows: slice,
                          dtype: torch.dtype, grad: Tensor, into: Tensors) -> None:
        """Nothing: the cost is linear in its tensor."""


class InnerProductCost(Cost):
    r""":math:`C_{ij} = \alpha_i + \beta_j - k\,\langle x'_i, z'_j\rangle` for features x', z' that a subclass makes.

    Args:
        x: Features of the rows, (..., n, d).
        z: Features of the columns, (..., m, d); batch dimensions broadcast with x's.
        materialize: True builds the matrix once, False computes blocks of rows anew in every pass, None builds it
            while it takes at most `MATERIALIZE_BYTES`.
        precision: Arithmetic of the inner products, "float32" or "float64"; None takes float32 while its error stays
            below 0.01 eps, for which (but for cosines) it looks at the features' norms and so waits for a GPU; where
            eps or norms are not looked at (eps in a tensor on a GPU, torch.compile, vmap), None means float64.
            The cost itself has the solver's type either way.  Float32 features that the triton backend streams are
            multiplied on tensor cores, and there it may be "tf32", "bf16x3", "tf32x3" or "bf16x6" too
            (`uotlib.precision`); None is the cheapest of these whose error stays below 0.01 eps.
    """

    bilinear = True
    scale: ClassVar[float] = 1.0
    #: Largest |alpha| + |beta| + k|x'||z'| where that is known without looking.
    largest: ClassVar[float | None] = None
    #: Largest k|x'||z'| where that is known without looking.
    largest_product: ClassVar[float | None] = None

    def __init__(self, x: Tensor, z: Tensor, *, materialize: bool | None = None, precision: str | None = None) -> None:
        name = type(self).__name__
        for label, features in (("x", x), ("z", z)):
            if not isinstance(features, Tensor):
                raise TypeError(f"{name}: {label} must be a torch.Tensor, got {type(features).__name__}")
            if features.ndim < 2:
                raise ValueError(f"{name}: {label} must have shape (..., points, d), got {tuple(features.shape)}")
        if x.shape[-1] != z.shape[-1]:
            raise ValueError(f"{name}: x and z must have the same feature size, got {x.shape[-1]} and {z.shape[-1]}")
        try:
            self._batch = broadcast_batches(x.shape[:-2], z.shape[:-2])
        except RuntimeError as error:
            raise ValueError(f"{name}: batch dimensions of x {tuple(x.shape[:-2])} and z {tuple(z.shape[:-2])} "
                             "do not broadcast") from error
        if materialize is not None and not isinstance(materialize, bool):
            raise TypeError(f"{name}: materialize must be None, True or False, got {materialize!r}")
        if precision is not None and precision not in NAMES:
            raise ValueError(f"{name}: precision must be None, {', '.join(map(repr, NAMES))}, got {precision!r}")
        self.x, self.z, self.materialize, self.precision = x, z, materialize, precision

    def between(self, x: Tensor, z: Tensor) -> InnerProductCost:
        """The same cost, with all that a subclass has set, between other features."""
        if type(self).__module__ == __name__:  # nothing else is set; copies are opaque to torch.compile before 2.12
            return type(self)(x, z, materialize=self.materialize, precision=self.precision)
        other = copy.copy(self)
        other.x, other.z, other._batch = x, z, broadcast_batches(x.shape[:-2], z.shape[:-2])
        return other

    @property
    def tensors(self) -> tuple[tuple[str, Tensor], ...]:
        return (("cost.x", self.x), ("cost.z", self.z))

    @property
    def shape(self) -> tuple[torch.Size, int, int]:
        return self._batch, self.x.shape[-2], self.z.shape[-2]

    @abstractmethod
    def factors(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha (B, n), beta (B, m), x' (B, n, d) and z' (B, m, d) from features in the solver's type."""

    def prepare(self, dtype: torch.dtype, reg: float) -> tuple[Tensor, ...]:
        r"""Features with :math:`\alpha` and :math:`\beta` folded in: the cost is one matrix product,
        :math:`(x'_i, \alpha_i, 1)\cdot(-k z'_j, 1, \beta_j)`."""
        batch = math.prod(self._batch)
        x, z = (features.to(dtype).expand(*self._batch, *features.shape[-2:]).reshape(batch, *features.shape[-2:])
                for features in (self.x, self.z))
        if not self._float32_will_do(x, z, reg):
            x, z = x.double(), z.double()
        alpha, beta, x, z = self.factors(x, z)
        return (torch.cat([x, alpha[..., None], torch.ones_like(alpha)[..., None]], -1),
                torch.cat([-self.scale * z, torch.ones_like(beta)[..., None], beta[..., None]], -1))

    def block(self, prepared: tuple[Tensor, ...], rows: slice, dtype: torch.dtype) -> Tensor:
        x, z = prepared
        with full_precision_matmul(x.device):
            return self.finish(torch.bmm(x[:, rows], z.mT)).to(dtype)

    def finish(self, cost: Tensor) -> Tensor:
        """Corrects, in place, what rounding may do to a fresh block; derivatives are those without it."""
        return cost

    def pull_back(self, prepared: tuple[Tensor, ...], rows: slice, dtype: torch.dtype, grad: Tensor,
                  into: Tensors) -> None:
        x, z = prepared
        grad = grad.to(x.dtype)
        with full_precision_matmul(x.device):
            if into[0] is not None:
                into[0][:, rows] += torch.bmm(grad, z)
            if into[1] is not None:
                into[1].baddbmm_(grad.mT, x[:, rows])

    def tangent(self, prepared: tuple[Tensor, ...], tangents: tuple[Tensor, ...], rows: slice,
                dtype: torch.dtype) -> Tensor:
        (x, z), (dx, dz) = prepared, tangents
        with full_precision_matmul(x.device):
            return torch.baddbmm(torch.bmm(dx[:, rows], z.mT), x[:, rows], dz.mT).to(dtype)

    def pull_back_tangent(self, prepared: tuple[Tensor, ...], tangents: tuple[Tensor, ...], rows: slice,
                          dtype: torch.dtype, grad: Tensor, into: Tensors) -> None:
        """A product of the two tensors: the same with the tangents in their place."""
        self.pull_back(tangents, rows, dtype, grad, into)

    def _float32_will_do(self, x: Tensor, z: Tensor, reg: float) -> bool:
        if self.precision is not None:
            return self.precision != "float64"
        if x.dtype == torch.float64 or not x.numel() or not z.numel():
            return True
        if self.largest is None and values_hidden(x, z):
            return False
        return 2 * (self.largest or self._largest(x.detach(), z.detach())) * 2.0**-24 <= ACCEPTED * reg

    def product_precision(self, prepared: tuple[Tensor, ...], reg: float, offered: tuple[str, ...]) -> str:
        """Precision in which a backend is to multiply the prepared features that it streams.

        Args:
            reg: The smallest eps.
            offered: What the backend has for float32 features, cheapest first; nothing where torch multiplies them.

        Raises:
            ValueError: if ``precision`` names something else.
        """
        if type(self).block is not InnerProductCost.block:
            return "float64" if prepared[0].dtype == torch.float64 else "float32"
        x, z = (part.detach()[..., :-2] for part in prepared)
        allowed = (*offered, "float64") if offered and x.dtype == torch.float32 else ("float32", "float64")
        if self.precision is not None and self.precision not in allowed:
            raise ValueError(f"{type(self).__name__}: precision={self.precision!r} is of float32 features that a "
                             f"backend streams; here it must be None, {' or '.join(map(repr, allowed))} (a GPU streams "
                             "features that do not fit, or have materialize=False)")
        if x.dtype == torch.float64:
            return "float64"
        if self.precision is not None or not offered:
            return self.precision or "float32"
        largest = self.largest if self.largest_product is None else self.largest_product
        if largest is None:
            largest = float(x.norm(dim=-1).max() * z.norm(dim=-1).max()) if x.numel() and z.numel() else 0.0
        return cheapest(offered, largest, reg)

    def _largest(self, x: Tensor, z: Tensor) -> float:
        alpha, beta, x, z = self.factors(x, z)
        largest = alpha.abs().max() + beta.abs().max() + self.scale * x.norm(dim=-1).max() * z.norm(dim=-1).max()
        return float(largest)


class CosineCost(InnerProductCost):
    r"""Cosine distance :math:`C_{ij} = 1 - \langle x_i, z_j\rangle / (|x_i||z_j|)`, in [0, 2]; 1 for a zero vector.

    Example:
        >>> import torch, uotlib
        >>> x, z = torch.eye(2), torch.eye(2)
        >>> uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), reg=0.1, reg_m=1.0).plan.argmax(-1)
        tensor([0, 1])
    """

    largest = 2.0
    largest_product = 1.0

    def factors(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return x.new_ones(x.shape[:2]), z.new_zeros(z.shape[:2]), unit_vectors(x), unit_vectors(z)

    def finish(self, cost: Tensor) -> Tensor:
        return cost.clamp_(0.0, 2.0)


class SqEuclideanCost(InnerProductCost):
    r"""Squared Euclidean distance :math:`C_{ij} = |x_i - z_j|^2`, never halved (GeomLoss halves it)."""

    scale = 2.0

    def factors(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        centre = z.detach().mean(dim=1, keepdim=True) if z.shape[1] else 0.0
        x, z = x - centre, z - centre
        return x.square().sum(-1), z.square().sum(-1), x, z

    def finish(self, cost: Tensor) -> Tensor:
        return cost.clamp_min_(0.0)


class DotCost(InnerProductCost):
    r"""Negative inner product :math:`C_{ij} = -\langle x_i, z_j\rangle`: attention's scores as a cost."""

    def factors(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return x.new_zeros(x.shape[:2]), z.new_zeros(z.shape[:2]), x, z


def broadcast_batches(one: torch.Size, other: torch.Size) -> torch.Size:
    """`torch.broadcast_shapes`, but for equal ones, for which it would import sympy."""
    return one if one == other else torch.broadcast_shapes(one, other)


def unit_vectors(features: Tensor) -> Tensor:
    """Features divided by their length; zero, with zero gradient, where there is no direction."""
    if features.requires_grad and not values_hidden(features):
        return _UnitVectors.apply(features)
    return features * _inverse_lengths(features)


def _inverse_lengths(features: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    some = length > 0
    return torch.where(some, 1 / torch.where(some, length, 1.0), 0.0)


class _UnitVectors(torch.autograd.Function):
    """`unit_vectors`, whose backward makes no tensor of the features' size but its result."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        inverse = _inverse_lengths(features)
        ctx.save_for_backward(features, inverse)
        return features * inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        features, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.autograd.grad(features * _inverse_lengths(features), features, grad, create_graph=True)[0]
        with full_precision_matmul(grad.device):
            along = torch.matmul(grad[..., None, :], features[..., None])[..., 0]
        cubed = along * inverse * inverse * inverse  # in this order within range
        return (grad * inverse).addcmul_(features, cubed, value=-1)


@contextlib.contextmanager
def full_precision_matmul(device: torch.device) -> Iterator[None]:
    """Autocast, TF32 and bfloat16 products off: an error of 1e-3 in a cost is 10 in the exponent at eps 1e-4."""
    setting = _PRECISION.get(device.type)
    with torch.autocast(device.type, enabled=False), setting.set_to("ieee") if setting else contextlib.nullcontext():
        yield
