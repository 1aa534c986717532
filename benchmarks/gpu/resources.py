"""What the compiler makes of every kernel in the tile table: registers, shared memory, spills, width of the loads.

Needs Triton but no GPU: `python -m benchmarks.gpu.resources [--json] [--only KIND] [--kernel NAME] [--targets 90]`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from uotlib.backends.triton_launch import launch_options

from .configurations import Configuration, configurations, feature_configurations, source

KINDS = ("float32", "float64", "float16", "brief", "features")


@dataclass(frozen=True)
class Resources:
    """A row of the table.  Of AMD's devices registers are VGPRs, and shared memory is LDS."""

    kernel: str
    target: str
    dtype: str
    tile: str
    warps: int
    per_sm: int
    aligned: bool
    variant: str
    registers: int
    shared: int
    stack: int
    local: int
    wide_loads: int
    narrow_loads: int
    #: Instructions that move whole tiles of the cost by asynchronous copy, of either width.
    async_copies: int
    #: Instructions of tensor cores.
    products: int


def resources(configuration: Configuration, target: str) -> Resources:
    """Compile for a compute capability, "90", or an AMD architecture, "gfx942", and read what it takes."""
    tile, amd = configuration.tile, target.startswith("gfx")
    options = launch_options(tile)
    if amd:
        options.pop("maxnreg", None)  # AMD's compiler has no such option, nor has a torch for it asked for it
    kernel = triton.compile(source(configuration, amd), options=options,
                            target=GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target), 32))
    return Resources(
        kernel=configuration.kernel, target=target, dtype=configuration.storage, tile=f"{tile.rows}x{tile.cols}",
        warps=tile.warps, per_sm=tile.per_sm, aligned=configuration.aligned, variant=configuration.variant,
        shared=kernel.metadata.shared, **(_amd if amd else _nvidia)(kernel.asm))


def _nvidia(asm: Any) -> dict[str, int]:
    usage, ptx = _usage(asm["cubin"]), asm["ptx"]
    return {
        "registers": usage["REG"], "stack": usage["STACK"], "local": usage["LOCAL"],
        "wide_loads": _count(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\S* .*, 0x10", ptx),
        "narrow_loads": _count(r"ld\.global\S*\.b(?:32|64) |ld\.global\.b\d+ |cp\.async\S* .*, 0x[48]\b", ptx),
        "async_copies": _count(r"cp\.async\.c[ag]", ptx),
        "products": _count(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma\b", ptx)}


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True,
                              text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def _amd(asm: Any) -> dict[str, int]:
    text = asm["amdgcn"]
    known = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)$", text, flags=re.M)}
    return {
        "registers": known["vgpr_count"], "stack": known["private_segment_fixed_size"],
        "local": known["vgpr_spill_count"],
        "wide_loads": _count(r"(?:global|buffer)_load_dwordx4", text),
        "narrow_loads": _count(r"(?:global|buffer)_load_(?:dword|dwordx2|ushort|ubyte) ", text),
        "async_copies": 0, "products": _count(r"v_mfma_", text)}


def _count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


def _chosen(configuration: Configuration, only: str | None) -> bool:
    if only in (None, "features") or configuration.features:
        return only is None or (only == "features" and configuration.features > 0)
    if only == "brief":
        return configuration.storage == "float32" and configuration.aligned
    return configuration.storage == only


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.resources", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--only", choices=KINDS,
                        help="one type of cost in memory, brief being float32 with 16-byte loads; or streamed features")
    parser.add_argument("--kernel", help="this kernel only")
    parser.add_argument("--targets", default="80,90,100,gfx942", help="compute capabilities and AMD's names")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    chosen = [configuration for configuration in (*configurations(), *feature_configurations())
              if _chosen(configuration, arguments.only) and arguments.kernel in (None, configuration.kernel)]
    rows = [resources(configuration, target) for target in arguments.targets.split(",") for configuration in chosen]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'kernel':21} target {'type':8} tile    warps {'loads':9} regs shared stack local  wide narrow variant")
    for row in rows:
        print(f"{row.kernel:21} {row.target:6} {row.dtype:8} {row.tile:8} {row.warps:4} "
              f"{'aligned' if row.aligned else 'unaligned':9} {row.registers:4} {row.shared:6} "
              f"{row.stack:5} {row.local:5} {row.wide_loads:5} {row.narrow_loads:6} {row.variant}")


if __name__ == "__main__":
    main()
