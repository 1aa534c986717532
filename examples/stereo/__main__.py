"""`python -m examples.stereo`: match a real stereo pair and hold the answers against its disparity."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from .descriptors import descriptors
from .matching import TOLERANCE, Match, build_problem, nearest_neighbour, transport
from .peer import compare
from .pictures import draw_all
from .report import HEADER, Row, comparison_lines, scene_lines, summary_lines, table_row
from .scene import ground_truth, load_scene, photometric_error
from .score import score

#: The declared grid; the headline is its middle, chosen before anything was measured.
EPS, TAU = (0.002, 0.005, 0.01), (0.03, 0.05, 0.1)
HEADLINE = (0.005, 0.05)
#: Most iterations of each of POT's methods.
POT_ITERATIONS = {"sinkhorn": 100, "sinkhorn_stabilized": 30}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = _parse(argv)
    start = time.perf_counter()

    def say(text: str = "") -> None:
        print(text, flush=True)

    scene = load_scene(options.view)
    truth = ground_truth(scene.disparity, options.grid)
    height, width = scene.disparity.shape
    say(f"pair: {height} x {width}, {options.view} view; {options.grid} x {options.grid} cells a side, "
        f"{height / options.grid:.1f} x {width / options.grid:.1f} pixels each")
    for line in scene_lines(truth, {sign: photometric_error(scene, sign) for sign in (-1, 1)}):
        say(line)
    x, z = (descriptors(image, options.grid, options.patch, options.position) for image in (scene.left, scene.right))
    problem = build_problem(x, z)
    n = len(problem.a)
    say(f"descriptors: {options.patch} x {options.patch} patches, {x.shape[1]} numbers, position {options.position:g}; "
        f"masses of Eq. 3: totals {float(problem.a.sum()):.4f} and {float(problem.b.sum()):.4f}, "
        f"n a_i from {float(problem.a.min() * n):.2f} to {float(problem.a.max() * n):.2f}")
    say(f"solving to violation {TOLERANCE:g}; OT: uniform masses, both marginals exact (its gap column is the marginal "
        "error); UOT: masses of Eq. 3")
    say()

    rows: list[Row] = []

    def keep(match: Match) -> None:
        rows.append((match, score(match, truth)))
        say(table_row(*rows[-1]))

    say(HEADER)
    keep(nearest_neighbour(problem))
    for reg in (HEADLINE[0],) if options.quick else EPS:
        keep(transport(problem, reg, math.inf))
    for reg in (HEADLINE[0],) if options.quick else EPS:
        for reg_m in (HEADLINE[1],) if options.quick else TAU:
            keep(transport(problem, reg, reg_m))
    grid_rows = list(rows)
    keep(transport(problem, *HEADLINE, uniform=True))
    say()
    for line in summary_lines(grid_rows):
        say(line)

    shown = [_find(rows, "cosine", None, None), _find(rows, "OT", HEADLINE[0], math.inf),
             _find(rows, "UOT", *HEADLINE)]
    say(f"headline (eps {HEADLINE[0]:g}, tau {HEADLINE[1]:g}, chosen beforehand): "
        + ", ".join(f"{match.method} {100 * score(match, truth).correct:.1f}%" for match in shown))
    say()
    for path in draw_all(options.out, scene, truth, shown):
        say(f"wrote {path}")
    say()
    if not options.no_pot:
        say("asking POT ...")
        for line in comparison_lines(compare(problem, *HEADLINE, POT_ITERATIONS), *HEADLINE):
            say(line)
    say(f"done in {time.perf_counter() - start:.1f} s")
    return 0


def _find(rows: list[Row], method: str, reg: float | None, reg_m: float | None) -> Match:
    return next(match for match, _ in rows if (match.method, match.reg, match.reg_m) == (method, reg, reg_m))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.stereo", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the pictures (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the headline setting only")
    parser.add_argument("--no-pot", action="store_true", help="do not run POT")
    parser.add_argument("--grid", type=int, default=64, help="cells along each side (%(default)s)")
    parser.add_argument("--view", choices=("full", "square"), default="full",
                        help="the whole pair, or its central square with square cells (%(default)s)")
    parser.add_argument("--patch", type=int, default=7, help="side of the patches, odd (%(default)s)")
    parser.add_argument("--position", type=float, default=0.5, help="weight of the position (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
