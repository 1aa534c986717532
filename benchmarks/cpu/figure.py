"""The picture of a run: violation against time, a panel an eps, a line a method.

    python -m benchmarks.cpu.figure [--csv benchmarks/results/cpu.csv] [--out docs/images/benchmark.png]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .machine import ROOT
from .methods.ours import NAME
from .record import RESULTS, Row, read

PICTURE = ROOT / "docs" / "images" / "benchmark.png"
#: Violations that the axis shows: a plan that is wrong by more is drawn at the edge.
LEAST, MOST = 1e-6, 3.0
#: Colours that colour-blind readers can tell apart (Okabe and Ito), the library's first.
COLOURS = ("#000000", "#777777", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#8C6D31", "#B8B800")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Violation against time in units of ``C.sum()``, for the largest size that has curves.

    Dotted is what was asked for.  A dashed line solves the entropy convention.  A cross is where a method ends wrong.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    curves = [row for row in rows if row.case == "curve"]
    if not curves:
        raise ValueError("the run recorded no curves")
    n = max(row.n for row in curves)
    curves = [row for row in curves if row.n == n]
    panels = sorted({(row.eps, row.tau, row.target) for row in curves}, key=lambda key: -key[0])
    labels = _labels(curves)
    colours = dict(zip(labels.values(), COLOURS * 3, strict=False))

    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(4.9 * columns, 3.2 * height + 1.1), squeeze=False,
                                   sharey=True, layout="constrained")
    lines = {}
    for axis, (eps, tau, target) in zip(axes.flat, panels, strict=False):
        here = [row for row in curves if (row.eps, row.tau, row.target) == (eps, tau, target)]
        unit = _unit(rows, n, eps)
        for key, label in labels.items():
            points = sorted((row for row in here if _key(row) == key), key=lambda row: row.seconds or 0.0)
            if points:
                lines[label] = _line(axis, points, unit, colours[label], label)
        axis.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", ylim=(LEAST, MOST * 1.3), title=f"ε = {eps:g}, τ = {tau:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())  # within a decade it would number every line
        axis.grid(alpha=0.25, linewidth=0.5)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel(f"time of a whole call, in times of C.sum(), n = m = {n}")
    for axis in axes[:, 0]:
        axis.set_ylabel("violation (float64)")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _line(axis: Any, points: Sequence[Row], unit: float, colour: str, label: str) -> Any:
    """What was reached within each time: a run that took longer and is no nearer adds nothing but the end."""
    ours, entropy = label.startswith(NAME), points[0].convention == "entropy"
    front: list[tuple[float, float]] = []
    for row in points:
        violation = row.violation if row.violation is not None and not math.isnan(row.violation) else MOST
        place = (row.seconds or 0.0) / unit, min(max(violation, LEAST), MOST)
        if not front or place[1] < front[-1][1]:
            front.append(place)
    last = (points[-1].seconds or 0.0) / unit
    if last > front[-1][0] and front[-1][1] >= (points[0].target or 0.0):
        front.append((last, front[-1][1]))
    x, y = zip(*front, strict=True)
    (line,) = axis.plot(x, y, color=colour, linewidth=2.2 if ours else 1.3, marker="o" if ours else ".",
                        markersize=4 if ours else 5, linestyle="--" if entropy else "-", zorder=3 if ours else 2)
    if y[-1] >= MOST:
        axis.plot(x[-1:], y[-1:], marker="x", color=colour, markersize=8, zorder=4)
    return line


def _key(row: Row) -> tuple[str, str, str]:
    return row.method, row.setting, row.convention


def _labels(curves: Sequence[Row]) -> dict[tuple[str, str, str], str]:
    """Names for the legend, the library's first; with the setting where a method has several."""
    keys = list(dict.fromkeys(_key(row) for row in sorted(curves, key=lambda row: row.method != NAME)))
    settings = {method: {setting for name, setting, _ in keys if name == method} for method, _, _ in keys}
    return {key: key[0] + f" ({key[1]})" * (len(settings[key[0]]) > 1) + ", entropy" * (key[2] == "entropy")
            for key in keys}


def _unit(rows: Sequence[Row], n: int, eps: float) -> float:
    """Seconds of ``C.sum()`` beside the library's solve."""
    units = [row.seconds / row.of_floor for row in rows
             if row.case == "arrival" and row.method == NAME and row.n == n and row.eps == eps
             and row.seconds and row.of_floor]
    return statistics.median(units) if units else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    draw(read(arguments.csv)[0], arguments.out)
    print(f"wrote {arguments.out.name}")


if __name__ == "__main__":
    main()
