"""The resident CUDA kernel as machine code, compiled here without a GPU: what fits, what spills, how wide loads are."""

from __future__ import annotations

import ctypes
import re
import runpy
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools

from benchmarks.gpu.machine_code import ARCHS, CUOBJDUMP, NAMES, NVCC, sweeps_of

ROOT = Path(__file__).parents[1]
#: Registers of a thread that 512 of them can have; every architecture has 65536.
REGISTERS = 65536 // 512


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(NVCC is None, reason="needs nvcc, the CUDA compiler, on PATH")
@pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump, on PATH or in triton's wheel")
def test_the_kernel_fits_its_multiprocessor(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        compiled = [sweep for sweeps in pool.map(lambda arch: sweeps_of(arch, tmp_path), ARCHS) for sweep in sweeps]
    for arch in ARCHS:
        assert sorted(sweep.name for sweep in compiled if sweep.arch == arch) == sorted(NAMES.values())
    for sweep in compiled:
        said = f"{sweep.name} on sm_{sweep.arch}, loop of {len(sweep.loop)} instructions"
        assert sweep.registers <= REGISTERS, said
        assert sweep.stack == sweep.local == 0, said
        assert re.search(r"\b(LDL|STL)\b", sweep.code) is None, f"{said} keeps something in local memory"
        ahead, bulk = "ahead" in sweep.name, "bulk" in sweep.name
        wide = r"LDG\.E\.128" if ahead else r"LDS\.128" if bulk else r"LDGSTS\.E\.BYPASS\.128"
        assert any(re.search(wide, text) for text in sweep.loop), said
        assert any("LDGSTS" in text for text in sweep.loop) == (not ahead and not bulk), said
        # Without bulk copies below sm_90, where the planner does not choose this variant.
        for instruction in ("UBLKCP", "SYNCS.PHASECHK"):
            assert (instruction in sweep.code) == (bulk and sweep.arch != "80"), said
        assert ("UCGABAR_ARV" in sweep.code) == (sweep.arch != "80"), f"{said}: the barrier of a cluster"
        assert any(text in sweep.code for text in ("RED.E.ADD", "REDG.E.ADD", "ATOM")), said  # the barrier


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(NVCC is None, reason="needs nvcc, the CUDA compiler, on PATH")
def test_the_benchmarks_probes_compile(tmp_path):
    """benchmarks.gpu compiles them on the device's machine: here without one."""
    done = subprocess.run([str(NVCC), "-std=c++17", "-arch=sm_90a", "-shared", "-Xcompiler", "-fPIC", "-o",
                           str(tmp_path / "probes.so"), str(ROOT / "benchmarks/gpu/probes.cu")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = ctypes.CDLL(str(tmp_path / "probes.so"))
    assert found.barrier
    assert found.read


@pytest.mark.parametrize(("wish", "found"), [("", ["80", "90a", "120"]), ("90a", ["90a"]), ("86,120", ["86", "120"])])
def test_the_architectures_can_be_chosen(monkeypatch, tmp_path, wish, found):
    """By an nvcc that knows some; the others are an error that says which."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho sm_80 sm_86 sm_90 sm_120\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    script = runpy.run_path(str(ROOT / "setup.py"))
    monkeypatch.setenv("UOTLIB_CUDA_ARCHS", wish)
    assert script["cuda_archs"](str(nvcc)) == found
    monkeypatch.setenv("UOTLIB_CUDA_ARCHS", f"{wish} 100a")
    with pytest.raises(script["BuildError"], match="'100a', which this nvcc does not compile for: it knows sm_80"):
        script["cuda_archs"](str(nvcc))
