r"""From the parameters of other libraries to uotlib's ``reg``, ``reg_m`` and ``reg_type``."""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict


class Settings(TypedDict):
    """Keyword arguments of `uotlib.unbalanced_sinkhorn`."""

    reg: float
    reg_m: tuple[float, float]
    reg_type: str


class Converted(NamedTuple):
    """A problem of another library in uotlib's terms.

    Attributes:
        reg: eps, in units of the cost that uotlib is given.
        reg_m: The pair (tau_a, tau_b), in the same units; ``math.inf`` is an exact marginal.
        reg_type: Convention of the entropic term, "kl" or "entropy".
        cost_scale: The cost that uotlib is given over the other library's.  Plan and marginals are the same;
            uotlib's value, transport cost, gap and potentials are this many times the other library's.
    """

    reg: float
    reg_m: tuple[float, float]
    reg_type: str
    cost_scale: float

    @property
    def settings(self) -> Settings:
        """For the call: ``unbalanced_sinkhorn(cost, a, b, **converted.settings)``."""
        return {"reg": self.reg, "reg_m": self.reg_m, "reg_type": self.reg_type}


def from_geomloss(blur: float, reach: float | None = None, p: float = 2, *,
                  cost_scale: float | None = None) -> Converted:
    r"""Parameters of GeomLoss's ``SamplesLoss("sinkhorn", p=p, blur=blur, reach=reach)``.

    .. math:: \varepsilon = s\,\mathtt{blur}^p, \qquad \tau_a = \tau_b = s\,\mathtt{reach}^p

    GeomLoss's cost is :math:`|x-z|^p/p` and s is what uotlib's cost is of it.  For p = 2 it is *half* the squared
    distance, which `uotlib.SqEuclideanCost` never halves: s = 2, and uotlib's numbers are twice GeomLoss's.

    Args:
        blur: Length scale of the entropic term, positive, in units of x.
        reach: Length scale of the marginal penalties, positive, in units of x; None is balanced.
        p: Exponent, positive.  GeomLoss has built-in costs for 1 and 2.
        cost_scale: s, positive.  None takes 2 for p = 2 (pass `SqEuclideanCost(x, z)`) and 1 for p = 1 (pass
            ``torch.cdist(x, z)``).  1 where both libraries get one and the same cost.

    Returns:
        `Converted`, in the "kl" convention, which is GeomLoss's.

    Raises:
        TypeError: for an argument that is not a number.
        ValueError: for one that is not positive and finite, or another p without ``cost_scale``.

    Example:
        >>> import torch, uotlib
        >>> from uotlib.converters import from_geomloss
        >>> converted = from_geomloss(blur=0.5, reach=1.0)
        >>> converted
        Converted(reg=0.5, reg_m=(2.0, 2.0), reg_type='kl', cost_scale=2.0)
        >>> x, z = torch.zeros(1, 2), torch.ones(1, 2)
        >>> solution = uotlib.unbalanced_sinkhorn(uotlib.SqEuclideanCost(x, z), **converted.settings)
        >>> round(float(solution.value / converted.cost_scale), 4)  # SamplesLoss(..., debias=False)
        0.8073

    Source: GeomLoss 0.3.1, ``sinkhorn_divergence.py`` (``scaling_parameters``) and ``sinkhorn_samples.py``
    (``cost_routines``).
    """
    blur, p = _positive("blur", blur), _positive("p", p)
    if cost_scale is None:
        if p not in (1, 2):
            raise ValueError(f"cost_scale must be given where p is neither 1 nor 2, got p = {p:g}")
        scale = p
    else:
        scale = _positive("cost_scale", cost_scale)
    tau = math.inf if reach is None else scale * _positive("reach", reach) ** p
    return Converted(scale * blur**p, (tau, tau), "kl", scale)


def from_ott(epsilon: float, tau_a: float = 1.0, tau_b: float = 1.0) -> Converted:
    r"""Parameters of OTT-JAX's ``LinearProblem(geom, tau_a=tau_a, tau_b=tau_b)`` with ``geom.epsilon = epsilon``.

    .. math:: \mathtt{tau} = \frac{\rho}{\rho + \varepsilon} \quad\Longleftrightarrow\quad
              \rho = \frac{\varepsilon\,\mathtt{tau}}{1 - \mathtt{tau}}

    OTT's unbalanced iteration stops at the fixed point of the *entropy* convention, so that ``reg_type="entropy"``
    gives its plan and its potentials.  (Its ``reg_ot_cost`` evaluates another dual; compare plans and transport costs.)

    Args:
        epsilon: The absolute eps, positive, in units of the cost: ``geom.epsilon`` itself, after any scaling.
        tau_a, tau_b: In (0, 1]; 1 makes that marginal exact.

    Returns:
        `Converted`, with ``reg_type="entropy"`` and ``cost_scale`` 1: give uotlib ``geom.cost_matrix``.

    Raises:
        TypeError: for an argument that is not a number.
        ValueError: for an epsilon that is not positive and finite, or a tau outside (0, 1].

    Example:
        >>> from uotlib.converters import from_ott
        >>> from_ott(0.5, tau_a=0.5)
        Converted(reg=0.5, reg_m=(0.5, inf), reg_type='entropy', cost_scale=1.0)

    Source: OTT-JAX 0.6.0, ``linear_problem.LinearProblem`` and ``Sinkhorn.lse_step``.
    """
    epsilon = _positive("epsilon", epsilon)
    return Converted(epsilon, (_penalty("tau_a", tau_a, epsilon), _penalty("tau_b", tau_b, epsilon)), "entropy", 1.0)


def _penalty(name: str, tau: float, epsilon: float) -> float:
    tau = _positive(name, tau)
    if tau > 1:
        raise ValueError(f"{name} must be in (0, 1], got {tau}")
    return math.inf if tau == 1 else epsilon * tau / (1 - tau)


def _positive(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)
