"""`python -m examples.unite.curves RUN`: what a metrics.jsonl says, drawn: quality of held-out pairs, and losses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

from .logs import read

#: Share of a run's steps that each point of a loss is the mean of, backwards.
SMOOTHING = 0.03
#: Held-out pairs: names in the file, and in the legend.
QUALITY = {"validation/psnr": "output", "validation/warped_psnr": "warped exemplar"}


def curves(lines: Sequence[dict[str, Any]], prefix: str) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each metric of that prefix, in the order of its first line."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(prefix):
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    return found


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Each value's mean with those before it, ``width`` in all where there are so many."""
    return [mean(values[max(end - width, 0):end]) for end in range(1, len(values) + 1)]


def draw(path: Path, lines: Sequence[dict[str, Any]], title: str) -> None:
    """Write the picture.

    Args:
        path: Where; the ending says the format.
        lines: Of `logs.read`.
        title: Above it.

    Raises:
        ValueError: The lines have no held-out pairs or no losses.
    """
    quality, losses = curves(lines, "validation/"), curves(lines, "generator/")
    if "validation/psnr" not in quality or not losses:
        raise ValueError("metrics have no validation/psnr, or no losses yet")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, label in QUALITY.items():
        if name in quality:
            left.plot(*quality[name], marker="o", markersize=3, label=label)
    left.set_ylabel("PSNR of held-out pairs, dB")
    left.legend(fontsize=8)
    styles = cycle(["-", "--"])
    for name, (steps, values) in (losses | curves(lines, "discriminator/total")).items():
        if name != "generator/total":
            label = name.partition("/")[2] if name in losses else "discriminator"
            right.plot(steps, smoothed(values, max(round(SMOOTHING * len(values)), 1)), next(styles), linewidth=1.2,
                       label=label)
    right.set_yscale("symlog", linthresh=0.1)  # adversarial terms change their sign
    right.set_ylabel("weighted losses")
    right.legend(fontsize=7, ncols=2)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.unite.curves", description=__doc__.split(": ", 1)[1])
    parser.add_argument("run", type=Path, help="a run's folder, or its metrics.jsonl")
    parser.add_argument("-o", "--out", type=Path, help="the picture (curves.png in the run's folder)")
    options = parser.parse_args(argv)
    file = options.run / "metrics.jsonl" if options.run.is_dir() else options.run
    out = options.out or file.parent / "curves.png"
    if not file.is_file():
        print(f"no metrics at {file}", file=sys.stderr)
        return 1
    try:
        lines = read(file)
        judge = next((line["judge"] for line in lines if "judge" in line), "none")
        draw(out, lines, f"{file.parent.name}, judged by {judge}")
    except (ValueError, OSError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
