r"""What a pair of potentials proves about itself, and the exact maximiser along translations.  All O(n + m)."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import Side


def violation(rows: Side, cols: Side, f: Tensor, g: Tensor, row_mass: Tensor, col_mass: Tensor) -> Tensor:
    r"""Norm of the dual's gradient relative to the plan's mass, (A,).

    .. math:: \frac{|T\mathbf 1 - a e^{-f/\tau_a}|_1 + |T^\top\mathbf 1 - b e^{-g/\tau_b}|_1}{m(T)}
    """
    return side_violation(rows, f, row_mass) + side_violation(cols, g, col_mass)


def side_violation(side: Side, potential: Tensor, marginal: Tensor) -> Tensor:
    """One side's part of `violation`; 0 for an empty plan that is meant to be empty."""
    deviation = (marginal - side.penalty.target(side.mass, potential)).abs().sum(-1)
    return torch.where(deviation == 0, 0.0, deviation / marginal.sum(-1))


def gap(rows: Side, cols: Side, f: Tensor, g: Tensor, row_mass: Tensor, col_mass: Tensor) -> Tensor:
    r"""Primal minus dual of the plan of (f, g), exactly and without cancellation, (A,).

    .. math:: \tau_a\,\mathrm{KL}(T\mathbf 1\,|\,a e^{-f/\tau_a})
              + \tau_b\,\mathrm{KL}(T^\top\mathbf 1\,|\,b e^{-g/\tau_b})

    An exact marginal contributes its L1 error instead (0 for the side that was updated last).
    """
    return rows.penalty.gap(row_mass, rows.mass, f) + cols.penalty.gap(col_mass, cols.mass, g)


def optimal_shift(rows: Side, cols: Side, f: Tensor, g: Tensor) -> Tensor:
    r"""Translation (f + t, g - t) that maximises the dual, (A,), in units of the cost; 0 if both marginals are exact.

    .. math:: t = \frac{\tau_a \tau_b}{\tau_a + \tau_b}
              \log \frac{\langle a, e^{-f/\tau_a} \rangle}{\langle b, e^{-g/\tau_b} \rangle}

    Source: stationarity of the dual in t; for equal penalties, Sejourne et al. 2022 (arXiv 2201.00730), section 3.
    """
    rate = rows.penalty.inverse + cols.penalty.inverse
    ratio = rows.penalty.log_total(rows.log_mass, f) - cols.penalty.log_total(cols.log_mass, g)
    movable = (rate > 0) & torch.isfinite(ratio)
    return torch.where(movable, ratio / torch.where(rate > 0, rate, 1.0), 0.0)
