"""The README's part on GPUs, from the records in benchmarks/results.

    python -m benchmarks.gpu.table [--results DIR] [--check]

Writes between two comments of README.md; ``--check`` writes nothing and says whether they hold what the records give.
A record whose kernels were others is said to be older than the kernels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.cpu.table import README, put, ratio

from .environment import KERNELS, digest
from .record import RESULTS, Record, is_ours, read
from .stage import Row

BEGIN = "<!-- gpu: begin (python -m benchmarks.gpu.table) -->"
END = "<!-- gpu: end -->"
NOTHING = ("Nothing has been measured on a GPU yet: `python -m benchmarks.gpu` checks and measures everything there,\n"
           "and `python -m benchmarks.gpu.table` puts the result here ([docs/gpu.md](docs/gpu.md)).\n")
#: (heading, section, what its rows have), a column each.
COLUMNS: tuple[tuple[str, str, Row], ...] = (
    ("iteration, n = m = 4096", "dense", {"n": 4096, "batch": 1, "eps": 1e-2}),
    ("iteration, 8 of them", "dense", {"n": 4096, "batch": 8, "eps": 1e-2}),
    ("iteration, 64 of 512 x 512", "small", {"case": "iteration", "n": 512, "batch": 64}),
    ("solve, 4096 of 32 x 32", "small", {"case": "solve", "n": 32, "batch": 4096}),
    ("ε 1e-2, τ 1, to 1e-4", "arrival", {"n": 4096, "eps": 1e-2}),
    ("ε 1e-4, τ 0.1, to 1e-3", "arrival", {"n": 4096, "eps": 1e-4, "tau": 0.1}),
    ("gradient to C", "backward", {"to": "C", "n": 4096}),
    ("gradient to features", "backward", {"to": "x", "n": 4096, "d": 64}),
)
#: Matrix-free iterations: (cost, n, d).
FEATURES = (("squared Euclidean", 16384, 128), ("squared Euclidean", 65536, 64), ("squared Euclidean", 100000, 64),
            ("cosine", 16384, 64))


#: Packages that are named beneath.
VERSIONS = ("torch", "triton", "flash_sinkhorn", "geomloss", "pot", "ott_jax")
OURS = "**uotlib**"


def content(records: Sequence[Record]) -> str:
    """Markdown of all records, or the sentence that there is none."""
    return "\n".join(_device(record) for record in records) if records else NOTHING


def records(folder: Path) -> list[Record]:
    """Of results, by device; rehearsals and records of another layout are none.

    Raises:
        ValueError: for a file that is no record.
    """
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    return [record for record in found if not record["environment"]["rehearsal"]]


def _device(record: Record) -> str:
    where = record["environment"]
    heads = [(heading, _rows(record, section, wanted)) for heading, section, wanted in COLUMNS]
    free = [(f"{kind}, n = m = {n}, d = {d}", _rows(record, "features", {"cost": kind, "n": n, "d": d}))
            for kind, n, d in FEATURES]
    lines = [f"**{where['device']}**" + _caveats(record), ""]
    lines += _table(heads, _dense_cell, lambda row: row["method"].partition(",")[0])
    lines += _table(free, _feature_cell, lambda row: row["method"])
    versions = ", ".join(f"{name} {where[name]}" for name in VERSIONS if where[name])
    lines.append(f"Times of uotlib, multiples of them for the others: {versions}, {where['date']}, commit "
                 f"{(where['commit'] or 'unknown')[:7]}{'+' if where['dirty'] else ''}.")
    return "\n".join(lines) + "\n"


def _caveats(record: Record) -> str:
    stale = record["environment"]["kernels"] != digest(KERNELS)
    open_ones = [name for name, section in record["sections"].items() if section["status"] != "done"]
    return ((", **older than the kernels**: `python -m benchmarks.gpu` measures again" if stale else "")
            + (f", **{record['wrong']} results wrong**" if record["wrong"] else "")
            + (f", not finished: {', '.join(open_ones)}" if open_ones else ""))


def _rows(record: Record, section: str, wanted: Row) -> list[Row]:
    rows = record["sections"].get(section, {}).get("rows", [])
    return [row for row in rows if row.get("seconds") and all(row.get(name) == value for name, value in wanted.items())]


def _table(columns: list[tuple[str, list[Row]]], cell: Callable[[Row, Row | None], str],
           name_of: Callable[[Row], str]) -> list[str]:
    """Methods down, each with the best of its settings; columns without rows are left out."""
    chosen = [(heading, _best(rows, name_of)) for heading, rows in columns if rows]
    if not chosen:
        return []
    names = dict.fromkeys([OURS, *(name for _, best in chosen for name in best if not name.startswith(OURS))])
    lines = [["", *(heading for heading, _ in chosen)], ["---"] * (len(chosen) + 1)]
    lines += [[name, *(cell(best[name], best.get(_ours(best[name]))) if name in best else "" for _, best in chosen)]
              for name in names]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _best(rows: list[Row], name_of: Callable[[Row], str]) -> dict[str, Row]:
    """Of each method the quickest row that is right, else the quickest."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row["status"] != "ok", row["seconds"])):
        # Of the library's, those that were asked for another precision are beside it as others are.
        best.setdefault(_ours(row) if is_ours(row) and "," not in row["method"] else name_of(row), row)
    return best


def _ours(row: Row) -> str:
    """Name of the library's row on the same problem: a peer is compared in its convention of the entropic term."""
    return f"{OURS} entropy" if row.get("convention") == "entropy" else OURS


def _dense_cell(row: Row, ours: Row | None) -> str:
    if is_ours(row):
        share = f" ({100 * row['of_copy']:.0f}% of a copy's bytes/s)" if row.get("of_copy") else ""
        return _time(row["seconds"]) + share + _peak(row)
    if ours is None:
        return ""
    multiple = ratio(row["seconds"] / ours["seconds"])
    if row["status"] == "ok":
        return multiple + _peak(row)
    if row["status"] == "wrong" and "error" in row:
        return f"{multiple} (wrong by {row['error']:.1g}){_peak(row)}"
    return f"> {multiple} (is at {row['violation']:.1g})" if row["status"] == "slow" else str(row["status"])


def _feature_cell(row: Row, ours: Row | None) -> str:
    """With the error of the plan that each makes: a quicker product is a coarser one."""
    error = f", error {row['error']:.0e}" if row.get("error") is not None else ""
    if row is ours:
        share = f", {100 * row['of_tf32']:.0f}% of a tf32 product" if row.get("of_tf32") else ""
        return _time(row["seconds"]) + share + error
    return f"{ratio(row['seconds'] / ours['seconds'])}{error}" if ours else ""


def _peak(row: Row) -> str:
    if not row.get("peak_bytes") or not row.get("cost_bytes"):
        return ""
    return f", {row['peak_bytes'] / row['cost_bytes']:.1f} × C"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.table", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--check", action="store_true", help="only say whether the README holds what the records give")
    chosen = parser.parse_args(words)
    return put(chosen.readme, content(records(chosen.results)), (BEGIN, END), "python -m benchmarks.gpu.table",
               chosen.check)


if __name__ == "__main__":
    sys.exit(main())
