"""What setup.py does about an nvcc that knows none of the architectures that the CUDA kernels are compiled for."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
KNOWS = "knows none of the architectures .*80, 90a, 100a, 120.*: it knows sm_35 sm_52"


@pytest.fixture
def script(monkeypatch) -> dict[str, Any]:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.delenv("UOTLIB_CUDA_ARCHS", raising=False)
    return runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def nvcc(tmp_path) -> str:
    """One that is too old."""
    path = tmp_path / "nvcc"
    path.write_text("#!/bin/sh\necho sm_35 sm_52\n")
    path.chmod(0o755)
    return str(path)


def test_kernels_that_were_asked_for_are_an_error(monkeypatch, script, nvcc):
    monkeypatch.setenv("UOTLIB_CUDA", "1")
    with pytest.raises(script["BuildError"], match=KNOWS):
        script["cuda_archs"](nvcc)


def test_kernels_that_nobody_asked_for_are_left_out_aloud(monkeypatch, script, nvcc, capsys, tmp_path):
    monkeypatch.setenv("UOTLIB_CUDA", "auto")
    text = script["ninja_file"]("c++", nvcc, tmp_path / "build", tmp_path / "built.so")
    said = capsys.readouterr().err
    assert said.startswith("uotlib: built WITHOUT its CUDA kernels: nvcc knows none of the architectures")
    assert said.endswith("it knows sm_35 sm_52\n")
    assert "absent.cpp" in text
    assert "resident.cu" not in text
