"""What the demo prints."""

from __future__ import annotations

import math

import numpy as np

from .matching import Match
from .peer import Comparison
from .scene import Truth
from .score import Score, constant_shift, many_to_one

Row = tuple[Match, Score]

HEADER = ("method         eps    tau  correct  many-to-one  kept: visible  occluded  separation  passes  violation"
          "      gap  seconds")


def table_row(match: Match, score: Score) -> str:
    """One line under `HEADER`."""
    left = f"{match.method:<12}{_number(match.reg, '6g')} {_number(match.reg_m, '6g')}  {100 * score.correct:6.1f}%" \
           f"  {score.many_to_one:11d}"
    middle = f"  {_number(score.kept_visible, '13.3f')}  {_number(score.kept_occluded, '8.3f')}" \
             f"  {_number(score.separation, '10.3f')}"
    solution = match.solution
    passes, violation, gap = (None,) * 3 if solution is None else \
        (int(solution.n_iter), float(solution.violation), float(solution.gap))
    return f"{left}{middle}  {_number(passes, '6d')}  {_number(violation, '9.1e')}  {_number(gap, '7.1e')}" \
           f"  {match.seconds:7.2f}"


def _number(value: float | None, form: str) -> str:
    """The number, or a dash as wide."""
    width = int(form.split(".")[0].rstrip("defg"))
    return "-".rjust(width) if value is None else format(value, form)


def scene_lines(truth: Truth, errors: dict[int, float]) -> list[str]:
    """What the ground truth holds, and yardsticks that belong beside the table."""
    cells = truth.grid**2
    shift, share = constant_shift(truth)
    own = np.arange(cells) // truth.grid * truth.grid + truth.column
    return [
        f"sign: left x is right x - d (mean colour difference {errors[-1]:.3f}; with x + d it is {errors[1]:.3f})",
        f"cells: {cells}, of which {int((~truth.known).sum())} of unknown disparity (not scored), "
        f"{int(truth.outside.sum())} outside the right frame, {int(truth.covered.sum())} covered, "
        f"{int(truth.visible.sum())} visible (scored)",
        f"yardsticks: the best constant shift, {shift} cells, chosen with the truth, is right for {100 * share:.1f}%; "
        f"the true matches of the visible cells are many-to-one {many_to_one(own[truth.visible])} times",
    ]


def summary_lines(rows: list[Row]) -> list[str]:
    """Medians over the grid, and in how many of its settings the paper's order holds."""
    cosine = next(score for match, score in rows if match.method == "cosine")
    balanced = [(match, score) for match, score in rows if match.method == "OT"]
    unbalanced = [(match, score) for match, score in rows if match.method == "UOT"]
    lines = []
    for name, group in (("OT", balanced), ("UOT", unbalanced)):
        shares = np.array([100 * score.correct for _, score in group])
        many = np.median([score.many_to_one for _, score in group])
        lines.append(f"{name}: median over {len(group)} setting{'s' * (len(group) > 1)}: {np.median(shares):.1f}% "
                     f"correct ({shares.min():.1f} to {shares.max():.1f}), many-to-one {many:.0f}")
    same_eps = {match.reg: score for match, score in balanced}
    order = sum(same_eps[match.reg].correct < cosine.correct < score.correct for match, score in unbalanced)
    fewer = sum(score.many_to_one < cosine.many_to_one for _, score in unbalanced)
    less = sum(score.kept_occluded < score.kept_visible for _, score in unbalanced)
    total = len(unbalanced)
    return [*lines,
            f"correct: OT (same eps) < cosine < UOT in {order} of {total} settings",
            f"many-to-one: UOT below cosine in {fewer} of {total}",
            f"mass: UOT keeps less on occluded than on visible cells in {less} of {total}"]


def comparison_lines(rows: list[Comparison], reg: float, reg_m: float) -> list[str]:
    """uotlib beside POT, times as ratios of this run."""
    own = rows[0].seconds
    lines = [f"the same problem (eps {reg:g}, tau {reg_m:g}) given to POT; certificate in float64 throughout",
             "solver                       seconds  time ratio   plan mass  violation  |T - T*|/m(T*)  same match"]
    for row in rows:
        distance = f"{row.distance:14.1e}" if math.isfinite(row.distance) else f"{row.distance!s:>14}"
        lines.append(f"{row.solver:<27}  {row.seconds:7.2f}  {row.seconds / own:9.1f}x  {row.mass:10.6f}"
                     f"  {row.violation:9.1e}  {distance}  {100 * row.same_match:9.2f}%   {row.note}")
    lines.append("T* is the plan of uotlib's potentials (first line), built in float64")
    return lines
