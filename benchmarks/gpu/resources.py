"""What the compiler makes of every kernel in the tile table: registers, shared memory, spills, width of the loads.

Needs Triton but no GPU: `python -m benchmarks.gpu.resources [--json] [--only float32|float64|float16|brief]
[--kernel sweep_kernel] [--targets 80,90]`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from uotlib.backends.triton import launch_options
from uotlib.backends.triton_adjoint import DOT_RANK, ELEMENTWISE_RANK, WIDTHS
from uotlib.backends.triton_skip import SEGMENT
from uotlib.kernels import launchable
from uotlib.kernels.tiles import Tile, TileTable

#: Pointers by what they point to; "*" is the type of the arithmetic.
POINTERS = {
    "*i64": ("items", "skip"), "*u8": ("mask",),
    "*fp64": ("log_u", "log_v", "offset", "damping", "reg", "shift", "row_lse", "col_lse", "col_mass", "log_x", "log_y",
              "diagonal", "vector", "through", "root_r", "root_c", "row_side", "row_ratio", "weights", "log_own",
              "log_other", "scale", "last_log_v", "last_col_lse", "last_row_lse", "last_reg", "bounds"),
    "*": ("partial", "anchors", "totals", "plan", "left", "right", "factor", "product", "own_sum", "other_sum", "out",
          "table"),
}
POINTER_TYPES = {name: kind for kind, names in POINTERS.items() for name in names}
#: Arguments that may be None.
OPTIONAL = ("items", "mask", "left", "right", "scale", "factor", "product", "own_sum", "other_sum", "out", "skip")
REALS = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Configuration:
    """One compilation: a kernel, its tile, and how it is called.

    Args:
        storage: Type of the cost.
        aligned: Whether pointer, strides and width allow for loads of 16 bytes.
        given: Optional arguments that are not None.
        constants: The kernel's own, as pairs.
    """

    kernel: str
    tile: Tile
    storage: str
    aligned: bool
    given: tuple[str, ...] = ()
    constants: tuple[tuple[str, Any], ...] = ()

    @property
    def double(self) -> bool:
        return self.storage == "float64"

    @property
    def vector(self) -> int:
        return 16 // getattr(torch, self.storage).itemsize if self.aligned else 1

    @property
    def variant(self) -> str:
        own = [f"{name.lower()}={value}" for name, value in self.constants if name != "PRECISION"]
        return " ".join([f"+{name}" for name in self.given if name not in ("left", "own_sum", "product")] + own)


@dataclass(frozen=True)
class Resources:
    """A row of the table."""

    kernel: str
    target: int
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


def configurations(table: TileTable | None = None) -> Iterator[Configuration]:
    """Everything the backend launches, with the work list and the mask on the kernels of one type each."""
    table = table or TileTable()
    for storage in ("float32", "float64", "float16"):
        suffix = "_float64" if storage == "float64" else ""
        for kernel, kind in (("sweep_kernel", "sweep"), ("schur_kernel", "sweep"), ("eliminate_kernel", "eliminate")):
            for tile in getattr(table, kind + suffix):
                for aligned in (True, False):
                    yield Configuration(kernel, tile, storage, aligned, () if aligned else ("items",))
                if kernel == "sweep_kernel":
                    yield from _skip_configurations(tile, storage)
        for kernel, kind in (("row_lse_kernel", "row"), ("col_lse_kernel", "column"), ("col_mass_kernel", "column"),
                             ("panel_kernel", "panel"), ("through_kernel", "through")):
            for aligned in (True, False):
                yield Configuration(kernel, getattr(table, kind + suffix), storage, aligned,
                                    () if aligned else ("items",))
        for sums in (1, 3):
            yield Configuration("back_kernel", getattr(table, "back" + suffix), storage, True,
                                constants=(("SUMS", sums),))
        yield Configuration("col_lse_kernel", getattr(table, "column" + suffix), storage, True, ("items", "mask"))
        yield Configuration("merge_columns_kernel", table.merge, storage, True)
        yield Configuration("merge_columns_kernel", table.merge, storage, True, ("log_v",))
        yield Configuration("merge_col_lse_kernel", table.merge, storage, True)
        yield Configuration("merge_col_lse_kernel", table.merge, storage, True, ("mask",))
        yield from _weigh_configurations(table, storage)


def _skip_configurations(tile: Tile, storage: str) -> Iterator[Configuration]:
    """The sweep that leaves parts out, and what decides on them."""
    segment, segments = ("SEGMENT", SEGMENT), ("SEGMENTS", tile.cols // SEGMENT)
    narrow = Tile(tile.rows, tile.cols, warps=1)
    yield Configuration("sweep_kernel", tile, storage, True, ("skip",), (segment,))
    yield Configuration("block_min_kernel", tile, storage, True, (), (segment,))
    yield Configuration("bound_columns_kernel", narrow, storage, True, (), (segment, segments))
    yield Configuration("skip_kernel", narrow, storage, True, ("items", "skip"), (segments,))


def _weigh_configurations(table: TileTable, storage: str) -> Iterator[Configuration]:
    """Entries, products and transposed products, with their sums; W of no factors, of few terms and of many."""
    sums, products = ("own_sum", "other_sum", "scale"), ("factor", "product")
    suffix, precision = ("_float64", "ieee") if storage == "float64" else ("", "tf32x3")
    for given, transposed in (((*sums, "out"), False), ((*sums, *products), False), ((*products, "scale"), True)):
        for rank, aligned in itertools.product((0, ELEMENTWISE_RANK, DOT_RANK), (True, False)):
            dots = rank > ELEMENTWISE_RANK
            tile = getattr(table, ("product" if dots or "factor" in given else "weigh") + suffix)
            factors = ("left", "right") if rank else ()
            constants = {"TRANSPOSED": transposed, "RANK": rank, "DOTS": dots, "WIDTH": WIDTHS[-1],
                         "PRECISION": precision}
            yield Configuration("weigh_kernel", tile, storage, aligned,
                                (*given, *factors) if aligned else ("items", *given, *factors),
                                tuple(constants.items()))


def source(configuration: Configuration) -> tuple[ASTSource, dict[str, Any]]:
    """What a launch would compile: the same signature, the same 16-byte alignment of the pointers."""
    fn = getattr(launchable, configuration.kernel)
    real = "fp64" if configuration.double else "fp32"
    tile = configuration.tile
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    chosen = {"ROWS": tile.rows, "COLS": tile.cols, "STAGES": tile.stages, "SLABS": tile.rows,
              "SEGMENT": SEGMENT, "VECTOR": configuration.vector} | dict(configuration.constants)
    optional = OPTIONAL + (("log_v",) if configuration.kernel == "merge_columns_kernel" else ())
    for place, name in enumerate(fn.arg_names):
        absent = name in optional and name not in configuration.given
        if absent or name in chosen:
            signature[name] = "constexpr"
            constants[name] = None if absent else chosen[name]
        elif name == "cost" or name in POINTER_TYPES:
            kind = "*" + REALS[configuration.storage] if name == "cost" else POINTER_TYPES[name]
            signature[name] = "*" + real if kind == "*" else kind
            if name != "cost" or configuration.aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name.endswith("margin") else "i32"
    return ASTSource(fn, signature, constexprs=constants, attrs=attributes), launch_options(tile)


def compiled(configuration: Configuration, capability: int) -> Any:
    """The kernel as Triton compiles it for a compute capability."""
    ast, options = source(configuration)
    return triton.compile(ast, target=GPUTarget("cuda", capability, 32), options=options)


def resources(configuration: Configuration, capability: int) -> Resources:
    """Compile, and read the resource usage out of the machine code."""
    kernel = compiled(configuration, capability)
    usage = _usage(kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    tile = configuration.tile
    return Resources(
        kernel=configuration.kernel, target=capability, dtype=configuration.storage,
        tile=f"{tile.rows}x{tile.cols}", warps=tile.warps, per_sm=tile.per_sm, aligned=configuration.aligned,
        variant=configuration.variant, registers=usage["REG"],
        shared=kernel.metadata.shared, stack=usage["STACK"], local=usage["LOCAL"],
        wide_loads=len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\S* .*, 0x10", ptx)),
        narrow_loads=len(re.findall(r"ld\.global\S*\.b(?:32|64) |ld\.global\.b\d+ |cp\.async\S* .*, 0x[48]\b", ptx)),
        async_copies=len(re.findall(r"cp\.async\.c[ag]", ptx)))


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True,
                              text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def _chosen(configuration: Configuration, only: str | None) -> bool:
    if only is None:
        return True
    if only == "brief":
        return configuration.storage == "float32" and configuration.aligned
    return configuration.storage == only


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.resources", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--only", choices=["float32", "float64", "float16", "brief"],
                        help="one type of cost; brief is float32 with 16-byte loads")
    parser.add_argument("--kernel", help="this kernel only")
    parser.add_argument("--targets", default="80,90,100", help="compute capabilities, e.g. 90 or 80,90")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    rows = [resources(configuration, int(target)) for target in arguments.targets.split(",")
            for configuration in configurations() if _chosen(configuration, arguments.only)
            and arguments.kernel in (None, configuration.kernel)]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'kernel':21} sm  {'type':8} tile    warps {'loads':9} regs shared stack local  wide narrow variant")
    for row in rows:
        print(f"{row.kernel:21} {row.target:<3} {row.dtype:8} {row.tile:8} {row.warps:4} "
              f"{'aligned' if row.aligned else 'unaligned':9} {row.registers:4} {row.shared:6} "
              f"{row.stack:5} {row.local:5} {row.wide_loads:5} {row.narrow_loads:6} {row.variant}")


if __name__ == "__main__":
    main()
