"""Rows of the CSV: what was measured, by which method, and how it ended."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from .case import ORDER
from .machine import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "cpu.csv"


@dataclass
class Row:
    """One figure.  Times are in seconds; only their ratios mean anything elsewhere.

    Attributes:
        case: "iteration", "arrival" (time to a violation), "curve" (a point on the way there), "batch", "memory",
            "overhead", "gradient" (forward and backward) or "gradient memory".
        n, batch: Points a side, and problems solved at once.
        eps, tau, target: The problem, and the violation asked for.
        order: Of the points.
        method, setting, convention: What solved it; "kl" or "entropy".
        seconds, low, high: Median and quartiles; for a method that did not arrive, of its longest run.
        of_floor: Over the time of ``C.sum()`` in the same run; for "memory" and "gradient memory", bytes over the
            bytes of C; for "overhead", a whole solve over its sweeps alone.
        of_ours: Over the library's time on the same problem, in the same run.
        iterations: Iterations, or passes over the cost.
        violation: Of the answer, judged in float64.
        claimed: The violation that the library itself returned.
        plan_error: L1 distance to the true plan over its mass, in float64.
        loss: What is differentiated, and in what.
        backward: Seconds of the backward alone, a part of ``seconds``.
        gradient_error: Frobenius distance to the true gradient over its norm, in float64.
        status: "reached", "slow", "wrong", "zero plan", "not finite", "missing" or "unsteady" (lost in noise); "" where
            nothing was to be reached.
        note: How it was timed, where that is not plain.
    """

    case: str
    n: int
    method: str
    batch: int = 1
    eps: float | None = None
    tau: float | None = None
    target: float | None = None
    order: str = ORDER
    setting: str = ""
    convention: str = "kl"
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    of_floor: float | None = None
    of_ours: float | None = None
    iterations: int | None = None
    violation: float | None = None
    claimed: float | None = None
    plan_error: float | None = None
    loss: str = ""
    backward: float | None = None
    gradient_error: float | None = None
    status: str = ""
    note: str = ""


@dataclass
class Recorder:
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> Row:
        self.rows.append(row)
        return row


def write(rows: Iterable[Row], path: Path, where: dict[str, str]) -> None:
    """The rows as CSV, each with the machine's columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [column.name for column in fields(Row)] + list(where), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            cells = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in asdict(row).items()}
            writer.writerow(cells | where)


def read(path: Path) -> tuple[list[Row], dict[str, str]]:
    """What `write` wrote, now or before a column was there."""
    kinds = {column.name: str(column.type) for column in fields(Row)}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    if not lines:
        raise ValueError(f"no rows in {path.name}")
    rows = [Row(**{name: _parse(line[name], kind) for name, kind in kinds.items() if name in line}) for line in lines]
    return rows, {name: text for name, text in lines[0].items() if name not in kinds}


def _parse(text: str, kind: str) -> object:
    if "None" in kind and text == "":
        return None
    return int(text) if kind.startswith("int") else float(text) if kind.startswith("float") else text
