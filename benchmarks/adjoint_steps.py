"""Steps of the adjoint's conjugate gradients: without what is known of the root of the column marginal, and with it
kept out of the steps, by either diagonal.

    python -m benchmarks.adjoint_steps [--n 400] [--tol 1e-4] [--seeds 2]

The loss is of a plan applied to random columns, in float64.  Counts do not depend on the machine.  ``moved`` is what
`uotlib.gradients.adjoint.MOVED_LITTLE` is compared with: the part of the diagonal that eliminating the rows takes away.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.problems import clustered
from uotlib import SolverOptions, unbalanced_sinkhorn
from uotlib.backends.native import NativeBackend
from uotlib.gradients import adjoint

#: Values of `MOVED_LITTLE`, and whether the root is left to the steps.
VARIANTS: dict[str, tuple[float, bool]] = {
    "without the root": (-1.0, True), "Schur diagonal": (-1.0, False), "diagonal before": (2.0, False),
    "chosen": (adjoint.MOVED_LITTLE, False)}


def costs(n: int, seed: int) -> dict[str, Tensor]:
    """Clouds in the plane, uniform entries, and clustered unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(2, n, 2, generator=generator, dtype=torch.float64)
    return {"plane": torch.cdist(x, y).square(), "uniform": torch.rand(n, n, generator=generator, dtype=torch.float64),
            "clustered": clustered(n, seed=seed)[0].double()}


def backward_steps(cost: Tensor, reg: float, reg_m: float, tol: float, variant: str) -> tuple[int, float]:
    """Steps of one backward, and what eliminating the rows moved of the diagonal, in the mean."""
    generator = torch.Generator().manual_seed(1)
    solution = unbalanced_sinkhorn(cost.clone().requires_grad_(), reg=reg, reg_m=reg_m, tol=1e-6, max_iter=20000,
                                   backend="native", options=SolverOptions(adjoint_tol=tol))
    loss = solution.apply(torch.randn(cost.shape[1], 4, generator=generator, dtype=torch.float64)).square().sum()
    steps, moved = 0, 0.0
    schur, solve = adjoint._schur_product, adjoint._conjugate_gradients

    def counted(*arguments: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return schur(*arguments)

    def watched(system: adjoint.Scaled, *arguments: Any) -> Any:
        nonlocal moved
        moved = float((1 - system.preconditioner / system.col_diagonal).mean())
        return solve(system, *arguments)

    with _variant(*VARIANTS[variant]), patch.object(adjoint, "_schur_product", counted), patch.object(
            adjoint, "_conjugate_gradients", watched):
        loss.backward()
    return steps, moved


@contextlib.contextmanager
def _variant(little: float, plain: bool) -> Iterator[None]:
    """In torch, step by step, so that steps can be counted."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(patch.object(NativeBackend, "conjugate_gradients", lambda *_: None))
        patches.enter_context(patch.object(adjoint, "MOVED_LITTLE", little))
        if plain:
            patches.enter_context(patch.object(adjoint.Scaled, "start", lambda self, *_: torch.zeros_like(self.along)))
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{'cost':10}{'eps':>8}{'tau':>6}{'moved':>7}" + "".join(f"{name:>18}" for name in VARIANTS))
    for name in costs(2, 0):
        for reg in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3):
            for reg_m in (0.1, 1.0):
                counts, moved = [], 0.0
                for variant in VARIANTS:
                    found = [backward_steps(costs(arguments.n, seed)[name], reg, reg_m, arguments.tol, variant)
                             for seed in range(arguments.seeds)]
                    counts.append(statistics.median(steps for steps, _ in found))
                    if variant == "Schur diagonal":
                        moved = statistics.median(part for _, part in found)
                print(f"{name:10}{reg:8g}{reg_m:6g}{moved:7.2f}" + "".join(f"{count:18g}" for count in counts))


if __name__ == "__main__":
    main()
