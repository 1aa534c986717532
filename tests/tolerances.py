r"""How far two correct answers may be apart, and why.

An error d in a cost or a potential is a relative error d/eps in the plan, so that every tolerance is a small multiple
of u max|C| / eps, with u the unit roundoff of the arithmetic (not of the input: half precision is solved in float32).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: The type in which costs of each type are solved.
SOLVED_IN = {torch.float64: torch.float64, torch.float32: torch.float32,
             torch.float16: torch.float32, torch.bfloat16: torch.float32}
#: Unit roundoff of each type.
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Roundings on the way from a cost to an entry of the plan: cost, scaling, two potentials, exponential, product, sums.
ROUNDINGS = 16


def plan_rtol(dtype: torch.dtype, largest: float, reg: float) -> float:
    """Relative error of a plan's entries after one pass over costs up to ``largest``."""
    return ROUNDINGS * ROUNDOFF[SOLVED_IN[dtype]] * (1 + largest / reg)


def solved_rtol(violation: float, dtype: torch.dtype, largest: float, reg: float, conditioning: float = 10.0) -> float:
    """Relative error of a plan solved to ``violation``: that, times how hard the problem is, and rounding."""
    return conditioning * violation + plan_rtol(dtype, largest, reg)


def max_error(actual: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest entry of the truth; NaN counts as infinite."""
    actual, truth = actual.detach(), truth.detach()
    difference = (actual.double() - truth.double()).abs().max() / truth.double().abs().max().clamp_min(1e-300)
    return float(torch.nan_to_num(difference, nan=torch.inf))


def assert_close(actual: Tensor, expected: Tensor, rtol: float) -> None:
    """Every entry within ``rtol`` of the largest one: plans have entries of all magnitudes, and mass is what counts."""
    assert actual.shape == expected.shape, f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}"
    error = max_error(actual, expected) if expected.numel() else 0.0
    assert error <= rtol, f"error {error:.2e} of the largest entry, allowed {rtol:.2e}"


def assert_no_worse(actual: Tensor, plain: Tensor, truth: Tensor, factor: float = 2.0) -> None:
    """At most ``factor`` times the error of plain torch at the same dtype, and a rounding of the result itself."""
    allowed = factor * max_error(plain, truth) + 4 * ROUNDOFF[actual.dtype]
    error = max_error(actual, truth)
    assert error <= allowed, f"error {error:.2e}, plain torch makes {max_error(plain, truth):.2e}"
