r"""The debiased unbalanced Sinkhorn divergence: a loss between measures that vanishes where they are equal."""

from __future__ import annotations

import torch
from torch import Tensor

from .api import Scalar, unbalanced_sinkhorn
from .costs import Cost, InnerProductCost
from .options import SolverOptions
from .tracing import values_hidden

#: Asymmetry of a self-cost that counts as rounding, relative to its largest finite entry.
ASYMMETRY = 1e-3


def sinkhorn_divergence(cost: InnerProductCost | tuple[Tensor | Cost, Tensor | Cost, Tensor | Cost],
                        a: Tensor | None = None, b: Tensor | None = None, *, reg: Scalar, reg_m: Scalar,
                        reg_type: str = "kl", method: str = "auto", max_iter: int = 1000, tol: float | None = None,
                        grad: str = "implicit", backend: str = "auto",
                        options: SolverOptions | None = None) -> Tensor:
    r"""Debiased unbalanced Sinkhorn divergence between batches of measures.

    .. math::
        S(a, b) = V(a, b) - \tfrac12 V(a, a) - \tfrac12 V(b, b) + \tfrac\varepsilon2\,(m(a) - m(b))^2

    with V the `Solution.value` of `unbalanced_sinkhorn` and m the total mass.  S is never negative where
    :math:`k = e^{-C/\varepsilon}` is a positive definite kernel, as it is for all the feature costs here, and 0 with
    zero gradient where the measures are equal.

    Why this term: V contains :math:`\varepsilon\,m(a)m(b)`, from KL(T|ab').  Without that part it is the maximum over
    (f, g) of :math:`F(a,f) + F(b,g) - \varepsilon\langle\alpha, k\beta\rangle`, with
    :math:`F(a,f) = -\tau\langle a, e^{-f/\tau} - 1\rangle` and the measures :math:`\alpha = a e^{f/\varepsilon}`,
    :math:`\beta = b e^{g/\varepsilon}`; the products of masses of the three values add up to
    :math:`-\tfrac\varepsilon2(m(a)-m(b))^2`, which the term cancels.  (a, a) has an optimal pair (f, f) and (b, b) has
    (g, g): with this f and this g, feasible for (a, b), every F cancels, and

    .. math:: S(a, b) \ge \tfrac\varepsilon2\,\langle\alpha - \beta,\, k(\alpha - \beta)\rangle \ge 0.

    Args:
        cost: A feature cost (`CosineCost`, `SqEuclideanCost`, `DotCost`) with x (..., n, d) and z (..., m, d), or the
            three costs (a to b, a to itself, b to itself), shapes (..., n, m), (..., n, n), (..., m, m), as tensors
            or cost objects; the last two are symmetric.
        a, b: Masses (..., n) and (..., m), finite and >= 0; None is uniform with total 1.
        reg: eps > 0, in units of the cost: a float, or a tensor over the batch.
        reg_m: tau > 0, in units of the cost, the same for both sides: a float, or a tensor over the batch;
            ``math.inf`` makes the marginals exact.
        reg_type: "kl".  "entropy" is refused: its value changes when a point is split into two at the same place, so
            that it is no function of the measures and its divergence would not vanish where they are equal.
        method, max_iter, tol, backend, options: Of each of the three solves: `unbalanced_sinkhorn`.
        grad: "implicit" (default), "envelope", "unrolled" (``method="sinkhorn"``) or "none".  The first two give the
            same first derivatives, by the envelope theorem; "implicit" has second derivatives too.

    Returns:
        S, (...), in units of the cost times mass.  It is a difference: its rounding error is that of V, about 1e-7 V in
        float32, and each V is that of its plan, above the optimum by at most `Solution.gap`; below the two it may be
        negative.

    Raises:
        TypeError: for an argument of a wrong type or dtype, a dense cost alone, or a pair of penalties.
        ValueError: for shapes that do not fit, a self-cost that is not symmetric (looked at on the CPU),
            ``reg_type="entropy"``, and whatever `unbalanced_sinkhorn` refuses.

    Warns:
        ConvergenceWarning: from each of the three solves that ends before it is within ``tol``.

    Example:
        >>> import torch
        >>> from uotlib import SqEuclideanCost, sinkhorn_divergence
        >>> x, z = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [1.5]])
        >>> round(float(sinkhorn_divergence(SqEuclideanCost(x, z), reg=0.1, reg_m=1.0)), 4)
        0.2143
        >>> float(sinkhorn_divergence(SqEuclideanCost(x, x), reg=0.1, reg_m=1.0))
        0.0

    Source: Sejourne et al. 2019, *Sinkhorn divergences for unbalanced optimal transport* (arXiv 1910.12958), whose
    value contains the masses as this one does; the argument above is theirs for potentials of a discrete measure.
    """
    check_debiasable(reg_m, reg_type)
    between, within_a, within_b = _three_costs(cost)

    def value(cost: Tensor | Cost, a: Tensor | None, b: Tensor | None) -> Tensor:
        return unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=reg_m, method=method, max_iter=max_iter, tol=tol,
                                   grad=grad, backend=backend, options=options).value

    biased = value(between, a, b)
    own = value(within_a, a, a) + value(within_b, b, b)
    total_a, total_b = (1.0 if mass is None else mass.double().sum(-1) for mass in (a, b))
    gap = 0.5 * reg * (total_a - total_b) ** 2
    return biased - 0.5 * own + (gap.to(biased.dtype) if isinstance(gap, Tensor) else gap)


def check_debiasable(reg_m: object, reg_type: object) -> None:
    """Refuse the problems for which no combination of values vanishes at equal measures."""
    if reg_type == "entropy":
        raise ValueError("reg_type must be 'kl' for a divergence, got 'entropy', whose value is no function of the "
                         "measures: it changes when a point is split into two at the same place")
    if reg_type != "kl":
        raise ValueError(f"reg_type must be 'kl', got {reg_type!r}")
    if isinstance(reg_m, tuple | list):
        raise TypeError(f"reg_m must be one penalty for both sides of a divergence, got {tuple(reg_m)!r}: with two, "
                        "equal measures would not be at distance 0")


def _three_costs(cost: object) -> tuple[Tensor | Cost, Tensor | Cost, Tensor | Cost]:
    """Costs a to b, a to a, b to b."""
    if isinstance(cost, InnerProductCost):
        for name, features in cost.tensors:
            if not features.dtype.is_floating_point:
                raise TypeError(f"{name} must have a floating-point dtype, got {features.dtype}")
        dtype = torch.promote_types(cost.x.dtype, cost.z.dtype)  # all three solves in one type
        x, z = cost.x.to(dtype), cost.z.to(dtype)
        return cost.between(x, z), cost.between(x, x), cost.between(z, z)
    if not isinstance(cost, tuple | list) or len(cost) != 3 \
            or not all(isinstance(part, Tensor | Cost) for part in cost):
        got = f"{len(cost)} of them" if isinstance(cost, tuple | list) else type(cost).__name__
        raise TypeError("cost must be a feature cost such as SqEuclideanCost, or the three costs (a to b, a to itself, "
                        f"b to itself), got {got}")
    shapes = [_matrix_shape(part) for part in cost]
    n, m = shapes[0]
    for name, part, shape, points in (("cost[1]", cost[1], shapes[1], n), ("cost[2]", cost[2], shapes[2], m)):
        if shape != (points, points):
            raise ValueError(f"{name} must have shape (..., {points}, {points}) to fit cost[0], {n} x {m}, "
                             f"got {' x '.join(map(str, shape))}")
        if isinstance(part, Tensor) and part.device.type == "cpu" and not values_hidden(part):
            _check_symmetric(name, part.detach())
    return cost[0], cost[1], cost[2]


def _matrix_shape(cost: Tensor | Cost) -> tuple[int, int]:
    if isinstance(cost, Cost):
        return cost.shape[1:]
    if cost.ndim < 2:
        raise ValueError(f"cost must hold tensors of shape (..., n, m), got {tuple(cost.shape)}")
    return cost.shape[-2], cost.shape[-1]


def _check_symmetric(name: str, cost: Tensor) -> None:
    finite = torch.where(torch.isfinite(cost), cost, 0.0)
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    if not torch.allclose(cost, cost.mT, rtol=0.0, atol=ASYMMETRY * scale, equal_nan=True):
        raise ValueError(f"{name} must be symmetric, got entries that differ from their mirror image by "
                         f"{float((finite - finite.mT).abs().max()):g}")
