r"""The only place where input is checked, broadcast and put into the form that the solver works on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .backends import BACKENDS, native, native_solve
from .checks import check_positive
from .costs import Cost, DenseCost
from .divergences import KLPenalty
from .tracing import lazy, refuse_forward_mode, values_hidden

#: Entries from which a dense cost is checked by all threads of the native backend.
NATIVE_ENTRIES = 1 << 17
#: Totals that must agree (both marginals exact) may differ by this much, relative to the larger.
TOTALS_RTOL = {torch.float32: 1e-5, torch.float64: 1e-9}


@dataclass(eq=False)  # not frozen, as those below: that takes as long as an operation of torch
class Side:
    r"""One side of the plan: masses, penalty, and the reference log-weight :math:`\alpha` of its convention.

    The plan is :math:`e^{\alpha_i + \beta_j + (f_i+g_j-C_{ij})/\varepsilon}` with :math:`\alpha = \log a` ("kl") or 0
    ("entropy"), and the half-step :math:`f = \lambda(\log a - \alpha - \mathrm{LSE})` for both, with
    :math:`\lambda = \tau\varepsilon/(\tau+\varepsilon)`.

    Args:
        mass: (B, n), float64.
        by_mass: Whether alpha is log a ("kl").
        penalty: The marginal penalty, tau of shape (B,).
    """

    mass: Tensor
    by_mass: bool
    penalty: KLPenalty

    @lazy
    def log_mass(self) -> Tensor:
        return self.mass.log()

    @lazy
    def reference(self) -> Tensor:
        """alpha, (B, n)."""
        return self.log_mass if self.by_mass else torch.zeros_like(self.mass)

    @lazy
    def residual(self) -> Tensor:
        """log a - alpha, (B, n): 0 or log a."""
        return torch.zeros_like(self.mass) if self.by_mass else self.log_mass

    @lazy
    def massive(self) -> Tensor:
        """Points that take part, (B, n)."""
        return self.mass > 0

    def log_scaling(self, potential: Tensor, reg: Tensor) -> Tensor:
        r""":math:`\log u = \alpha + f/\varepsilon`, -inf for a point without mass or that nothing can reach."""
        out = ~self.massive | torch.isinf(potential)
        return (potential / reg[:, None] + self.reference).masked_fill_(out, -torch.inf)

    def half_step(self, reg: Tensor) -> tuple[Tensor, Tensor]:
        r"""(offset, damping) of :math:`\log u = \mathtt{offset} - \mathtt{damping}\cdot\mathrm{LSE}`."""
        damping = self.penalty.damping(reg)
        return self.reference + damping[:, None] * self.residual, damping

    def potential(self, lse: Tensor, reg: Tensor) -> Tensor:
        r""":math:`f = \lambda(\log a - \alpha - \mathrm{LSE})`; +inf for a point that nothing can reach."""
        step = (reg * self.penalty.damping(reg))[:, None] * (self.residual - lse)
        return step.masked_fill_(torch.isneginf(self.residual), -torch.inf)

    def select(self, items: Tensor) -> Side:
        return Side(self.mass[items], self.by_mass, KLPenalty(self.penalty.tau[items]))


@dataclass(eq=False)
class Problem:
    """A batch of problems with one flat batch dimension B; vectors are float64 and carry no gradient.

    Args:
        cost: The user's cost.
        cost_items: Which entry of the cost's own batch each problem uses, (B,); None if they are the same.
        rows, cols: The two sides.
        reg: eps, (B,).
        smallest_reg: A number not above any eps, for choices of precision made on the host.
        reg_type: "kl" or "entropy".
        batch_shape: The batch as the user sees it.
        dtype, device: Of the cost as solved and of every answer.
        inputs: The user's masses and parameters, shaped (B, n), (B, m), (B,), (B,), (B,), still attached to autograd.
        named: Every input tensor with its name, to notice a change after the solve.
        hidden: Whether their values cannot be looked at (`tracing.values_hidden`).
    """

    cost: Cost
    cost_items: Tensor | None
    rows: Side
    cols: Side
    reg: Tensor
    smallest_reg: float
    reg_type: str
    batch_shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    named: tuple[tuple[str, Tensor], ...]
    hidden: bool = False

    @property
    def batch(self) -> int:
        return math.prod(self.batch_shape)

    @property
    def both_exact(self) -> Tensor:
        return self.rows.penalty.exact & self.cols.penalty.exact


def build_problem(cost: object, a: object, b: object, reg: object, reg_m: object, reg_type: object) -> Problem:
    """Check the arguments of `uotlib.unbalanced_sinkhorn` and make a `Problem`; see there for what is raised."""
    if reg_type not in ("kl", "entropy"):
        raise ValueError(f"reg_type must be 'kl' or 'entropy', got {reg_type!r}")
    cost = _as_cost(cost)
    cost_batch, n, m = cost.shape
    if n == 0 or m == 0:
        raise ValueError(f"cost must have at least one row and one column, got {n} x {m}")
    leading, first = cost.tensors[0]
    if first.is_meta:
        raise ValueError(f"{leading} is on the meta device, which holds no values")
    device = first.device

    pair = tuple(reg_m) if isinstance(reg_m, tuple | list) else (reg_m, reg_m)
    if len(pair) != 2:
        raise ValueError(f"reg_m must be a number, a tensor over the batch, or a pair of these, got {len(pair)} values")
    tau_a, tau_b = pair
    shared = tau_b is tau_a
    scalars = {"reg": reg, "reg_m": tau_a} if shared else {"reg": reg, "reg_m[0]": tau_a, "reg_m[1]": tau_b}
    masses = {"a": a, "b": b}
    for name, value, points in (("a", a, n), ("b", b, m)):
        if value is not None:
            _check_mass(name, value, points, device)
    for name, value in scalars.items():
        if not isinstance(value, Tensor):
            check_positive(name, value, allow_inf=name != "reg",
                           other=" or a tensor over the batch" + " or a pair of these" * name.startswith("reg_m"))
    given = [(name, value) for name, value in masses.items() if isinstance(value, Tensor)]
    valued = (*cost.tensors, *given)
    given += [(name, value) for name, value in scalars.items() if isinstance(value, Tensor)]
    named = (*cost.tensors, *given)
    for name, tensor in named:
        _check_float(name, tensor)
        if tensor.ndim and tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but {leading} is on {device}")
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for _, tensor in valued) else torch.float32

    batch_shape = _broadcast_batch(cost_batch, given)
    batch = math.prod(batch_shape)

    def over_batch(value: object) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(device=device, dtype=torch.float64).expand(batch_shape).reshape(batch)
        return torch.full((batch,), value, dtype=torch.float64, device=device)  # type: ignore[call-overload]

    def mass_over_batch(value: object, points: int) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full((batch, points), 1.0 / points, dtype=torch.float64, device=device)
        if not batch_shape:
            return value.double()[None]
        return value.double().expand(*batch_shape, points).reshape(batch, points)

    tau_over_batch = over_batch(tau_a)
    hidden = values_hidden(*(tensor for _, tensor in named))
    refuse_forward_mode(named)
    inputs = (mass_over_batch(a, n), mass_over_batch(b, m), over_batch(reg), tau_over_batch,
              tau_over_batch if shared else over_batch(tau_b))
    a64, b64, reg64, tau_a64, tau_b64 = [tensor.detach() if tensor.requires_grad or hidden else tensor
                                           for tensor in inputs]
    problem = Problem(
        cost=cost, cost_items=_cost_items(cost_batch, batch_shape, device),
        rows=Side(a64, reg_type == "kl", KLPenalty(tau_a64)), cols=Side(b64, reg_type == "kl", KLPenalty(tau_b64)),
        reg=reg64, smallest_reg=_smallest(reg), reg_type=reg_type, batch_shape=batch_shape, dtype=dtype,
        device=device, inputs=inputs, named=named, hidden=hidden)
    if first.is_cpu and not hidden:
        _check_values(problem, given)
        if all(isinstance(tau, Tensor) or math.isinf(tau) for tau in pair):
            _check_totals(problem)
    return problem


def _as_cost(cost: object) -> Cost:
    if isinstance(cost, Tensor):
        if cost.ndim < 2:
            raise ValueError(f"cost must have shape (..., n, m), got {tuple(cost.shape)}")
        return DenseCost(cost)
    if not isinstance(cost, Cost):
        raise TypeError(f"cost must be a torch.Tensor or a cost object such as CosineCost, got {type(cost).__name__}")
    return cost


def _check_float(name: str, tensor: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def _check_mass(name: str, mass: object, points: int, device: torch.device) -> None:
    if not isinstance(mass, Tensor):
        raise TypeError(f"{name} must be None or a torch.Tensor, got {type(mass).__name__}")
    if mass.ndim == 0 or mass.shape[-1] != points:
        raise ValueError(f"{name} must have shape (..., {points}) to fit the cost, got {tuple(mass.shape)}")
    if mass.device != device:
        raise ValueError(f"{name} is on {mass.device} but the cost is on {device}")


def _broadcast_batch(cost_batch: torch.Size, given: list[tuple[str, Tensor]]) -> torch.Size:
    """The batch shape of all; masses have their points behind it."""
    shapes = {"cost": cost_batch}
    for name, value in given:
        shapes[name] = value.shape[:-1] if name in ("a", "b") else value.shape
    batched = {shape for shape in shapes.values() if shape}
    if len(batched) <= 1:
        return batched.pop() if batched else torch.Size()
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"batch dimensions do not broadcast: {listed}") from error


def _cost_items(cost_batch: torch.Size, batch_shape: torch.Size, device: torch.device) -> Tensor | None:
    if cost_batch == batch_shape:
        return None
    items = torch.arange(math.prod(cost_batch), device=device).reshape(cost_batch)
    return items.expand(batch_shape).reshape(-1).contiguous()


def _smallest(reg: object) -> float:
    if not isinstance(reg, Tensor):
        return float(reg)  # type: ignore[arg-type]
    return float(reg.detach().min()) if reg.numel() and reg.device.type == "cpu" and not values_hidden(reg) else 1e-6


def _check_values(problem: Problem, given: list[tuple[str, Tensor]]) -> None:
    """What only the values tell.  One reduction a tensor: these checks are a good part of a small problem's time."""
    for name, tensor in problem.cost.tensors:
        _check_cost_values(name, tensor, dense=problem.cost.dense)
    flat = dict(zip(("a", "b", "reg", "reg_m", "reg_m[1]"), problem.inputs, strict=True))
    for name, _ in given:
        values = flat[name.removesuffix("[0]")].detach()
        if not values.numel():
            continue
        low, high = _extremes(values)
        if name in ("a", "b"):
            if not (low >= 0 and high < math.inf):
                bad = ~(values >= 0) | torch.isinf(values)
                raise ValueError(f"{name} must be finite and non-negative, got {values[bad][0].item():g} "
                                 f"({int(bad.sum())} such entries)")
        elif not (low > 0 and (high < math.inf or name != "reg")):
            bad = ~(values > 0) | (torch.isinf(values) & (name == "reg"))
            raise ValueError(f"{name.partition('[')[0]} must be positive{' and finite' if name == 'reg' else ''}, "
                             f"got {values[bad][0].item():g}")


def _check_cost_values(name: str, tensor: Tensor, dense: bool) -> None:
    if not tensor.numel():
        return
    low, high = _extremes(tensor, only_least=dense)
    if math.isnan(low):
        raise ValueError(f"{name} must not contain NaN, got {int(torch.isnan(tensor).sum())} of them")
    if low == -math.inf:
        raise ValueError(f"{name} must not contain -inf, got {int(torch.isneginf(tensor).sum())} of them")
    if not dense and high == math.inf:
        raise ValueError(f"{name} must be finite, got {int(torch.isinf(tensor).sum())} infinite entries")


def _extremes(tensor: Tensor, only_least: bool = False) -> tuple[float, float]:
    """Least and largest entry, NaN if any is.

    By the native backend where it can: torch takes longer to start than to read a small tensor, and after a large one
    its threads would go on spinning beside the backend's for milliseconds.
    """
    if only_least and tensor.numel() >= NATIVE_ENTRIES and tensor.is_contiguous() \
            and BACKENDS["native"].why_not(tensor.device, tensor.dtype) is None:
        least = float(native.least(tensor.detach().reshape(-1, *tensor.shape[-2:])))
        return least, least
    found = native_solve.extremes(tensor)
    if found is None:
        low, high = tensor.detach().aminmax()
        found = float(low), float(high)
    return found


def _check_totals(problem: Problem) -> None:
    total_a, total_b = problem.rows.mass.sum(-1), problem.cols.mass.sum(-1)
    apart = (total_a - total_b).abs() > TOTALS_RTOL[problem.dtype] * torch.maximum(total_a, total_b)
    wrong = problem.both_exact & apart
    if wrong.any():
        item = int(wrong.nonzero()[0])
        where = f" (item {item} of the batch)" if problem.batch > 1 else ""
        raise ValueError(f"with reg_m infinite on both sides a and b must have the same total, got sum(a) = "
                         f"{total_a[item].item():g} and sum(b) = {total_b[item].item():g}{where}")
