"""The demo's pictures, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .descriptors import resized
from .matching import Match
from .scene import Scene, Truth
from .score import is_correct

#: Pixels along a cell that a warped picture carries over.
BLOCK = 4
RIGHT, WRONG, OCCLUDED, UNKNOWN = "#2ca02c", "#d62728", "#1f4e9c", "#9a9a9a"


def draw_all(folder: Path, scene: Scene, truth: Truth, matches: list[Match]) -> list[Path]:
    """Overview, kept mass and drawn matches; the last match is the unbalanced one whose mass is shown."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    left, right = (resized(image, BLOCK * truth.grid) for image in (scene.left, scene.right))
    aspect = scene.left.shape[0] / scene.left.shape[1]
    drawn = {"overview.png": _overview(left, right, truth, matches, aspect),
             "mass.png": _mass(left, truth, matches[-1], aspect),
             "matches.png": _matches(left, right, truth, matches, aspect)}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=80)
    return [folder / name for name in drawn]


def warp(right: Tensor, match: Match, grid: int) -> np.ndarray:
    """The right image brought to the left by a match, (side, side, 3).

    Every cell is a block of pixels.  Transport averages the blocks with the weights of the cell's row of the plan
    (`Solution.barycentric`); the nearest neighbour copies one.
    """
    blocks = right.reshape(grid, BLOCK, grid, BLOCK, 3).permute(0, 2, 1, 3, 4).reshape(grid * grid, -1)
    moved = blocks[torch.from_numpy(match.cell)] if match.solution is None else match.solution.barycentric(blocks)
    image = moved.reshape(grid, grid, BLOCK, BLOCK, 3).permute(0, 2, 1, 3, 4).reshape(right.shape)
    return image.clamp(0, 1).numpy()


def _axes(rows: int, columns: int, aspect: float, width: float = 4.4):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, (width * aspect + 0.35) * rows),
                                layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    return figure, axes


def _show(ax, image: np.ndarray, title: str, aspect: float, **settings) -> None:
    ax.imshow(image, extent=(0, 1, aspect, 0), aspect="equal", interpolation="nearest", **settings)
    ax.set_title(title, fontsize=12)


def _name(match: Match) -> str:
    names = {"cosine": "cosine nearest neighbour", "OT": f"balanced OT, eps {match.reg}",
             "UOT": f"UOT, eps {match.reg}, tau {match.reg_m}"}
    return names.get(match.method, match.method)


def _truth_image(truth: Truth) -> np.ndarray:
    """Visible white, occluded blue, unknown grey, (grid, grid, 3)."""
    from matplotlib.colors import to_rgb

    image = np.ones((truth.grid**2, 3))
    image[truth.occluded] = to_rgb(OCCLUDED)
    image[~truth.known] = to_rgb(UNKNOWN)
    return image.reshape(truth.grid, truth.grid, 3)


def _overview(left: Tensor, right: Tensor, truth: Truth, matches: list[Match], aspect: float):
    figure, axes = _axes(2, 3, aspect)
    _show(axes[0, 0], left.numpy(), "left", aspect)
    _show(axes[0, 1], right.numpy(), "right", aspect)
    _show(axes[0, 2], _truth_image(truth), "truth: visible, occluded (blue), unknown (grey)", aspect)
    for ax, match in zip(axes[1], matches, strict=True):
        share = 100 * is_correct(match.cell, truth)[truth.visible].mean()
        _show(ax, warp(right, match, truth.grid), f"right warped by {_name(match)}: {share:.1f}%", aspect)
        ax.title.set_fontsize(10.5)
    return figure


def _mass(left: Tensor, truth: Truth, match: Match, aspect: float):
    figure, axes = _axes(1, 3, aspect)
    _show(axes[0, 0], left.numpy(), "left", aspect)
    kept = np.minimum(match.kept, 1.0).reshape(truth.grid, truth.grid)
    _show(axes[0, 1], kept, f"share of mass kept, {_name(match)}", aspect, cmap="magma", vmin=0, vmax=1)
    bar = figure.colorbar(axes[0, 1].images[0], ax=axes[0, 1], shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=9)
    _show(axes[0, 2], _truth_image(truth), "truth: visible, occluded (blue), unknown (grey)", aspect)
    return figure


def _matches(left: Tensor, right: Tensor, truth: Truth, matches: list[Match], aspect: float):
    """Left and right side by side: a line for a regular subset of the visible cells, a dot for every wrong one."""
    from matplotlib.collections import LineCollection

    gap, grid = 0.04, truth.grid
    figure, axes = _axes(len(matches), 1, aspect / (2 + gap), width=9.0)
    down, across = max(grid // 16, 1), max(grid // 8, 1)
    row, column = np.divmod(np.arange(grid**2), grid)
    chosen = np.flatnonzero(truth.visible & (row % down == down // 2) & (column % across == across // 2))
    place = np.stack([(column + 0.5) / grid, (row + 0.5) / grid * aspect], 1)
    for ax, match in zip(axes[:, 0], matches, strict=True):
        for image, start in ((left, 0.0), (right, 1 + gap)):
            grey = image.mean(-1).numpy() * 0.6 + 0.4
            ax.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(start, start + 1, aspect, 0), interpolation="nearest")
        correct = is_correct(match.cell, truth)
        for good, colour, width in ((True, RIGHT, 0.5), (False, WRONG, 1.1)):
            lines = chosen[correct[chosen] == good]
            ends = place[match.cell[lines]] + [1 + gap, 0]
            ax.add_collection(LineCollection(np.stack([place[lines], ends], 1), colors=colour, linewidths=width,
                                             alpha=0.8))
            ax.scatter(*place[lines].T, s=7, color=colour, zorder=3)
        wrong = place[truth.visible & ~correct]
        ax.scatter(*wrong.T, s=2.5, color=WRONG, marker="s", linewidths=0)
        ax.set_xlim(0, 2 + gap)
        ax.set_ylim(aspect, 0)
        ax.set_aspect("equal")
        ax.set_title(f"{_name(match)}: {len(wrong)} of {int(truth.visible.sum())} matches wrong (red; lines: a subset)",
                     fontsize=11)
    return figure
