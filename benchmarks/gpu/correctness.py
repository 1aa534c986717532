"""Every operation of the Triton backend against the float64 reference, on inputs drawn afresh."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from uotlib.backends.base import log_scaling
from uotlib.backends.reference import ReferenceBackend
from uotlib.backends.triton import TritonBackend

#: Relative errors allowed: some units in the last place of the cost's type, eps notwithstanding.
BOUND = {torch.float32: 4e-6, torch.float64: 1e-9}
REFERENCE = ReferenceBackend()


def draw(shape: tuple[int, int, int], eps: float, device: torch.device, dtype: torch.dtype = torch.float32,
         holes: bool = False) -> dict[str, Tensor]:
    """Arguments of a sweep, with potentials of the cost's size and rows of mass near 1; never the same twice."""
    batch, n, m = shape
    cost = torch.rand(shape, device=device, dtype=dtype) * 2
    log_v = torch.randn(batch, m, device=device, dtype=torch.float64) * 0.3 / eps
    if holes:
        cost[torch.rand(shape, device=device) < 0.05] = math.inf
        log_v[torch.rand(batch, m, device=device) < 0.1] = -math.inf
    reg = torch.full((batch,), eps, device=device, dtype=torch.float64)
    damping = torch.rand(batch, device=device, dtype=torch.float64)
    lse = REFERENCE.row_lse(cost, log_v, reg)
    finite = torch.where(lse > -math.inf, lse, 0.0)
    offset = (damping[:, None] - 1) * finite + torch.randn(batch, n, device=device, dtype=torch.float64)
    return {"cost": cost, "log_v": log_v, "offset": offset, "damping": damping, "reg": reg,
            "shift": torch.zeros_like(reg)}


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference; infinite where one has NaN, or an infinity that the other has not."""
    same = actual == expected
    gap = torch.where(same, 0.0, (actual.double() - expected.double()).abs())
    return float(gap.nan_to_num(nan=math.inf).amax()) if gap.numel() else 0.0


def sweep_error(case: dict[str, Tensor], backend: TritonBackend) -> float:
    """Error of a sweep: absolute in the log-sum-exps, relative to the largest in the column masses."""
    mass, expected_mass = torch.zeros_like(case["log_v"]), torch.zeros_like(case["log_v"])
    lse, expected = backend.sweep(**case, col_mass=mass), REFERENCE.sweep(**case, col_mass=expected_mass)
    scale = expected_mass.amax().clamp(min=1e-300)
    return max(error(lse, expected), error(mass / scale, expected_mass / scale))


def check(shape: tuple[int, int, int], eps: float, device: torch.device, dtype: torch.dtype = torch.float32,
          holes: bool = False) -> list[dict[str, Any]]:
    """One row an operation: its error and whether that is within bounds."""
    case, backend = draw(shape, eps, device, dtype, holes), TritonBackend()
    cost, log_v, reg = case["cost"], case["log_v"], case["reg"]
    lse = REFERENCE.row_lse(cost, log_v, reg)
    log_u = log_scaling(case["offset"], case["damping"], lse)
    columns = REFERENCE.col_lse(cost, log_u, reg)
    plan = REFERENCE.panel(cost, log_u, log_v, reg)
    mask = torch.rand(columns.shape, device=device) < 0.1
    errors = {
        "sweep": sweep_error(case, backend),
        "row_lse": error(backend.row_lse(cost, log_v, reg), lse),
        "col_lse": error(backend.col_lse(cost, log_u, reg), columns),
        "col_lse_masked": error(backend.col_lse_masked(cost, log_u, reg, mask),
                                torch.where(mask, columns, -math.inf)),
        "panel": error(backend.panel(cost, log_u, log_v, reg) / plan.amax(), plan / plan.amax()),
    }
    if shape[0] > 1:
        items = torch.randint(shape[0], (2,), device=device)
        errors["row_lse_items"] = error(backend.row_lse(cost, log_v[items], reg[items], items), lse[items])
    bound = BOUND[dtype]
    return [{"operation": operation, "shape": list(shape), "eps": eps, "dtype": str(dtype).removeprefix("torch."),
             "infinities": holes, "error": value if math.isfinite(value) else "not finite", "bound": bound,
             "correct": value <= bound} for operation, value in errors.items()]
