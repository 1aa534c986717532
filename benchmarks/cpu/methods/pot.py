"""POT's three unbalanced Sinkhorn iterations, on NumPy or torch arrays."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from ..case import Problem
from .base import Answer, Method, Runner, need


def pot_method(name: str, solver: str, *, library: str = "numpy", dtype: str = "float64",
               **settings: float) -> Method:
    """A method of ``ot.unbalanced``.

    ``stopThr=0`` never stops it; what it still computes for its test is O(n) an iteration.  ``log=True``, which the
    potentials need, adds passes over the plan, so that the timed call goes without and the answer is a second call.
    """
    extra = "".join(f", {key}={value:g}" for key, value in settings.items())

    def prepare(problem: Problem) -> Runner:
        need("ot", "POT")
        from ot import unbalanced

        function = getattr(unbalanced, solver)
        tensors = problem.arguments(getattr(torch, dtype))
        cost, a, b = tensors if library == "torch" else (tensor.numpy() for tensor in tensors)

        def call(iterations: int, log: bool) -> Any:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # what they warn of is what the judge sees
                return function(a, b, cost, problem.reg, problem.reg_m, reg_type=problem.reg_type,
                                numItermax=iterations, stopThr=0.0, log=log, **settings)

        def answer(_: object, iterations: int) -> Answer:
            plan, info = call(iterations, log=True)
            f, g = (problem.reg * torch.as_tensor(info[key]).double() for key in ("logu", "logv"))
            return Answer(f, g, float(plan.sum()))

        return Runner(lambda iterations: call(iterations, log=False), answer)

    return Method(name, f"{library}, {dtype}{extra}", prepare, package="POT")


def _family(name: str, solver: str, **settings: float) -> dict[tuple[str, str], Method]:
    return {(library, dtype): pot_method(name, solver, library=library, dtype=dtype, **settings)
            for library in ("numpy", "torch") for dtype in ("float64", "float32")}


ALL_PLAIN = _family("POT", "sinkhorn_knopp_unbalanced")
ALL_TRANSLATION_INVARIANT = _family("POT translation-invariant", "sinkhorn_unbalanced_translation_invariant")
ALL_STABILISED = {threshold: _family("POT stabilised", "sinkhorn_stabilized_unbalanced", tau=threshold)
                  for threshold in (1e3, 1e5, 1e10)}

PLAIN = (ALL_PLAIN["numpy", "float64"],)
STABILISED = (ALL_STABILISED[1e5]["numpy", "float64"],)
TRANSLATION_INVARIANT = (ALL_TRANSLATION_INVARIANT["numpy", "float64"],)
