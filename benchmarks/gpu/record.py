"""The record of a device: benchmarks/results/<device>.json, written after each section."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .environment import IDENTITY, ROOT, slug
from .isolated import Ending
from .stage import Row

RESULTS = ROOT / "benchmarks" / "results"
#: Of the layout below; a record of another one is not read.
SCHEMA = 2
Record = dict[str, Any]
#: Endings of a row that the library must not have.
LOST = ("failed", "out of memory", "out of time")


def begin(environment: dict[str, Any], rehearsal: bool) -> Record:
    """A record without sections.

    Sections are ``{"status", "seconds", "rows", "note"}``; rows are flat, have a "status", and say "correct" where they
    were judged.
    """
    return {"schema": SCHEMA, "environment": environment | {"rehearsal": rehearsal}, "sections": {}, "wrong": 0}


def folder(rehearsal: bool) -> Path:
    """Where records are kept.  A rehearsal is no result and does not lie among them."""
    return ROOT / "out" if rehearsal else RESULTS


def path(where: Path, record: Record) -> Path:
    """The file of a record."""
    environment = record["environment"]
    return where / f"{'rehearsal' if environment['rehearsal'] else slug(environment['device'])}.json"


def resume(target: Path, record: Record) -> Record:
    """The record with the sections of an earlier run of the same sources on the same device.

    Raises:
        ValueError: if there is a file that is no such record, with what differs.
    """
    if not target.exists():
        return record
    earlier = read(target)
    here, there = record["environment"], earlier["environment"]
    differs = [name for name in IDENTITY if here[name] != there[name]]
    if differs:
        raise ValueError(f"{target.name} cannot be completed, its {differs[0]} is {there[differs[0]]!r} and here it is "
                         f"{here[differs[0]]!r}: run without --resume to replace it")
    return record | {"sections": earlier["sections"]}


def read(source: Path) -> Record:
    """A record from its file.

    Raises:
        ValueError: for another layout.
    """
    found = json.loads(source.read_text())
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"{source.name} is no record of layout {SCHEMA}")
    return found


def add(record: Record, section: str, ending: Ending, seconds: float) -> None:
    """Write a section down, in place of what was known of it."""
    record["sections"][section] = asdict(ending) | {"seconds": seconds}
    record["wrong"] = sum(len(list(wrong(name, found))) for name, found in record["sections"].items())


def write(record: Record, target: Path) -> None:
    """The file, replaced as a whole; without the places where this machine keeps things, which tracebacks name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    for place in sorted((str(ROOT), sys.prefix, sys.base_prefix), key=len, reverse=True):  # one may be in another
        text = text.replace(f"{place}/", "")
    beside = target.with_suffix(".tmp")
    beside.write_text(text)
    beside.replace(target)


def wrong(name: str, section: dict[str, Any]) -> Iterator[str]:
    """What of a section is not as it should be: it failed itself, or a row of the library's is wrong or failed."""
    if section["status"] == "failed":
        yield f"{name}: {section['note'].strip().splitlines()[-1] if section['note'] else 'failed'}"
    for row in section["rows"]:
        if is_ours(row) and (row.get("correct") is False or row["status"] in LOST):
            yield f"{name}: {line(row)}"


def is_ours(row: Row) -> bool:
    """Whether the row is of the library itself: peers are named."""
    return row.get("method", "uotlib").startswith("uotlib")


def ceilings(record: Record) -> dict[str, float]:
    """What the device can do, by name, as far as it was measured."""
    rows = record["sections"].get("ceilings", {}).get("rows", [])
    return {row["ceiling"]: row["value"] for row in rows if row["status"] == "ok" and row["value"] is not None}


def line(row: Row) -> str:
    """A row in one line."""
    return "  ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in row.items() if name != "trace" and value is not None)
