"""GeomLoss's ``ot.solve`` on a dense cost: symmetric steps along a schedule that its number of iterations fixes."""

from __future__ import annotations

import torch

from ..case import Problem
from .base import Answer, Method, Runner, need


def geomloss_method(dtype: str) -> Method:
    def prepare(problem: Problem) -> Runner:
        need("geomloss", "geomloss")
        from geomloss import ot

        cost, a, b = problem.arguments(getattr(torch, dtype))

        def run(iterations: int) -> tuple[torch.Tensor, torch.Tensor]:
            solution = ot.solve(cost, a=a, b=b, reg=problem.reg, unbalanced=problem.reg_m, max_iter=iterations)
            return solution.potential_a, solution.potential_b

        return Runner(run, lambda raw, _: Answer(raw[0].double(), raw[1].double()))

    return Method("GeomLoss", dtype, prepare, package="geomloss")


ALL_GEOMLOSS = {dtype: geomloss_method(dtype) for dtype in ("float32", "float64")}
GEOMLOSS = (ALL_GEOMLOSS["float32"],)
