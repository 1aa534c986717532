"""The resident CUDA kernel as machine code, compiled here without a GPU: what fits, what spills, how wide loads are."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import runpy
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
#: Registers of a thread that 512 of them can have; every architecture has 65536.
REGISTERS = 65536 // 512
#: Groups of 4 columns of a thread, whether rows come ahead in registers ("1") or through a ring, and whether bulk
#: copies fill that; and panels.
VARIANTS = ["PanelSweep", *(f"RowSweepILi{name[0]}ELb{name[1]}ELb{name[2]}" for name in (
    "100", "101", "110", "200", "201", "210", "400", "401"))]


def tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on PATH, or as triton's wheel has it."""
    found = shutil.which(name)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends/nvidia/bin" / name
        found = str(bundled) if bundled.exists() else None
    return found


NVCC, CUOBJDUMP = tool("nvcc"), tool("cuobjdump")


def machine_code(arch: str, place: Path) -> tuple[str, str]:
    """Resource usage and assembly of all variants."""
    cubin = place / f"sm_{arch}.cubin"
    done = subprocess.run([str(NVCC), "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-o", str(cubin),
                           str(ROOT / "csrc/cuda/resident.cu")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    usage, code = (subprocess.run([str(CUOBJDUMP), option, str(cubin)], capture_output=True, text=True,
                                  check=True).stdout for option in ("--dump-resource-usage", "--dump-sass"))
    return usage, code


def loop_over_rows(code: str) -> list[str]:
    """Instructions of the innermost loop that takes rows out of shared memory and exponentials of them."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+([^;]*);", code)]
    loops = []
    for end, text in lines:
        branch = re.search(r"BRA\S* (?:\S+, )?0x([0-9a-f]+)", text)
        if branch is not None and int(branch[1], 16) < end:
            body = [inner for at, inner in lines if int(branch[1], 16) <= at <= end]
            if sum("MUFU.EX2" in inner for inner in body) >= 16 and any("LDS.128" in inner for inner in body):
                loops.append(body)
    return min(loops, key=len)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(NVCC is None, reason="needs nvcc, the CUDA compiler, on PATH")
@pytest.mark.skipif(CUOBJDUMP is None, reason="needs cuobjdump, on PATH or in triton's wheel")
def test_the_kernel_fits_its_multiprocessor(tmp_path):
    archs = ("80", "90a", "100a", "120")
    with ThreadPoolExecutor(2) as pool:
        compiled = dict(zip(archs, pool.map(lambda arch: machine_code(arch, tmp_path), archs), strict=True))
    for arch, (usage, code) in compiled.items():
        kernels = re.findall(r"Function \S*(RowSweepILi\dELb\dELb\d|PanelSweep)\S*:\s+REG:(\d+) STACK:(\d+) "
                             r".*?LOCAL:(\d+)", usage)
        assert sorted(name for name, *_ in kernels) == VARIANTS
        for name, registers, stack, local in kernels:
            assert int(registers) <= REGISTERS, (arch, name)
            assert int(stack) == int(local) == 0, (arch, name)
        for function in re.split(r"\n\s*Function : ", code)[1:]:
            found = re.match(r"\S*(RowSweepILi\dELb\dELb\d|PanelSweep)", function)
            if found is None:
                continue
            name, loop = found[1], loop_over_rows(function)
            said = f"sm_{arch}, {name}, loop of {len(loop)} instructions"
            assert re.search(r"\b(LDL|STL)\b", function) is None, f"sm_{arch}, {name} keeps something in local memory"
            ahead, bulk = "b1ELb0" in name, name.endswith("ELb1")
            wide = r"LDG\.E\.128" if ahead else r"LDS\.128" if bulk else r"LDGSTS\.E\.BYPASS\.128"
            assert any(re.search(wide, text) for text in loop), said
            assert any("LDGSTS" in text for text in loop) == (not ahead and not bulk), said
            # Without bulk copies below sm_90, where the planner does not choose this variant.
            for instruction in ("UBLKCP", "SYNCS.PHASECHK"):
                assert (instruction in function) == (bulk and arch != "80"), said
            assert ("UCGABAR_ARV" in function) == (arch != "80"), f"{said}: the barrier of a cluster"
            assert "RED.E.ADD" in function or "REDG.E.ADD" in function or "ATOM" in function, said  # the barrier


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
