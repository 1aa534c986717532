r"""The marginal penalty :math:`\tau\,\mathrm{KL}(\cdot\,|\,a)` of one side: every formula in which tau occurs.

A new divergence is one class with these methods.  ``tau = inf`` (an exact marginal) is the limit of each formula and
may be mixed with finite penalties inside a batch, so that everything is written with 1/tau.

Shapes: masses and potentials (B, n); tau, reg and the sums that come back (B,).  Potentials and tau in cost units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .tracing import lazy

#: Stands for an infinite potential where that is multiplied by 1/tau.
HUGE = 1e300


def kl(p: Tensor, q: Tensor) -> Tensor:
    r""":math:`\sum_i p_i\log(p_i/q_i) - p_i + q_i` over the last dimension; 0 log 0 = 0, inf where p > 0 = q.

    Never negative: near p = q, where the closed form cancels, each term is its series in d = (p - q)/q.
    """
    d = torch.where(q > 0, (p - q) / torch.where(q > 0, q, 1.0), 1.0)
    near = d.abs() < 1e-2
    d = torch.where(near, d, 0.0)
    series = q * d.square() * (1 / 2 - d * (1 / 6 - d * (1 / 12 - d * (1 / 20 - d * (1 / 30 - d / 42)))))
    closed = torch.special.xlogy(p, p) - torch.special.xlogy(p, q) - p + q
    return torch.where(near, series, closed).sum(-1)


@dataclass(eq=False)
class KLPenalty:
    r"""Kullback-Leibler penalty of strength tau on one marginal.

    Source: Chizat et al. 2018, *Scaling algorithms for unbalanced optimal transport problems*, Table 1.
    """

    tau: Tensor

    @lazy
    def inverse(self) -> Tensor:
        """1/tau, 0 for an exact marginal."""
        return self.tau.reciprocal()

    @lazy
    def exact(self) -> Tensor:
        """Where the marginal is a constraint."""
        return torch.isinf(self.tau)

    @lazy
    def _finite_tau(self) -> Tensor:
        return torch.where(self.exact, 1.0, self.tau)

    def damping(self, reg: Tensor) -> Tensor:
        r""":math:`\tau/(\tau+\varepsilon)`: the proximal step's exponent, 1 for an exact marginal."""
        return 1 / (1 + reg * self.inverse)

    def target(self, mass: Tensor, potential: Tensor) -> Tensor:
        r"""The marginal that the potential asks for, :math:`a\,e^{-f/\tau}`; 0 where a is 0."""
        return torch.exp(-self._scaled(potential)).mul_(mass).nan_to_num_(nan=0.0, posinf=torch.inf)

    def log_total(self, log_mass: Tensor, potential: Tensor) -> Tensor:
        r""":math:`\log\langle a, e^{-f/\tau}\rangle`."""
        return torch.logsumexp(log_mass - self._scaled(potential), -1)

    def marginal_value(self, potential: Tensor) -> Tensor:
        r"""Price of a unit of mass in the dual, :math:`\tau(1-e^{-f/\tau})`; f itself for an exact marginal."""
        soft = -torch.expm1(-self._scaled(potential)) * self._finite_tau[:, None]
        return torch.where(self.exact[:, None], potential, soft)

    def primal(self, marginal: Tensor, mass: Tensor) -> Tensor:
        r""":math:`\tau\,\mathrm{KL}(r|a)`; 0 for an exact marginal (whether it holds is the violation's business)."""
        return torch.where(self.exact, 0.0, self._finite_tau * kl(marginal, mass))

    def gap(self, marginal: Tensor, mass: Tensor, potential: Tensor) -> Tensor:
        r"""This side's part of primal minus dual, :math:`\tau\,\mathrm{KL}(r\,|\,a e^{-f/\tau})`.

        For an exact marginal: the L1 distance to it, in units of mass (the gap itself is infinite unless that is 0).
        """
        target = self.target(mass, potential)
        deviation = (marginal - target).abs().sum(-1)
        return torch.where(self.exact, deviation, self._finite_tau * kl(marginal, target))

    def _scaled(self, potential: Tensor) -> Tensor:
        """f / tau, 0 for an exact marginal even where f is infinite (0 times a huge number, where 0 * inf is NaN)."""
        return potential.clamp(-HUGE, HUGE) * self.inverse[:, None]
