"""The tests of Triton kernels under Triton's interpreter, which must be chosen before the kernels are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs triton: pip install triton")


FILES = ["test_triton", "test_triton_features", "test_triton_gradients", "test_triton_skip", "test_triton_small",
         "test_triton_step", "test_weigh", "test_adjoint", "test_storage"]


def test_no_file_is_left_out():
    """What conftest.py keeps out of other processes runs here."""
    kept_out = {path.stem for path in Path(__file__).parent.glob("test_triton*.py")} - {
        "test_triton_aot", "test_triton_interpreter"}
    assert kept_out <= set(FILES)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES)
def test_kernels_under_the_interpreter(file):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
               str(Path(__file__).with_name(f"{file}.py")), "-k", "triton"]
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # two threads beside others' wait for each other
    run = subprocess.run(command, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True,
                         timeout=880, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
