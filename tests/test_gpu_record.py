"""What becomes of the record of a GPU: the README's table, its age, and what may be added to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import environment, isolated, record, table

ROOT = Path(__file__).parents[1]


def measured(**changes: Any) -> record.Record:
    """A record of two methods."""
    current = record.begin({"device": "Some GPU 9", "commit": "abcdef0123", "dirty": False, "date": "2026-01-01",
                            "driver": "1", "sources": "old", "kernels": environment.digest(environment.KERNELS),
                            **dict.fromkeys(table.VERSIONS, "1.0"), **changes}, rehearsal=False)
    shape = {"n": 4096, "batch": 1, "eps": 1e-2, "status": "ok", "correct": True}
    rows = [{"method": "uotlib sinkhorn", **shape, "graph": True, "seconds": 2e-5, "of_copy": 0.8},
            {"method": "uotlib sinkhorn", **shape, "graph": False, "seconds": 9e-5, "of_copy": 0.2},
            {"method": "torch, two logsumexp", **shape, "graph": True, "seconds": 4e-4}]
    cell = {"cost": "squared Euclidean", "n": 16384, "d": 128, "status": "ok"}
    free = [{"method": "uotlib sinkhorn", **cell, "seconds": 1e-3, "error": 1e-4, "correct": True},
            {"method": "uotlib sinkhorn, tf32", **cell, "seconds": 4e-4, "error": 0.1},
            {"method": "flash-sinkhorn, alternating, tf32", **cell, "seconds": 5e-4, "error": 0.2, "status": "wrong"}]
    target = {"n": 4096, "eps": 1e-2, "convention": "kl"}
    ways = [{"method": "uotlib auto", **target, "seconds": 1e-3, "status": "ok"},
            {"method": "uotlib auto", **target | {"convention": "entropy"}, "seconds": 2e-3, "status": "ok"},
            {"method": "OTT-JAX, lse", **target | {"convention": "entropy"}, "seconds": 8e-3, "status": "ok"},
            {"method": "GeomLoss", **target, "seconds": 9e-3, "status": "slow", "violation": 0.13}]
    record.add(current, "arrival", isolated.Ending("done", ways), 1.0)
    record.add(current, "dense", isolated.Ending("done", rows), 1.0)
    record.add(current, "features", isolated.Ending("done", free), 1.0)
    return current


def test_a_record_of_other_sources_is_not_completed(tmp_path):
    earlier = measured()
    target = record.path(tmp_path, earlier)
    assert record.resume(target, earlier) is earlier
    record.write(earlier, target)
    fresh = record.begin({name: value for name, value in earlier["environment"].items() if name != "rehearsal"}, False)
    assert record.resume(target, fresh)["sections"] == earlier["sections"]
    changed = record.begin(fresh["environment"] | {"sources": "new"}, False)
    with pytest.raises(ValueError, match="its sources is 'old' and here it is 'new'"):
        record.resume(target, changed)


def test_the_table_of_a_record(tmp_path):
    record.write(measured(), tmp_path / "some-gpu-9.json")
    record.write(record.begin({"device": "x"}, rehearsal=True), tmp_path / "rehearsal.json")
    text = table.content(table.records(tmp_path))
    assert "**Some GPU 9**\n" in text
    assert "| **uotlib** | 20 µs (80% of a copy's bytes/s) |" in text
    assert "| torch | 20 |" in text
    assert "| **uotlib** | 1 ms, error 1e-04 |" in text
    assert "| OTT-JAX |  | 4.0 |" in text  # of the library's time in the same convention
    assert "| GeomLoss |  | > 9.0 (is at 0.1) |" in text
    assert "| uotlib sinkhorn, tf32 | 0.4, error 1e-01 |" in text
    assert "| flash-sinkhorn, alternating, tf32 | 0.5, error 2e-01 |" in text
    assert "commit abcdef0." in text
    assert "older than the kernels" not in text
    assert "older than the kernels" in table.content([measured(kernels="0")])


def test_records_do_not_say_where_they_were_made(tmp_path):
    current = measured()
    trace = f'File "{ROOT}/uotlib/api.py"\nFile "{sys.prefix}/lib/x.py"'
    row = {"method": "uotlib", "status": "failed", "trace": trace}
    record.add(current, "small", isolated.Ending("done", [row]), 1.0)
    record.write(current, tmp_path / "record.json")
    found = record.read(tmp_path / "record.json")
    assert found["sections"]["small"]["rows"][0]["trace"] == 'File "uotlib/api.py"\nFile "lib/x.py"'
    assert found["wrong"] == 1


def test_a_changed_kernel_changes_the_hash(tmp_path):
    file = tmp_path / "uotlib" / "kernels" / "sweep.py"
    file.parent.mkdir(parents=True)
    hashes = []
    for text in ("one", "two", "one"):
        file.write_text(text)
        hashes.append(environment.digest(environment.KERNELS, tmp_path))
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_readme_holds_what_the_records_give(capsys):
    assert table.main(["--check"]) == 0, capsys.readouterr().err


def test_without_records_the_readme_says_so(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["--results", str(tmp_path / "none"), "--readme", str(readme)]
    assert table.main([*arguments, "--check"]) == 1
    assert table.main(arguments) == 0
    assert readme.read_text() == f"before\n{table.BEGIN}\n{table.NOTHING}{table.END}\nafter\n"
    assert "python -m benchmarks.gpu" in table.NOTHING
