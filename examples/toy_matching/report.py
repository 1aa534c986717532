"""What the toy prints, and its picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from .learning import ANNEALED, EVALUATED, GRADIENTS, Learned

#: Steps over which a curve of the picture is averaged: every step has its own clouds.
SMOOTH = 15


def header(seeds: int) -> str:
    width = 6 * seeds + 2
    return (f"{'eps':<10}{'gradient':<11}{'right, each seed':>{max(width, 18)}}  median  at {EVALUATED:g}  rows"
            "  kept: class  outlier  ms a step")


def line(runs: Sequence[Learned]) -> str:
    """One line under `header`: the runs of one eps and gradient."""
    each = "".join(f"{run.share:6.2f}" for run in runs)
    pace = median(1e3 * run.seconds / max(len(run.curve), 1) for run in runs)
    kept_outliers = median(run.kept_outliers for run in runs)
    fallen = "-" if math.isnan(kept_outliers) else f"{kept_outliers:.2f}"  # there may be none
    return (f"{runs[0].eps:<10}{runs[0].gradient:<11}{each:>{max(6 * len(runs) + 2, 18)}}"
            f"{median(run.share for run in runs):8.2f}{median(run.share_sharp for run in runs):10.2f}"
            f"{median(run.rows for run in runs):6.2f}"
            f"{median(run.kept for run in runs):13.2f}{fallen:>9}{pace:11.0f}")


def markdown(table: Sequence[Sequence[Learned]]) -> list[str]:
    """The table of docs/learning.md: an eps a line, median and range of `Learned.share`, and rows."""
    found = {(runs[0].eps, runs[0].gradient): runs for runs in table}
    columns = [gradient for gradient in GRADIENTS if any(key[1] == gradient for key in found)]
    lines = ["| eps while training | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for eps in dict.fromkeys(key[0] for key in found):
        cells = [_cell(found.get((eps, gradient))) for gradient in columns]
        name = f"{ANNEALED[0]:g} -> {ANNEALED[1]:g}" if eps == "annealed" else eps
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(runs: Sequence[Learned] | None) -> str:
    if runs is None:
        return "-"
    shares = [run.share for run in runs]
    rows = median(run.rows for run in runs)
    return f"{median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}), rows {rows:.2f}"


def draw(path: Path, table: Sequence[Sequence[Learned]], before: Learned, after: Learned) -> None:
    """Plan before and after training, curves of the first gradient, and where every training ended."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9.6, 7.6), layout="constrained")
    for ax, run, when in ((axes[0, 0], before, "before"), (axes[0, 1], after, "after")):
        plan = (run.plan / run.plan.max()).sqrt().numpy()
        ax.imshow(plan, cmap="magma", interpolation="nearest")
        ax.set_title(f"plan {when} training, eps {run.eps} (fresh clouds: {100 * run.share:.0f}% right)", fontsize=11)
        ax.set_xlabel("points of z by class, outliers last")
        ax.set_ylabel("points of x by class, outliers last")
        ax.set_xticks([])
        ax.set_yticks([])
    _curves(axes[1, 0], [runs for runs in table if runs[0].gradient == table[0][0].gradient])
    _ends(axes[1, 1], table)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _curves(ax, table: Sequence[Sequence[Learned]]) -> None:
    for runs in table:
        shares = [mean(step) for step in zip(*(run.curve for run in runs), strict=True)]
        smooth = [mean(shares[max(step - SMOOTH + 1, 0):step + 1]) for step in range(len(shares))]
        ax.plot(range(1, len(smooth) + 1), smooth, label=runs[0].eps)
    ax.set_ylim(0, 1)
    ax.set_xlabel("step of Adam")
    ax.set_ylabel("share of the plan on right pairs")
    ax.set_title(f"training, {table[0][0].gradient} gradients (mean of seeds, of {SMOOTH} steps)", fontsize=11)
    ax.legend(title="eps", fontsize=9)


def _ends(ax, table: Sequence[Sequence[Learned]]) -> None:
    places = {eps: place for place, eps in enumerate(dict.fromkeys(runs[0].eps for runs in table))}
    for shift, gradient in zip((-0.15, 0.0, 0.15), GRADIENTS, strict=True):
        group = [runs for runs in table if runs[0].gradient == gradient]
        if not group:
            continue
        (drawn,) = ax.plot([places[runs[0].eps] + shift for runs in group],
                           [median(run.share for run in runs) for runs in group], "_", markersize=16, mew=3,
                           label=gradient)
        for runs in group:
            ax.plot([places[runs[0].eps] + shift] * len(runs), [run.share for run in runs], "o", markersize=4,
                    color=drawn.get_color(), alpha=0.6)
    ax.set_xticks(list(places.values()), list(places))
    ax.set_ylim(0, 1)
    ax.set_xlabel("eps while training")
    ax.set_title("fresh clouds after training: every seed, and the median", fontsize=11)
    ax.legend(fontsize=9)
