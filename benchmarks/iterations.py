"""Passes over the cost to a given violation: textbook Sinkhorn, the parts of ``method="auto"``, and truncated Newton.

    python -m benchmarks.iterations [--n 512] [--seeds 3] [--newton] [--limit 3000] [--set anderson_depth=6 ...]

``--set`` compares single settings of `SolverOptions` with the default instead of the parts.  Counts do not depend on
the machine.  Problems are clustered unit vectors (`problems.clustered`), in float64, each drawn with a seed of its own.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable

import torch

from benchmarks.newton import newton_passes
from benchmarks.problems import clustered
from uotlib import ConvergenceWarning, SolverOptions, unbalanced_sinkhorn

#: (eps, tau, violation), from easy to hard.
CASES = ((1e-1, 1.0, 1e-4), (1e-2, 1.0, 1e-4), (1e-3, 0.1, 1e-3), (1e-4, 0.1, 1e-3), (1e-4, 1.0, 1e-3))

#: Settings, each adding one part to the one before.
PARTS: dict[str, tuple[str, SolverOptions]] = {
    "textbook": ("sinkhorn", SolverOptions()),
    "+ annealing, translation": ("auto", SolverOptions(anderson_depth=0, anneal_order=0)),
    "+ Anderson": ("auto", SolverOptions(anneal_order=0)),
    "+ path following": ("auto", SolverOptions()),
}


def passes(case: tuple[float, float, float], n: int, seed: int, method: str, options: SolverOptions,
           limit: int) -> float:
    """Iterations to the case's violation; inf if there were more than ``limit``."""
    reg, reg_m, tol = case
    cost, a, b = clustered(n, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=reg_m, tol=tol, method=method, max_iter=limit,
                                       options=options)
    return float(solution.n_iter) if solution.converged else float("inf")


def _options(text: str) -> SolverOptions:
    """SolverOptions from "name=value"."""
    name, _, value = text.partition("=")
    kind = type(getattr(SolverOptions(), name))
    return SolverOptions(**{name: kind(value)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=3000, help="passes after which a run is given up")
    parser.add_argument("--newton", action="store_true", help="add the truncated-Newton trial (slow)")
    parser.add_argument("--tighten", type=float, default=1.0, help="factor on the violations asked for")
    parser.add_argument("--set", nargs="*", metavar="NAME=VALUE", default=[], help="settings to compare")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(reg, tau, tol * arguments.tighten) for reg, tau, tol in CASES]
    parts = PARTS if not arguments.set else {"default": ("auto", SolverOptions())} | {
        text: ("auto", _options(text)) for text in arguments.set}

    rows: dict[str, Callable[[tuple[float, float, float], int], float]] = {
        name: lambda case, seed, setting=setting: passes(case, arguments.n, seed, *setting, arguments.limit)
        for name, setting in parts.items()}
    if arguments.newton:
        rows["Newton-CG after annealing"] = lambda case, seed: newton_passes(
            *clustered(arguments.n, seed=seed), *case, limit=arguments.limit)
    heads = [f"eps {reg:g}, tau {tau:g}, violation {tol:g}" for reg, tau, tol in cases]
    print(f"passes over the cost, n = m = {arguments.n}, median of {arguments.seeds} problems\n")
    print("| | " + " | ".join(heads) + " |\n|---" * 1 + "|---" * len(heads) + "|")
    for name, count in rows.items():
        cells = []
        for case in cases:
            median = statistics.median(count(case, seed) for seed in range(arguments.seeds))
            cells.append(f"> {arguments.limit}" if median == float("inf") else f"{median:g}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
