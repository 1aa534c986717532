r"""Entropic unbalanced optimal transport as the textbook writes it: one problem, float64, no batches, no backends.

This is the ground truth that the tests hold the library to, and the shortest answer to "what does uotlib compute".

With :math:`\mathrm{KL}(p|q) = \sum p\log(p/q) - p + q`, reference weights :math:`\alpha = \log a, \beta = \log b` in
the "kl" convention and :math:`\alpha = \beta = 0` in the "entropy" convention:

========  ==============================================================================================
primal    :math:`\min_T \langle C,T\rangle + \tau_a\mathrm{KL}(T\mathbf 1|a) + \tau_b\mathrm{KL}(T^\top\mathbf 1|b)
          + \varepsilon R(T)`, with :math:`R = \mathrm{KL}(T|ab^\top)` ("kl") or :math:`\sum T(\log T-1)` ("entropy")
dual      :math:`\max_{f,g} -\tau_a\langle a, e^{-f/\tau_a}-1\rangle - \tau_b\langle b, e^{-g/\tau_b}-1\rangle
          - \varepsilon(m(T) - m(a)m(b))`, the last product only in "kl"
plan      :math:`T_{ij} = e^{\alpha_i+\beta_j+(f_i+g_j-C_{ij})/\varepsilon}`
update    :math:`f_i = \frac{\tau_a\varepsilon}{\tau_a+\varepsilon}\bigl(\log a_i - \alpha_i
          - \mathrm{LSE}_j[\beta_j + (g_j-C_{ij})/\varepsilon]\bigr)`, and g likewise
tau inf   the factor is :math:`\varepsilon`, the penalty a constraint, and its dual term :math:`\langle a, f\rangle`
========  ==============================================================================================

Source: Chizat et al. 2018, *Scaling algorithms for unbalanced optimal transport problems*, Algorithm 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ReferenceSolution(NamedTuple):
    """Potentials f (n,) and g (m,), in units of the cost, and their plan (n, m)."""

    f: Tensor
    g: Tensor
    plan: Tensor


def reference_sinkhorn(cost: Tensor, a: Tensor, b: Tensor, reg: float, reg_m: float | tuple[float, float],
                       reg_type: str = "kl", n_iter: int = 1000) -> ReferenceSolution:
    r"""Alternating updates of f and g from g = 0, ``n_iter`` times, in float64.

    Args:
        cost: (n, m); +inf forbids a pair.
        a, b: Masses, (n,) and (m,); a point of mass zero takes no part, and its potential is what its update says.
        reg: eps.
        reg_m: tau for both sides, or (tau_a, tau_b); ``math.inf`` for an exact marginal.
        reg_type: "kl" or "entropy".
        n_iter: Updates of each side.

    Returns:
        `ReferenceSolution`.

    Example:
        >>> import torch
        >>> from uotlib.reference import reference_sinkhorn
        >>> half = torch.tensor([0.5, 0.5])
        >>> reference_sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), half, half, 0.5, 1.0).plan
        tensor([[0.3932, 0.0532],
                [0.0532, 0.3932]], dtype=torch.float64)
    """
    cost, a, b = cost.double(), a.double(), b.double()
    tau_a, tau_b = penalties(reg_m)
    alpha, beta = reference_weights(a, b, reg_type)
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(n_iter):
        f = update(cost, a, alpha, beta, g, reg, tau_a)
        g = update(cost.mT, b, beta, alpha, f, reg, tau_b)
    return ReferenceSolution(f, g, reference_plan(f, g, cost, a, b, reg, reg_type))


def update(cost: Tensor, mass: Tensor, own: Tensor, other: Tensor, potential: Tensor, reg: float,
           tau: float) -> Tensor:
    r"""One half-step: :math:`\lambda(\log a - \alpha - \mathrm{LSE}_j[\beta_j + (g_j - C_{ij})/\varepsilon])`."""
    step = reg if math.isinf(tau) else tau * reg / (tau + reg)
    residual = torch.where(own == mass.log(), 0.0, mass.log() - own)
    return step * (residual - torch.logsumexp(exponent(other[None, :], potential[None, :], cost, reg), dim=1))


def exponent(weight: Tensor, potential: Tensor, cost: Tensor, reg: float) -> Tensor:
    r""":math:`\beta + (g - C)/\varepsilon`; -inf for a forbidden pair, and for a point that reaches nothing."""
    allowed = (weight > -torch.inf) & (potential < torch.inf) & (cost < torch.inf)
    return torch.where(allowed, weight + (potential - cost) / reg, -torch.inf)


def reference_plan(f: Tensor, g: Tensor, cost: Tensor, a: Tensor, b: Tensor, reg: float,
                   reg_type: str = "kl") -> Tensor:
    """The plan of any pair of potentials, (n, m)."""
    alpha, beta = reference_weights(a.double(), b.double(), reg_type)
    allowed = (f < torch.inf)[:, None] & (g < torch.inf)[None, :]
    weight = torch.where(allowed, alpha[:, None] + beta[None, :], -torch.inf)
    return torch.exp(exponent(weight, f.double()[:, None] + g.double()[None, :], cost.double(), reg))


def reference_primal(plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, reg: float,
                     reg_m: float | tuple[float, float], reg_type: str = "kl") -> Tensor:
    """Objective of any plan >= 0.  An exact marginal adds nothing: whether it holds is for the caller to see."""
    plan, cost, a, b = plan.double(), cost.double(), a.double(), b.double()
    tau_a, tau_b = penalties(reg_m)
    linear = torch.where(plan > 0, plan * cost, 0.0).sum()
    entropy = kl(plan, a[:, None] * b[None, :]) if reg_type == "kl" else (torch.special.xlogy(plan, plan) - plan).sum()
    rows = 0.0 if math.isinf(tau_a) else tau_a * kl(plan.sum(1), a)
    cols = 0.0 if math.isinf(tau_b) else tau_b * kl(plan.sum(0), b)
    return linear + rows + cols + reg * entropy


def reference_dual(f: Tensor, g: Tensor, cost: Tensor, a: Tensor, b: Tensor, reg: float,
                   reg_m: float | tuple[float, float], reg_type: str = "kl") -> Tensor:
    """Objective of any pair of potentials: never above `reference_primal` of any plan with the exact marginals."""
    a, b = a.double(), b.double()
    tau_a, tau_b = penalties(reg_m)
    free = a.sum() * b.sum() if reg_type == "kl" else 0.0
    mass = reference_plan(f, g, cost, a, b, reg, reg_type).sum()
    return marginal_value(a, f.double(), tau_a) + marginal_value(b, g.double(), tau_b) - reg * (mass - free)


def marginal_value(mass: Tensor, potential: Tensor, tau: float) -> Tensor:
    r""":math:`-\tau\langle a, e^{-f/\tau} - 1\rangle`, or :math:`\langle a, f\rangle`; no mass, no value."""
    each = potential if math.isinf(tau) else -tau * torch.expm1(-potential / tau)
    return torch.where(mass > 0, mass * torch.where(mass > 0, each, 0.0), 0.0).sum()


def kl(p: Tensor, q: Tensor) -> Tensor:
    r""":math:`\sum p\log(p/q) - p + q`, with 0 log 0 = 0."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q) - p + q).sum()


def reference_weights(a: Tensor, b: Tensor, reg_type: str) -> tuple[Tensor, Tensor]:
    """(alpha, beta): logarithms of the masses, or zeros."""
    if reg_type not in ("kl", "entropy"):
        raise ValueError(f"reg_type must be 'kl' or 'entropy', got {reg_type!r}")
    return (a.log(), b.log()) if reg_type == "kl" else (torch.zeros_like(a), torch.zeros_like(b))


def penalties(reg_m: float | tuple[float, float]) -> tuple[float, float]:
    """(tau_a, tau_b)."""
    return reg_m if isinstance(reg_m, tuple) else (reg_m, reg_m)
