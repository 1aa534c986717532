"""The resident CUDA kernel as machine code, compiled here without a GPU: what fits, what spills, how wide loads are."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Registers of a thread that 512 of them can have; every architecture has 65536.
REGISTERS = 65536 // 512
#: Groups of 4 columns of a thread, and whether rows come ahead in registers ("1") or through a ring; panels have neither.
VARIANTS = [*(f"RowSweepILi{chunks}ELb{ahead}" for chunks, ahead in ("10", "11", "20", "21", "40")), "PanelSweep"]
#: Bytes that a thread may keep in memory, by variant where it is not 0: outside of the loop over rows.
STACK = {("80", "RowSweepILi2ELb1"): 64, ("90a", "RowSweepILi2ELb1"): 16, ("100a", "RowSweepILi2ELb1"): 96,
         ("120", "RowSweepILi2ELb1"): 96}
#: Words that the loop over rows reads from there.
RELOADS = {("100a", "RowSweepILi2ELb1"): 4, ("120", "RowSweepILi2ELb1"): 4}


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
            if sum("MUFU.EX2" in inner for inner in body) > 16 and any("LDS.128" in inner for inner in body):
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
        kernels = re.findall(r"Function \S*resident_kernelILi(\d)ELb(\d)E\S*:\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)",
                             usage)
        assert sorted((chunks, wide) for chunks, wide, *_ in kernels) == [(c, w) for c in "124" for w in "01"]
        for chunks, wide, registers, stack, local in kernels:
            said = f"sm_{arch}, {chunks} groups of columns, 16-byte loads: {wide}"
            assert int(registers) <= REGISTERS, said
            assert int(stack) <= STACK[arch], said
            assert int(local) == 0, said
        for function in re.split(r"\n\s*Function : ", code)[1:]:
            name = re.match(r"\S*resident_kernelILi(\d)ELb(\d)E", function)
            if name is None:
                continue
            loop = loop_over_rows(function)
            said = f"sm_{arch}, {name[1]} groups of columns, 16-byte loads: {name[2]}, loop of {len(loop)} instructions"
            assert sum(re.search(r"\bLDL\b", text) is not None for text in loop) <= RELOADS[arch], said
            assert not any(re.search(r"\bSTL\b", text) for text in loop), said
            assert any("LDG.E.128" in text for text in loop) == (name[2] == "1"), said
            assert "RED.E.ADD" in function or "REDG.E.ADD" in function or "ATOM" in function, said  # the barrier
