"""The picture of a run: violation against time, a panel an eps, a line a method.

    python -m benchmarks.cpu.figure [--csv benchmarks/results/cpu.csv] [--out docs/images/benchmark.png]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from .machine import ROOT
from .methods.ours import NAME
from .record import RESULTS, Row, read

PICTURE = ROOT / "docs" / "images" / "benchmark.png"
#: Violations that the axis shows: a plan that is wrong by more is drawn at the edge.
LEAST, MOST = 1e-6, 3.0
#: Colours that colour-blind readers can tell apart (Okabe and Ito), the library's first.
COLOURS = ("#000000", "#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73", "#999999", "#8C6D31")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Violation against time in units of ``C.sum()``, for the largest size that has curves.

    A dashed line solves the entropy convention.  A cross is where a method ends wrong.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = [row for row in rows if row.case == "curve"]
    if not curves:
        raise ValueError("the run recorded no curves")
    n = max(row.n for row in curves)
    curves = [row for row in curves if row.n == n]
    panels = sorted({(row.eps, row.tau, row.target) for row in curves}, key=lambda key: -key[0])
    labels = list(dict.fromkeys(_label(row) for row in sorted(curves, key=lambda row: row.method != NAME)))
    colours = dict(zip(labels, COLOURS * 3, strict=False))

    columns = min(2, len(panels))
    height = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(4.9 * columns, 3.2 * height + 1.1), squeeze=False,
                                   sharey=True, layout="constrained")
    lines = {}
    for axis, (eps, tau, target) in zip(axes.flat, panels, strict=False):
        here = [row for row in curves if (row.eps, row.tau, row.target) == (eps, tau, target)]
        unit = _unit(rows, n, eps)
        for label in labels:
            points = sorted((row for row in here if _label(row) == label), key=lambda row: row.seconds or 0.0)
            if points:
                lines[label] = _line(axis, points, unit, colours[label], label)
        axis.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", ylim=(LEAST, MOST * 1.3), title=f"ε = {eps:g}, τ = {tau:g}")
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.label_outer(remove_inner_ticks=False)
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    figure.supxlabel(f"time of the whole call, in reads of the cost (C.sum()), n = m = {n}", fontsize=10)
    figure.supylabel("violation, judged in float64 (dotted: asked for)", fontsize=10)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _line(axis, points, unit, colour, label):
    x = [(row.seconds or 0.0) / unit for row in points]
    y = [min(max(row.violation if row.violation == row.violation else MOST, LEAST), MOST) for row in points]
    ours = label.startswith(NAME)
    (line,) = axis.plot(x, y, color=colour, linewidth=2.2 if ours else 1.3, marker="o" if ours else ".",
                        markersize=4 if ours else 5, linestyle="--" if "entropy" in label else "-", label=label,
                        zorder=3 if ours else 2)
    if y[-1] >= MOST:
        axis.plot(x[-1:], y[-1:], marker="x", color=colour, markersize=8, zorder=4)
    return line


def _label(row: Row) -> str:
    entropy = " [entropy]" * (row.convention == "entropy")
    return f"{row.method}{entropy}" if row.method == NAME else f"{row.method} ({row.setting}){entropy}"


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
