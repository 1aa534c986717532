"""`python -m examples.toy_matching`: learn a matching through the plan, for several eps and three gradients."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .clouds import CLASSES, SEEN
from .learning import ANNEALED, GRADIENTS, UNROLLED, WIDTH, Learned, Task, train
from .report import draw, header, line, markdown
from .slopes import CLOUDS, slope_lines, slopes

#: eps of the trainings; None is annealed.
EPS = (0.05, 0.025, 0.01, 1e-3, 1e-4, None)
#: The training whose plan is drawn, where it is among them.
SHOWN = 0.025


def main(argv: Sequence[str] | None = None) -> int:
    """Run the toy; returns the exit status."""
    options = _parse(argv)
    start = time.perf_counter()
    task = Task(options.steps, options.points, options.outliers, options.tau, options.masses)
    print(f"{task.points} points a side, {CLASSES} classes, {100 * task.outliers:.0f}% outliers; linear maps "
          f"{SEEN} -> {WIDTH},")
    print(f"{task.masses} masses, tau {task.tau:g}, {task.steps} steps of Adam on fresh clouds, float64")
    print(f"annealed: eps from {ANNEALED[0]:g} to {ANNEALED[1]:g} over training; unrolled: {UNROLLED} iterations from "
          "zero; half-step: at the solution, the rest detached")
    print("right: share of the plan's mass on pairs of one class, fresh clouds, at the eps that training ended with")
    print("rows: the same for the average row of x that has a class; kept: mass of points over what they were given")
    print()
    print(header(options.seeds), flush=True)

    table: list[list[Learned]] = []
    for gradient in options.gradients:
        for eps in options.eps:
            table.append([train(eps, gradient, seed, task)
                          for seed in range(options.seeds)])
            print(line(table[-1]), flush=True)
    print()
    print("\n".join(markdown(table)))
    print()

    print(f"before training: columns that a row is spread over (partners), and gradients of {CLOUDS} fresh clouds: "
          "mean cosine of")
    print("two of them (agree) and with the implicit one of the same cloud (aligned), and norm; medians of seeds")
    for text in slope_lines([slopes(eps, options.seeds, task)
                             for eps in options.eps if eps is not None]):
        print(text)
    print()
    place = options.eps.index(SHOWN) if SHOWN in options.eps else 0
    shown = table[place][0]
    before = train(options.eps[place], shown.gradient, shown.seed, replace(task, steps=0))
    path = options.out / "learning.png"
    draw(path, table, before, shown)
    print(f"wrote {path}")
    print(f"done in {time.perf_counter() - start:.0f} s")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.toy_matching", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, default=Path("out/toy"), help="folder for the picture (%(default)s)")
    parser.add_argument("--steps", type=int, default=Task.steps, help="of Adam (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind (%(default)s)")
    parser.add_argument("--points", type=int, default=Task.points, help="points a side (%(default)s)")
    parser.add_argument("--outliers", type=float, default=Task.outliers, help="share without a class (%(default)s)")
    parser.add_argument("--tau", type=_positive, default=Task.tau, help="(%(default)s)")
    parser.add_argument("--masses", choices=("cross", "softmax", "uniform"), default=Task.masses,
                        help="cross and softmax are those of learned projections (%(default)s)")
    parser.add_argument("--eps", nargs="+", default=list(EPS), type=_eps, metavar="EPS",
                        help="while training: numbers, or 'annealed' (default: 0.05 to 1e-4 in five, and annealed)")
    parser.add_argument("--gradients", nargs="+", default=list(GRADIENTS), choices=GRADIENTS, help="(all)")
    options = parser.parse_args(argv)
    for name in ("steps", "seeds", "points"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.outliers < 1:
        parser.error(f"--outliers must be in [0, 1), got {options.outliers}")
    return options


def _eps(text: str) -> float | None:
    return None if text == "annealed" else _positive(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text!r}")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
