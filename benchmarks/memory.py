"""Peak memory of a streamed solve beside its inputs.

    python -m benchmarks.memory [--n 30000] [--d 64] [--passes 3]
"""

from __future__ import annotations

import argparse
import resource
import sys

import torch

from uotlib import CosineCost, SolverOptions, unbalanced_sinkhorn


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=30_000)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--passes", type=int, default=0, help="passes to run; 0 solves to the default tolerance")
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(arguments.n, arguments.d, generator=generator) for _ in range(2))
    unbalanced_sinkhorn(CosineCost(x[:64], z[:64]), reg=0.1, reg_m=1.0)  # what importing and threads take is not ours
    before = peak_bytes()
    settings = {"tol": 0, "max_iter": arguments.passes} if arguments.passes else {}
    solution = unbalanced_sinkhorn(CosineCost(x, z, materialize=False), reg=0.05, reg_m=1.0, **settings,
                                   options=SolverOptions(progress=True))
    moved = solution.barycentric(z)
    matrix = arguments.n * arguments.n * x.element_size()
    print(f"n = m = {arguments.n}, d = {arguments.d}: {solution}, {tuple(moved.shape)} values carried over")
    print(f"memory beside the inputs: {(peak_bytes() - before) / 2**20:.0f} MiB; the cost alone would be "
          f"{matrix / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
