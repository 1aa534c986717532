"""The tables that a run ends with on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .methods.ours import NAME
from .record import Row
from .targets import backward_of_forward, findings

ANSWERS = {True: "reached", False: "NOT reached", None: "undecided"}


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; numbers, in all columns but the first, to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) if not column else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
            for line in lines]


def label(row: Row) -> str:
    return f"{row.method} ({row.setting})" if row.setting else row.method


def outcome(row: Row) -> str:
    """How a row ended, in a few words."""
    if row.status in ("", "reached"):
        return row.status
    if row.status in ("missing", "unsteady"):
        return row.note
    where = f"at violation {row.violation:.1e}" if row.violation is not None else ""
    if row.gradient_error is not None:
        return f"WRONG gradient, off by {row.gradient_error:.2g} of it" if row.status == "wrong" else row.status
    error = f", plan error {row.plan_error:.2g}" if row.plan_error is not None else ""
    return {"slow": f"not reached, {where}", "wrong": f"WRONG: stands still {where}",
            "zero plan": "WRONG: zero plan", "not finite": "WRONG: not finite"}[row.status] + error


def times(row: Row) -> str:
    """The ratio to the library in words."""
    if row.method in (NAME, "C.sum()") or row.of_ours is None:
        return ""
    if row.case == "gradient":  # a wrong gradient has taken its time too
        return f"{row.of_ours:.1f} x"
    if row.status not in ("", "reached", "slow"):
        return "-"
    return f"{'> ' * (row.status == 'slow')}{row.of_ours:.1f} x"


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """All of them, line by line."""
    for title, chosen in _groups(rows).items():
        yield ""
        yield title
        yield from ("  " + line for line in aligned(
            _gradients(chosen) if chosen[0].case.startswith("gradient") else _answers(chosen)))
    yield ""
    n = max((row.n for row in rows if row.batch == 1), default=0)
    yield f"targets, as measured in this run at n = {n}" + " (they are meant at 4096)" * (n != 4096)
    body = [[item.subject, item.wanted, item.found, ANSWERS[item.reached]] for item in findings(rows)]
    yield from ("  " + line for line in aligned([["", "wanted", "found", ""], *body]))


def _answers(rows: Sequence[Row]) -> list[list[str]]:
    head = ["", "x C.sum()", f"{NAME} is faster", "iterations", "violation (float64)", ""]
    return [head, *([label(row), _number(row.of_floor, ".2f"), times(row), _number(row.iterations, "d"),
                     _number(row.violation, ".1e"), outcome(row)] for row in rows)]


def _gradients(rows: Sequence[Row]) -> list[list[str]]:
    """Of "gradient" and of "gradient memory", whose numbers are bytes over the bytes of C."""
    memory = rows[0].case == "gradient memory"
    head = (["", "x C", f"{NAME} takes less", "", "iterations", "", ""] if memory else
            ["", "x C.sum()", f"{NAME} is faster", "backward / forward", "iterations", "gradient error (float64)", ""])
    return [head, *([label(row), _number(row.of_floor, ".2f"), times(row), _number(backward_of_forward(row), ".2f"),
                     _number(row.iterations, "d"), _number(row.gradient_error, ".1e"),
                     ", ".join(filter(None, (outcome(row), row.note * (row.status != "missing"))))] for row in rows)]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.case != "curve":
            groups.setdefault(_title(row), []).append(row)
    return groups


def _title(row: Row) -> str:
    size = f"{row.batch} x " * (row.batch > 1) + f"{row.n} x {row.n}"
    where = f"{size}, eps {row.eps:g}, tau {row.tau:g}"
    return {"iteration": f"one iteration: {where}, {row.order}",
            "arrival": f"time to violation {row.target or 0:g}: {where}, {row.order}",
            "batch": f"batch to violation {row.target or 0:g}: {where}",
            "memory": f"extra memory of a solve, of C: {where}",
            "overhead": f"a whole solve over its sweeps: {where}",
            "gradient": f"forward and backward, {row.loss}, to violation {row.target or 0:g}: {where}",
            "gradient memory": f"memory of forward and backward, {row.loss}, of C: {where}"}[row.case]
