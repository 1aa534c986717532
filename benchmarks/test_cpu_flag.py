"""The flag, as it is typed: each test is a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cpu.machine import ROOT
from benchmarks.cpu.record import read

CASES = "benchmarks/test_cpu_cases.py"


def pytest_run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


@pytest.mark.parametrize("arguments", [
    (CASES, "--benchmark"), ("--benchmark", CASES), ("tests/test_options.py", CASES, "--benchmark", "-k", "cpu")])
def test_cpu_flag_sets_the_sizes_wherever_it_stands(arguments):
    done = pytest_run(*arguments, "--benchmark-sizes", "24,40", "-n", "0", "--collect-only")
    assert done.returncode == 0, done.stdout
    assert "test_cpu_iteration[40-eps0.05-raster]" in done.stdout
    assert "test_cpu_iteration[4096" not in done.stdout


def test_cpu_flag_refuses_workers_and_nonsense():
    done = pytest_run(CASES, "--benchmark", "-n", "2", "--collect-only")
    assert done.returncode == 4
    assert "needs the machine to itself" in done.stdout
    for option, value in (("--benchmark-sizes", "many"), ("--benchmark-budget", "-1")):
        done = pytest_run(CASES, "--benchmark", option, value, "-n", "0", "--collect-only")
        assert done.returncode == 4
        assert f"{option} must be" in done.stdout


def test_cpu_flag_measures_and_leaves_the_results(tmp_path):
    done = pytest_run(CASES, "--benchmark", "--benchmark-sizes", "24", "--benchmark-out", tmp_path, "-n", "0", "-k",
                      "overhead or (iteration and raster)")
    assert done.returncode == 0, done.stdout
    assert "one iteration: 24 x 24, eps 0.05, tau 1, raster" in done.stdout
    assert "no picture: the run recorded no curves" in done.stdout
    rows, where = read(tmp_path / "cpu.csv")
    assert {row.case for row in rows} == {"iteration", "overhead"}
    assert all(row.n == 24 and row.seconds is not None for row in rows)
    assert where["threads"] == where["cores"]
