"""What the compiler makes of every kernel in the tile table: registers, shared memory, spills, width of the loads.

Needs Triton but no GPU: `python -m benchmarks.gpu.resources [--json] [--only float32|float64|brief] [--targets 80,90]`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from uotlib import SolverOptions
from uotlib.backends.triton_features import RANK, dot_precisions
from uotlib.backends.triton_launch import launch_options
from uotlib.backends.triton_small import constants_of
from uotlib.kernels import launchable
from uotlib.kernels.tiles import Tile, TileTable, feature_depth
from uotlib.precision import NAMES

POINTERS = {
    "items": "*i64", "mask": "*u8", "log_u": "*fp64", "log_v": "*fp64", "offset": "*fp64", "damping": "*fp64",
    "reg": "*fp64", "shift": "*fp64", "row_lse": "*fp64", "col_lse": "*fp64", "col_mass": "*fp64",
    "mass_a": "*fp64", "log_a": "*fp64", "tau_a": "*fp64", "mass_b": "*fp64", "log_b": "*fp64", "tau_b": "*fp64",
    "start": "*fp64", "answers": "*fp64", "work": "*fp64",
    "log_x": "*fp64", "log_y": "*fp64", "alpha": "*fp64", "beta": "*fp64", "row_sum": "*fp64", "cost_sum": "*fp64",
}
COST_POINTERS = ("cost", "partial", "anchors", "totals", "plan", "left", "right", "factor", "product")
#: Arguments of `feature_weigh_kernel` that may be None.
OPTIONAL = ("alpha", "beta", "left", "right", "factor", "cost_sum", "product")


@dataclass(frozen=True)
class Configuration:
    """One compilation: a kernel, its tile, and how it is called."""

    kernel: str
    tile: Tile
    double: bool
    aligned: bool
    items: bool = False
    mask: bool = False
    #: The kernel's own constants, as pairs.
    constants: tuple[tuple[str, Any], ...] = ()
    #: Of kernels that stream features: their number, precision, and which optional arguments there are.
    features: int = 0
    precision: str = ""
    given: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        flags = [f"+{name}" for name in ("items", "mask") if getattr(self, name)]
        flags += [name.lower() for name, value in self.constants if value is True]
        return " ".join([*flags, *([f"d{self.features} {self.precision}"] if self.features else []), *self.given])

    @property
    def vector(self) -> int:
        return (2 if self.double else 4) if self.aligned else 1


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
    #: Instructions of tensor cores.
    products: int


def configurations(table: TileTable | None = None) -> Iterator[Configuration]:
    """Everything the backend launches, with the work list and the mask on the kernels of one type each."""
    table = table or TileTable()
    for double in (False, True):
        suffix = "_float64" if double else ""
        for tile in getattr(table, "sweep" + suffix):
            for aligned in (True, False):
                yield Configuration("sweep_kernel", tile, double, aligned, items=not aligned)
        for kernel, kind in (("row_lse_kernel", "row"), ("col_lse_kernel", "column"), ("col_mass_kernel", "column"),
                             ("panel_kernel", "panel")):
            for aligned in (True, False):
                yield Configuration(kernel, getattr(table, kind + suffix), double, aligned, items=not aligned)
        yield Configuration("col_lse_kernel", getattr(table, "column" + suffix), double, True, items=True, mask=True)
        yield Configuration("merge_columns_kernel", table.merge, double, True)
        yield Configuration("merge_col_lse_kernel", table.merge, double, True)
        yield Configuration("merge_col_lse_kernel", table.merge, double, True, mask=True)
        for tile in getattr(table, "small" + suffix):
            for method, reg_type, aligned in (("auto", "kl", True), ("auto", "entropy", False),
                                              ("sinkhorn", "entropy", True)):
                how = constants_of(method, reg_type, None, SolverOptions())
                yield Configuration("small_solve_kernel", tile, double, aligned, items=not aligned,
                                    constants=tuple(how.items()))


def feature_configurations(table: TileTable | None = None) -> Iterator[Configuration]:
    """The kernels that stream features, in one product of tiles and in several, with the fewest and most arguments."""
    table = table or TileTable()
    sums, weigh = ("right", "alpha", "beta", "cost_sum"), ("factor", "product")
    for precision in NAMES:
        for double in (False, True) if precision == "float64" else (False,):
            suffix = "_float64" if precision == "float64" else ""
            for features in (16, 32, 1024):
                if features != 1024 and precision not in ("bf16x3", "bf16x6"):
                    continue
                for kernel, kind, given in (
                        ("lse", "lse", ()), ("weigh", "sums", sums[:1]), ("weigh", "sums", sums),
                        ("weigh", "weigh", weigh), ("weigh", "weigh", ("left", *sums, *weigh))):
                    tile = getattr(table, f"feature_{kind}{suffix}")
                    yield Configuration(f"feature_{kernel}_kernel", tile, double, True, False, False, features,
                                        precision, given)


def source(configuration: Configuration) -> tuple[ASTSource, dict[str, Any]]:
    """What a launch would compile: the same signature, the same 16-byte alignment of the pointers."""
    fn = getattr(launchable, configuration.kernel)
    real = "fp64" if configuration.double else "fp32"
    tile = configuration.tile
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    chosen = {"ROWS": tile.rows, "COLS": tile.cols, "STAGES": tile.stages, "SLABS": tile.rows,
              "VECTOR": configuration.vector} | dict(configuration.constants)
    if configuration.features:
        depth, chunk = feature_depth(configuration.features)
        product, factors = dot_precisions(configuration.precision, hip=False)
        chosen |= {"DEPTH": chunk, "SINGLE": chunk == depth, "PRECISION": product, "FACTORS": factors, "RANK": RANK,
                   "DOUBLE": configuration.double, "WIDTH": TileTable().feature_width}
        if configuration.precision == "float32":
            chosen["STAGES"] = 1
    for place, name in enumerate(fn.arg_names):
        absent = (name in ("items", "start") and not configuration.items) or (
            name == "mask" and not configuration.mask) or (
            configuration.features and name in OPTIONAL and name not in configuration.given)
        if absent or name in chosen:
            signature[name] = "constexpr"
            constants[name] = None if absent else chosen[name]
        elif name in POINTERS or name in COST_POINTERS or name in ("x", "z"):
            signature[name] = POINTERS.get(name, "*" + real)
            if name in ("x", "z"):
                signature[name] = "*fp64" if configuration.precision == "float64" else "*fp32"
            elif name == "totals" and configuration.features:
                signature[name] = "*fp64"
            if name != "cost" or configuration.aligned:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i64" if name == "tol_bits" else "i32"
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
    real = "fp64" if configuration.double else "fp32"
    tile = configuration.tile
    return Resources(
        kernel=configuration.kernel, target=capability, dtype=real, tile=f"{tile.rows}x{tile.cols}", warps=tile.warps,
        per_sm=tile.per_sm, aligned=configuration.aligned, variant=configuration.variant, registers=usage["REG"],
        shared=kernel.metadata.shared, stack=usage["STACK"], local=usage["LOCAL"],
        wide_loads=len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\S* .*, 0x10", ptx)),
        narrow_loads=len(re.findall(r"ld\.global\S*\.b(?:32|64) |ld\.global\.b\d+ |cp\.async\S* .*, 0x[48]\b", ptx)),
        async_copies=len(re.findall(r"cp\.async\.c[ag]", ptx)),
        products=len(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma\b", ptx)))


def _usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True,
                              text=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def _chosen(configuration: Configuration, only: str | None) -> bool:
    if only in (None, "features") or configuration.features:
        return only is None or (only == "features" and configuration.features > 0)
    return configuration.double == (only == "float64") and (only != "brief" or configuration.aligned)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.resources", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    parser.add_argument("--only", choices=["float32", "float64", "brief", "features"],
                        help="one type of cost in memory, brief being float32 with 16-byte loads; or streamed features")
    parser.add_argument("--targets", default="80,90,100", help="compute capabilities, e.g. 90 or 80,90")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    chosen = [configuration for configuration in (*configurations(), *feature_configurations())
              if _chosen(configuration, arguments.only)]
    rows = [resources(configuration, int(target)) for target in arguments.targets.split(",")
            for configuration in chosen]
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print(f"{'kernel':21} sm  type tile    warps {'loads':9} {'variant':12} regs shared stack local  wide narrow")
    for row in rows:
        print(f"{row.kernel:21} {row.target:<3} {row.dtype} {row.tile:8} {row.warps:4} "
              f"{'aligned' if row.aligned else 'unaligned':9} {row.variant:12} {row.registers:4} {row.shared:6} "
              f"{row.stack:5} {row.local:5} {row.wide_loads:5} {row.narrow_loads:6}")


if __name__ == "__main__":
    main()
