"""What nvcc makes of the resident kernel: registers, local memory, and the loop over rows, for every architecture.

Needs nvcc but no GPU: `python -m benchmarks.gpu.machine_code [--archs 90a]`.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .environment import ROOT

ARCHS = ("80", "90a", "100a", "120")
#: How the sweeps of csrc/cuda are mangled, and what they are: groups of 4 columns of a thread, and how rows come.
NAMES = {f"RowSweepILi{columns}ELb{ahead}ELb{bulk}": f"rows of {columns} x 4 columns a thread, {way}"
         for columns in (1, 2, 4)
         for ahead, bulk, way in ((0, 0, "ring"), (0, 1, "ring of bulk copies"), (1, 0, "ahead"))
         if columns < 4 or not ahead} | {"PanelSweepILb0": "panels", "PanelSweepILb1": "panels by bulk copies"}


@dataclass(frozen=True)
class Sweep:
    """A variant of the kernel as machine code.

    Args:
        loop: Instructions of the innermost loop over rows, with every branch that it may take.
    """

    name: str
    arch: str
    registers: int
    stack: int
    local: int
    code: str
    loop: list[str]


def tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on PATH, or as triton's wheel has it."""
    found = shutil.which(name)
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        bundled = Path(triton.origin).parent / "backends/nvidia/bin" / name
        found = str(bundled) if bundled.exists() else None
    return found


NVCC, CUOBJDUMP = tool("nvcc"), tool("cuobjdump")


def sweeps_of(arch: str, place: Path) -> list[Sweep]:
    """All variants, compiled into a folder.

    Raises:
        RuntimeError: with the compiler's message.
    """
    cubin = place / f"sm_{arch}.cubin"
    done = subprocess.run([str(NVCC), "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-o", str(cubin),
                           str(ROOT / "csrc/cuda/resident.cu")], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    usage, code = (subprocess.run([str(CUOBJDUMP), option, str(cubin)], capture_output=True, text=True,
                                  check=True).stdout for option in ("--dump-resource-usage", "--dump-sass"))
    mangled = r"((?:Row|Panel)SweepI(?:Li\d|Lb\d|E(?=L))+)"
    taken = {name: (int(registers), int(stack), int(local)) for name, registers, stack, local in re.findall(
        rf"Function \S*?{mangled}\S*:\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)}
    found = [(match[1], function) for function in re.split(r"\n\s*Function : ", code)[1:]
             if (match := re.match(rf"\S*?{mangled}", function))]
    return [Sweep(NAMES[name], arch, *taken[name], function, loop_over_rows(function)) for name, function in found]


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=ARCHS, help="compute capabilities, as nvcc names them")
    archs = parser.parse_args().archs
    missing = [name for name, path in (("nvcc", NVCC), ("cuobjdump", CUOBJDUMP)) if path is None]
    if missing:
        raise SystemExit(f"needs {' and '.join(missing)}, of the CUDA toolkit, on PATH")
    print("| sweep | sm | registers | stack, local | instructions of the loop | exponentials |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        for arch in archs:
            for sweep in sweeps_of(arch, Path(place)):
                exponentials = sum("MUFU.EX2" in text for text in sweep.loop)
                cells = (sweep.name, arch, sweep.registers, f"{sweep.stack}, {sweep.local}", len(sweep.loop),
                         exponentials)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
