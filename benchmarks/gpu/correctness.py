"""Every operation of the Triton backend against the float64 reference, on inputs drawn afresh."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from uotlib.backends import BACKENDS
from uotlib.backends.base import Backend, log_scaling

from .stage import Row, Stage

#: Relative errors allowed: some units in the last place of the cost's type, eps notwithstanding.
BOUND = {torch.float32: 4e-6, torch.float64: 1e-9}
#: Operations with sums of the length of a row in the cost's type, whose bound is wider by this.
PRODUCTS, WIDER = ("weigh", "schur", "eliminate"), 5.0
REFERENCE, TRITON = BACKENDS["reference"], BACKENDS["triton"]
SHAPES = ((1, 1, 1), (3, 41, 130), (2, 1000, 777), (1, 1024, 1024), (2, 300, 9001), (1, 4096, 4096))


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


def sweep_error(case: dict[str, Tensor], backend: Backend = TRITON) -> float:
    """Error of a sweep: absolute in the log-sum-exps, relative to the largest in the column masses."""
    mass, expected_mass = torch.zeros_like(case["log_v"]), torch.zeros_like(case["log_v"])
    lse, expected = backend.sweep(**case, col_mass=mass), REFERENCE.sweep(**case, col_mass=expected_mass)
    scale = expected_mass.amax().clamp(min=1e-300)
    return max(error(lse, expected), error(mass / scale, expected_mass / scale))


def measure(stage: Stage) -> None:
    """One row an operation, shape and eps."""
    shapes = stage.choose(SHAPES, ((2, 9, 21),))
    cases = [(shape, eps, torch.float32, False) for shape in shapes for eps in (1e-1, 1e-4)]
    cases += [(stage.choose((3, 333, 500), (2, 9, 21)), 1e-3, dtype, True) for dtype in BOUND]
    for shape, eps, dtype, holes in cases:
        key = {"shape": list(shape), "eps": eps, "dtype": str(dtype).removeprefix("torch."), "infinities": holes}
        drawn = cache(partial(draw, shape, eps, stage.device, dtype, holes))
        for operation, found in ERRORS.items():
            if operation != "row_lse_items" or shape[0] > 1:
                bound = BOUND[dtype] * (WIDER if operation in PRODUCTS else 1.0)
                stage.row({"operation": operation, **key}, partial(_judged, found, drawn, bound))


def _judged(found: Callable[[dict[str, Tensor]], float], drawn: Callable[[], dict[str, Tensor]],
            bound: float) -> Row:
    value = found(drawn())
    return {"error": value if math.isfinite(value) else "not finite", "bound": bound, "correct": value <= bound}


def _row_lse(case: dict[str, Tensor]) -> float:
    arguments = case["cost"], case["log_v"], case["reg"]
    return error(TRITON.row_lse(*arguments), REFERENCE.row_lse(*arguments))


def _row_lse_items(case: dict[str, Tensor]) -> float:
    cost, log_v, reg = case["cost"], case["log_v"], case["reg"]
    items = torch.randint(len(cost), (2,), device=cost.device)
    return error(TRITON.row_lse(cost, log_v[items], reg[items], items), REFERENCE.row_lse(cost, log_v, reg)[items])


def _log_u(case: dict[str, Tensor]) -> Tensor:
    return log_scaling(case["offset"], case["damping"], REFERENCE.row_lse(case["cost"], case["log_v"], case["reg"]))


def _col_lse(case: dict[str, Tensor]) -> float:
    arguments = case["cost"], _log_u(case), case["reg"]
    return error(TRITON.col_lse(*arguments), REFERENCE.col_lse(*arguments))


def _col_lse_masked(case: dict[str, Tensor]) -> float:
    arguments = case["cost"], _log_u(case), case["reg"]
    mask = torch.rand(case["log_v"].shape, device=case["cost"].device) < 0.1
    return error(TRITON.col_lse_masked(*arguments, mask), torch.where(mask, REFERENCE.col_lse(*arguments), -math.inf))


def _panel(case: dict[str, Tensor]) -> float:
    arguments = case["cost"], _log_u(case), case["log_v"], case["reg"]
    plan = REFERENCE.panel(*arguments)
    return error(TRITON.panel(*arguments) / plan.amax(), plan / plan.amax())


def _weigh(case: dict[str, Tensor]) -> float:
    """Row sums of T and of T (L R'), and the product s W F, over the largest of each."""
    cost, log_u, log_v, reg = case["cost"], _log_u(case), case["log_v"], case["reg"]
    batch, n, m = cost.shape
    left, right, factor = (torch.rand(batch, points, 3, device=cost.device, dtype=cost.dtype) for points in (n, m, m))
    answers = []
    for backend, dtype in ((TRITON, cost.dtype), (REFERENCE, torch.float64)):
        row, col = torch.zeros_like(log_u), torch.zeros_like(log_v)
        product = torch.zeros(batch, n, 3, device=cost.device, dtype=dtype)
        backend.weigh(cost.to(dtype), log_u, log_v, reg, left.to(dtype), right.to(dtype), row, col,
                      scale=torch.ones_like(reg), factor=factor.to(dtype), product=product)
        answers.append((row, col, product))
    return max(error(found / wanted.abs().amax(), wanted / wanted.abs().amax())
               for found, wanted in zip(*answers, strict=True))


def _stochastic(case: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log x and log y of an N = x K y' whose rows sum to one."""
    log_y = torch.where(torch.isfinite(case["log_v"]), 0.0, -math.inf)
    log_x = -REFERENCE.row_lse(case["cost"], log_y, case["reg"])
    return torch.where(torch.isfinite(log_x), log_x, -math.inf), log_y


def _schur(case: dict[str, Tensor]) -> float:
    """N' diag(1/d) N v over its largest entry."""
    cost, reg = case["cost"], case["reg"]
    log_x, log_y = _stochastic(case)
    diagonal, vector = 1 + torch.rand_like(log_x), torch.rand_like(log_y)
    answers = []
    for backend, dtype in ((TRITON, cost.dtype), (REFERENCE, torch.float64)):
        total = torch.zeros_like(log_y)
        backend.schur(cost.to(dtype), log_x, log_y, diagonal, vector, reg, total)
        answers.append(total)
    found, wanted = answers
    return error(found / wanted.amax(), wanted / wanted.amax())


def _eliminate(case: dict[str, Tensor]) -> float:
    """The diagonal, and the three sums, each over its largest entry."""
    cost, reg = case["cost"], case["reg"]
    log_x, log_y = _stochastic(case)
    root_r, root_c, side = torch.ones_like(log_x), torch.ones_like(log_y), torch.rand_like(log_x)
    answers = []
    for backend, dtype in ((TRITON, cost.dtype), (REFERENCE, torch.float64)):
        sums = log_y.new_zeros(len(log_y), 3, log_y.shape[1])
        diagonal = backend.eliminate(cost.to(dtype), log_x, log_y, root_r, root_c, side, 1 + reg, reg, sums)
        answers.append((diagonal, *sums.unbind(1)))
    return max(error(found / wanted.amax(), wanted / wanted.amax()) for found, wanted in zip(*answers, strict=True))


ERRORS: dict[str, Callable[[dict[str, Tensor]], float]] = {
    "sweep": sweep_error, "row_lse": _row_lse, "row_lse_items": _row_lse_items, "col_lse": _col_lse,
    "col_lse_masked": _col_lse_masked, "panel": _panel, "weigh": _weigh, "schur": _schur,
    "eliminate": _eliminate,
}
