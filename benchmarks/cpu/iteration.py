"""What one iteration costs, beside reading the cost once."""

from __future__ import annotations

from collections.abc import Callable

from .bench import Bench
from .case import Problem, problem
from .measure import Sample, per_iteration
from .methods import Method, Missing
from .methods.ours import NAME, iterations
from .record import Row

#: Name of the floor among the rows.
FLOOR = "C.sum()"


def iteration(bench: Bench, n: int, order: str, reg: float, reg_m: float, peers: tuple[Method, ...] = ()) -> list[Row]:
    """Rows of the library, of the peers and of the floor, from rounds in which all take turns."""
    drawn = problem(n, order, reg, reg_m)
    return time_iterations(bench, drawn, peers, Row("iteration", n, "", eps=reg, tau=reg_m, order=order))


def time_iterations(bench: Bench, drawn: Problem, peers: tuple[Method, ...], like: Row) -> list[Row]:
    """The same for any problem; the rows are ``like`` with the figures filled in."""
    columns = {name: getattr(like, name) for name in ("case", "n", "batch", "eps", "tau", "order")}
    runs: dict[str, Callable[[int], object]] = {
        f"{NAME} (textbook)": iterations(drawn, "sinkhorn"), f"{NAME} (auto)": iterations(drawn, "auto")}
    methods: dict[str, Method] = {}
    missing = []
    for method in peers:
        try:
            runs[method.label] = method.prepare(drawn.but(reg_type=method.convention)).run
            methods[method.label] = method
        except Missing as absent:
            missing.append(Row(**columns, method=method.name, setting=method.setting, status="missing",
                               note=str(absent)))
    samples, floor = per_iteration(runs, drawn.cost.sum, bench.repeats, 0.15 if bench.measuring else 0.0)
    ours = samples[f"{NAME} (textbook)"]
    rows = [_row(columns, FLOOR, "", "kl", floor, floor, ours)]
    for label, sample in samples.items():
        method = methods.get(label)
        name, setting, convention = (method.name, method.setting, method.convention) if method else (
            NAME, "textbook" if sample is ours else "auto", "kl")
        rows.append(_row(columns, name, setting, convention, sample, floor, ours))
    return [bench.recorder.add(row) for row in rows + missing]


def _row(columns: dict[str, object], name: str, setting: str, convention: str, sample: Sample, floor: Sample,
         ours: Sample) -> Row:
    low, high = sample.quartiles
    note = "" if name == FLOOR else "slope of the time in iterations"
    row = Row(**columns, method=name, setting=setting, convention=convention,  # type: ignore[arg-type]
              seconds=sample.median, low=low, high=high, note=note)
    if low <= 0:
        row.status, row.note = "unsteady", "the slope is lost in the noise of what a call does once"
    else:
        row.of_floor, row.of_ours = sample.median / floor.median, sample.median / ours.median
    return row
