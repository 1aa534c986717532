r"""Entropic unbalanced transport between point clouds as a loss module."""

from __future__ import annotations

import torch
from torch import Tensor

from ..api import unbalanced_sinkhorn
from ..checks import check_choice, check_flag, check_penalty, check_positive
from ..costs import CosineCost, Cost, DotCost, InnerProductCost, SqEuclideanCost
from ..debiased import check_debiasable, sinkhorn_divergence
from ..options import SolverOptions

COSTS: dict[str, type[InnerProductCost]] = {"sqeuclidean": SqEuclideanCost, "cosine": CosineCost, "dot": DotCost}


class UnbalancedSinkhornLoss(torch.nn.Module):
    r"""Loss between two weighted point clouds: the debiased Sinkhorn divergence, or the value of the problem.

    .. math::
        L = V(a, b) - \tfrac12 V(a, a) - \tfrac12 V(b, b) + \tfrac\varepsilon2 (m(a) - m(b))^2
        \quad\text{or}\quad L = V(a, b)

    with V the `Solution.value` of `unbalanced_sinkhorn`.  The first is 0 at equal clouds (`sinkhorn_divergence`); the
    second is not, and pulls points together.

    Args:
        cost: "sqeuclidean" (|x - z|^2, never halved), "cosine" (1 - cos), "dot" (-x.z), or a subclass of `Cost` that is
            made from (x, z); one of `InnerProductCost` where ``debiased``.
        reg: eps > 0, in units of the cost.
        reg_m: tau > 0, in units of the cost; ``math.inf`` makes marginals exact; a pair where not ``debiased``.
        reg_type: "kl" or, where not ``debiased``, "entropy".
        debiased: The divergence (three solves) or the value (one).
        reduction: Over the batch: "none", "mean" or "sum".
        method, max_iter, tol, grad, backend, options: Of the solver: `unbalanced_sinkhorn`, which refuses wrong ones at
            the first call.

    Shape:
        x (..., n, d), z (..., m, d), a (..., n) and b (..., m) or None (uniform with total 1); the loss is (...) with
        ``reduction="none"``, else a scalar.

    Raises:
        TypeError, ValueError: for a setting of a wrong type or range, by name; from a call, what `unbalanced_sinkhorn`
            and `sinkhorn_divergence` raise.

    Example:
        >>> import torch
        >>> from uotlib.nn import UnbalancedSinkhornLoss
        >>> loss = UnbalancedSinkhornLoss("sqeuclidean", reg=0.05, reg_m=10.0)
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
        >>> loss(x, x.detach() + torch.tensor([0.0, 0.5])).backward()
        >>> x.grad[:, 1]
        tensor([-0.4930, -0.4930])

    Source: Sejourne et al. 2019, *Sinkhorn divergences for unbalanced optimal transport* (arXiv 1910.12958).
    """

    def __init__(self, cost: str | type[Cost] = "sqeuclidean", *, reg: float,
                 reg_m: float | tuple[float, float], reg_type: str = "kl", debiased: bool = True,
                 reduction: str = "mean", method: str = "auto", max_iter: int = 1000, tol: float | None = None,
                 grad: str = "implicit", backend: str = "auto", options: SolverOptions | None = None) -> None:
        super().__init__()
        check_flag("debiased", debiased)
        self.cost: type[Cost] = _cost_class(cost, debiased)
        check_positive("reg", reg)
        check_penalty("reg_m", reg_m)
        check_choice("reg_type", reg_type, ("kl", "entropy"))
        check_choice("reduction", reduction, ("none", "mean", "sum"))
        if debiased:
            check_debiasable(reg_m, reg_type)
        self.reg, self.reg_m, self.reg_type = reg, reg_m, reg_type
        self.debiased, self.reduction = debiased, reduction
        self.method, self.max_iter, self.tol = method, max_iter, tol
        self.grad, self.backend, self.options = grad, backend, options

    def forward(self, x: Tensor, z: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        cost = self.cost(x, z)  # type: ignore[call-arg]
        if self.debiased:
            loss = sinkhorn_divergence(
                cost, a, b, reg=self.reg, reg_m=self.reg_m, reg_type=self.reg_type,  # type: ignore[arg-type]
                method=self.method, max_iter=self.max_iter, tol=self.tol, grad=self.grad, backend=self.backend,
                options=self.options)
        else:
            loss = unbalanced_sinkhorn(
                cost, a, b, reg=self.reg, reg_m=self.reg_m, reg_type=self.reg_type, method=self.method,
                max_iter=self.max_iter, tol=self.tol, grad=self.grad, backend=self.backend,
                options=self.options).value
        return loss if self.reduction == "none" else loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        return (f"cost={self.cost.__name__}, reg={self.reg}, reg_m={self.reg_m}, reg_type={self.reg_type!r}, "
                f"debiased={self.debiased}, reduction={self.reduction!r}")


def _cost_class(cost: object, debiased: bool) -> type[Cost]:
    if isinstance(cost, str):
        check_choice("cost", cost, tuple(COSTS))
        return COSTS[cost]
    wanted = InnerProductCost if debiased else Cost
    if not isinstance(cost, type) or not issubclass(cost, wanted):
        raise TypeError(f"cost must be 'sqeuclidean', 'cosine', 'dot' or a subclass of {wanted.__name__}, got {cost!r}")
    return cost
