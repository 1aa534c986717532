"""The README's table, from the CSV of a run.

    python -m benchmarks.cpu.table [--csv benchmarks/results/cpu.csv] [--check]

Writes between two comments of README.md; ``--check`` writes nothing and says whether the table is current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .case import ORDER, TARGETS, Target
from .gradients import LOSSES
from .machine import ROOT
from .methods.ours import NAME
from .record import RESULTS, Row, read
from .targets import backward_of_forward, best, peers_of

BEGIN = "<!-- benchmarks: begin (python -m benchmarks.cpu.table) -->"
END = "<!-- benchmarks: end -->"
README = ROOT / "README.md"


def table(rows: Sequence[Row], where: dict[str, str]) -> str:
    """Markdown: methods down, an iteration and the times to each violation across, as multiples of the library's."""
    n = max(row.n for row in rows if row.case == "arrival")
    gradients = [row for row in rows if row.case == "gradient" and row.n == n and row.loss == LOSSES[0]]
    rows = [row for row in rows if row.n == n and row.batch == 1 and row.order == ORDER]
    targets = [target for target in TARGETS if peers_of(rows, target, n)]
    heads = ["n = m = " + str(n), "one iteration",
             *(f"ε {_power(target.reg)}, τ {target.reg_m:g}, to {_power(target.violation)}" for target in targets)]
    ours = [f"**{NAME}**", _our_iteration(rows), *(_ours(rows, target) for target in targets)]
    lines = [ours]
    names = dict.fromkeys(row.method for row in rows if row.case == "arrival" and row.method != NAME
                          and row.status != "missing")
    for name in names:
        lines.append([name, _iteration(rows, name), *(_cell(rows, name, target, n) for target in targets)])
    if gradients:  # in a run of a few cases there may be none
        heads.append(f"ε {_power(gradients[0].eps or 0.0)}, τ {gradients[0].tau:g}, and the plan's gradient to C")
        for line, name in zip(lines, [NAME, *names], strict=True):
            line.append(_gradient(gradients, name))
    lines = [heads, ["---"] * len(heads), *lines]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{body}\n\n{_machine(where)}\n"


def _machine(where: dict[str, str]) -> str:
    busy = where.get("busy", "unknown")
    beside = "" if busy in ("0.0", "0.1", "0.2", "unknown") else f", **beside {busy} cores' work of others**"
    return (f"Multiples of {NAME}'s time in the same run: {where['cores']} cores of {where['cpu']}, {where['simd']}, "
            f"float32, {where['date']}, commit {where['commit']}{beside}.")


def _our_iteration(rows: Sequence[Row]) -> str:
    row = next((row for row in rows if row.case == "iteration" and row.method == NAME and row.setting == "textbook"
                and row.eps == 0.05), None)
    return "1" if row is None else f"1 ({row.of_floor:.1f} × `C.sum()`)"


def _ours(rows: Sequence[Row], target: Target) -> str:
    row = next((row for row in rows if row.case == "arrival" and row.method == NAME and row.convention == "kl"
                and (row.eps, row.tau, row.target) == (target.reg, target.reg_m, target.violation)), None)
    if row is None:
        return ""
    return f"1 ({row.iterations} passes)" if row.status == "reached" else f"not reached: {row.violation:.0e}"


def _iteration(rows: Sequence[Row], name: str) -> str:
    ratios = [row.of_ours for row in rows if row.case == "iteration" and row.method == name and row.of_ours]
    return ratio(min(ratios)) if ratios else ""


def _cell(rows: Sequence[Row], name: str, target: Target, n: int) -> str:
    """The best setting of a method: what it took, what it did not reach, or how its plan is wrong."""
    mine = [row for row in peers_of(rows, target, n) if row.method == name]
    if not mine:
        return ""
    arrived = best([row for row in mine if row.status == "reached"]) or min(
        (row for row in mine if row.status == "slow"), key=lambda row: row.violation or 0.0, default=None)
    if arrived is None:
        row = min(mine, key=lambda row: row.plan_error or 0.0)
        return "zero plan" if row.status == "zero plan" else f"wrong: plan error {row.plan_error:.2g}"
    multiple = ratio(arrived.of_ours or 0.0)
    return multiple if arrived.status == "reached" else f"> {multiple} (is at {_short(arrived.violation or 0.0)})"


def _gradient(rows: Sequence[Row], name: str) -> str:
    """Forward and backward; of the library, the backward over the forward."""
    row = next((row for row in rows if row.method == name and row.status != "missing"), None)
    if row is None:
        return ""
    if name == NAME:
        return f"1 (backward {backward_of_forward(row) or 0.0:.1f} × forward)"
    wrong = f" (gradient wrong by {row.gradient_error:.1g})" if row.status == "wrong" else ""
    return ratio(row.of_ours or 0.0) + wrong


def ratio(value: float) -> str:
    """A multiple with two digits."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def _power(value: float) -> str:
    return f"{value:g}" if value >= 0.1 else f"{value:.0e}".replace("e-0", "e-")


def _short(value: float) -> str:
    return f"{value:.1g}" if value >= 1e-3 else f"{value:.0e}"


def replace(text: str, content: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """The text with what is between the markers replaced."""
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError("README.md must have the two markers of the table once each, in order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}{end}{rest.split(end)[1]}"


def put(readme: Path, content: str, markers: tuple[str, str], command: str, check: bool) -> int:
    """Write between the markers, or only look whether that is there; what was found, in a line and as exit status."""
    text = readme.read_text()
    wanted = replace(text, content, markers)
    if text == wanted:
        print(f"{readme.name}: the table is current")
        return 0
    if check:
        print(f"{readme.name}: the table is not what the results give: {command}", file=sys.stderr)
        return 1
    readme.write_text(wanted)
    print(f"{readme.name}: table written")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--check", action="store_true", help="only say whether the table is what the CSV gives")
    chosen = parser.parse_args(arguments)
    return put(chosen.readme, table(*read(chosen.csv)), (BEGIN, END), "python -m benchmarks.cpu.table", chosen.check)


if __name__ == "__main__":
    sys.exit(main())
