"""`python -m benchmarks.gpu` where there is no GPU: what it says, and the part of it that can be run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uotlib import unbalanced_sinkhorn

pytest.importorskip("triton", reason="needs triton: pip install triton")

ROOT = Path(__file__).parents[1]


def entry(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_says_that_there_is_no_gpu(tmp_path):
    run = entry("--out", str(tmp_path))
    assert run.returncode == 2
    assert run.stdout == ""
    assert "needs a GPU" in run.stderr
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_interpreted_checks_leave_a_record(tmp_path):
    run = entry("--interpret", "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    record = json.loads((tmp_path / "interpreter.json").read_text())
    assert record["interpreted"] is True
    assert record["wrong"] == 0
    assert {"torch", "triton", "python", "commit", "dirty", "device"} <= record["environment"].keys()
    operations = {row["operation"] for row in record["correctness"]}
    assert operations == {"sweep", "row_lse", "row_lse_items", "col_lse", "col_lse_masked", "panel"}
    assert all(row["correct"] and row["error"] <= row["bound"] for row in record["correctness"])
    assert not [key for key in json.dumps(record).split('"') if key.endswith("_us")], "the interpreter times nothing"


def test_a_solve_is_correct_where_float64_agrees(monkeypatch):
    """A solve of another problem certifies itself just as well: only the comparison finds it."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu.solves import check

    cost = torch.rand(60, 70, generator=torch.Generator().manual_seed(0))
    problem = {"reg": 0.01, "reg_m": 1.0, "tol": 1e-4}
    right = check(unbalanced_sinkhorn(cost, **problem), cost, **problem)
    assert right["correct"]
    assert max(right["value_error"], right["mass_error"]) < 1e-6
    for other in (unbalanced_sinkhorn(cost + 1e-3, **problem), unbalanced_sinkhorn(cost, **problem | {"reg": 0.0101})):
        wrong = check(other, cost, **problem)
        assert wrong["violation"] <= problem["tol"]
        assert wrong["correct"] is False
    assert check(unbalanced_sinkhorn(cost, **problem | {"tol": 1e-2}), cost, **problem)["correct"] is False
