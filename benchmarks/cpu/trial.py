"""Which settings of each peer are its best: time to a violation of every one that was considered.

    python -m benchmarks.cpu.trial [--n 1024] [--budget 4] [--only OTT]

`methods.PEERS` has the winners.
"""

from __future__ import annotations

import argparse

import torch

from .case import ORDER, TARGETS, problem
from .methods import COMPILED, EAGER, Missing
from .methods.geomloss import ALL_GEOMLOSS
from .methods.ott import SETTINGS, ott_method
from .methods.pot import ALL_PLAIN, ALL_STABILISED, ALL_TRANSLATION_INVARIANT
from .search import search

CANDIDATES = (*ALL_PLAIN.values(), *(method for family in ALL_STABILISED.values() for method in family.values()),
              *ALL_TRANSLATION_INVARIANT.values(), *ALL_GEOMLOSS.values(), EAGER, COMPILED,
              *(ott_method(setting) for setting in SETTINGS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--budget", type=float, default=4.0, help="seconds a candidate and a target")
    parser.add_argument("--only", default="", help="candidates whose name contains this")
    arguments = parser.parse_args()
    print(f"n = m = {arguments.n}, clustered, {torch.get_num_threads()} threads; milliseconds (iterations) to the "
          "violation, or the violation that was reached\n")
    print("| | " + " | ".join(map(str, TARGETS)) + " |\n|---" + "|---" * len(TARGETS) + "|")
    for method in CANDIDATES:
        if arguments.only not in method.label:
            continue
        cells = []
        for target in TARGETS:
            drawn = problem(arguments.n, ORDER, target.reg, target.reg_m).but(reg_type=method.convention)
            try:
                found = search(method.prepare(drawn), drawn, target.violation, arguments.budget)
            except Missing as missing:
                cells.append(str(missing))
                continue
            cells.append(f"{1e3 * found.seconds:.0f} ({found.iterations})" if found.status == "reached" else
                         f"{found.status}: {found.verdict.violation:.1e} ({found.iterations})")
        print(f"| {method.label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
