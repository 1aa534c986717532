"""Every compilation of the Triton kernels that the backend may ask for with its tile table.  Needs no GPU."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource

from uotlib import SolverOptions
from uotlib.backends.triton_adjoint import DOT_RANK, ELEMENTWISE_RANK, WIDTHS
from uotlib.backends.triton_features import RANK, dot_precisions
from uotlib.backends.triton_passes import POINTS
from uotlib.backends.triton_skip import SEGMENT
from uotlib.backends.triton_small import constants_of
from uotlib.backends.triton_state import size_of
from uotlib.backends.triton_step import BEGINS, DECIDES, MERGED, MOVES
from uotlib.kernels import launchable
from uotlib.kernels.tiles import Tile, TileTable, feature_depth
from uotlib.precision import NAMES

#: Pointers by what they point to; "*" is the type of the arithmetic.
POINTERS = {
    "*i64": ("items", "skip", "problems"), "*u8": ("mask", "weak", "row_reach", "col_reach", "sparse"),
    "*fp64": ("log_u", "log_v", "offset", "damping", "reg", "shift", "row_lse", "col_lse", "col_mass", "log_x", "log_y",
              "diagonal", "vector", "through", "root_r", "root_c", "row_side", "row_ratio", "weights", "log_own",
              "log_other", "scale", "direct", "last_log_v", "last_col_lse", "last_row_lse", "last_reg", "bounds",
              "mass_a", "log_a", "tau_a", "mass_b", "log_b", "tau_b", "start", "answers", "work", "alpha", "beta",
              "row_sum", "cost_sum", "rows", "cols", "numbers", "copies", "sums", "gram", "spread", "exact", "scalars"),
    "*": ("partial", "anchors", "totals", "plan", "left", "right", "factor", "product", "own_sum", "other_sum", "out",
          "table"),
}
POINTER_TYPES = {name: kind for kind, names in POINTERS.items() for name in names}
#: Arguments that may be None.
OPTIONAL = ("items", "mask", "left", "right", "scale", "direct", "factor", "product", "own_sum", "other_sum", "out",
            "skip", "start", "alpha", "beta", "cost_sum", "problems", "spread",
            "sparse")
#: The same of single kernels.
ALSO_OPTIONAL = {"merge_columns_kernel": ("log_v",), "log_u_kernel": ("anchors", "totals"),
                 "measure_kernel": ("anchors", "totals"), "decide_kernel": ("gram",)}
REALS = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Configuration:
    """One compilation: a kernel, its tile, the type that costs are kept in, and how it is called.

    Args:
        aligned: Whether costs can be read 16 bytes at a time.
        given: Which of the optional arguments there are.
        constants: The kernel's own, as pairs.
        features: Number of streamed features, 0 for a cost in memory.
        precision: Of products of streamed features.
    """

    kernel: str
    tile: Tile
    storage: str
    aligned: bool
    given: tuple[str, ...] = ()
    constants: tuple[tuple[str, Any], ...] = ()
    features: int = 0
    precision: str = ""

    @property
    def double(self) -> bool:
        return self.storage == "float64"

    @property
    def vector(self) -> int:
        return {"float64": 2, "float32": 4}.get(self.storage, 8) if self.aligned else 1

    @property
    def variant(self) -> str:
        streamed = [f"d{self.features} {self.precision}"] if self.features else []
        flags = [name.lower() if value is True else f"{name.lower()}={value}" for name, value in self.constants
                 if value is True or name in ("RANK", "SUMS")]
        return " ".join([*streamed, *flags, *(f"+{name}" for name in self.given)])


def configurations(table: TileTable | None = None) -> Iterator[Configuration]:
    """For costs in memory, with the work list and the mask on some of the kernels of each type."""
    table = table or TileTable()
    for storage in ("float32", "float64", "float16"):
        suffix = "_float64" if storage == "float64" else ""
        for kernel, kind in (("sweep_kernel", "sweep"), ("schur_kernel", "schur"), ("eliminate_kernel", "eliminate")):
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
        for kernel, given in (("merge_columns_kernel", "log_v"), ("merge_col_lse_kernel", "mask")):
            yield Configuration(kernel, table.merge, storage, True)
            yield Configuration(kernel, table.merge, storage, True, (given,))
        yield from _weigh_configurations(table, storage)
        if storage != "float16":  # whole solves take costs of the solver's type
            yield from _small_configurations(getattr(table, "small" + suffix), storage)
            yield from _step_configurations(table, storage)


def _skip_configurations(tile: Tile, storage: str) -> Iterator[Configuration]:
    """The sweep that leaves parts out, and what decides on them."""
    segment, segments = ("SEGMENT", SEGMENT), ("SEGMENTS", tile.cols // SEGMENT)
    narrow = Tile(tile.rows, tile.cols, warps=1)
    yield Configuration("sweep_kernel", tile.spread, storage, True, ("skip",), (segment,))
    yield Configuration("block_min_kernel", tile, storage, True, (), (segment,))
    yield Configuration("bound_columns_kernel", narrow, storage, True, (), (segment, segments))
    yield Configuration("skip_kernel", narrow, storage, True, ("items", "skip"), (segments,))
    yield Configuration("block_min_kernel", tile, storage, True, ("sparse",), (segment,))
    yield Configuration("skip_kernel", narrow, storage, True, ("skip", "sparse"), (segments,))


def _weigh_configurations(table: TileTable, storage: str) -> Iterator[Configuration]:
    """Entries, products and transposed products, with their sums; W of no factors, of few terms, of many, of costs."""
    sums, products = ("own_sum", "other_sum", "scale"), ("factor", "product")
    suffix, precision = ("_float64", "ieee") if storage == "float64" else ("", "tf32x3")
    costs = (*sums, "cost_sum")
    weighed = (0, ELEMENTWISE_RANK, DOT_RANK)
    for given, transposed, add, ranks in (
            ((*costs, "out"), False, False, weighed), ((*costs, "out"), False, True, weighed[1:]),
            (("out", "scale"), False, True, weighed),
            ((*sums, *products), False, False, weighed), ((*products, "scale"), True, False, weighed),
            (("cost_sum",), False, False, (0,)), ((*costs, "direct", "out"), False, False, (0,)),
            ((*products, "scale", "direct"), False, False, (0,)), ((*products, "scale", "direct"), True, False, (0,))):
        for rank, aligned in itertools.product(ranks, (True, False)):
            dots = rank > ELEMENTWISE_RANK
            tile = getattr(table, ("product" if dots or "factor" in given else "weigh") + suffix)
            tile = tile.spread if add and "own_sum" in given else tile
            factors = ("left", "right") if rank else ()
            constants = {"TRANSPOSED": transposed, "RANK": rank, "DOTS": dots, "WIDTH": WIDTHS[-1], "ADD": add,
                         "PRECISION": precision}
            yield Configuration("weigh_kernel", tile, storage, aligned,
                                (*given, *factors) if aligned else ("items", *given, *factors),
                                tuple(constants.items()))


def _small_configurations(tiles: tuple[Tile, ...], storage: str) -> Iterator[Configuration]:
    for tile in tiles:
        for method, reg_type, aligned in (("auto", "kl", True), ("auto", "entropy", False),
                                          ("sinkhorn", "entropy", True)):
            yield Configuration("small_solve_kernel", tile, storage, aligned, () if aligned else ("items", "start"),
                                tuple(constants_of(method, reg_type, None, SolverOptions()).items()))


def _step_configurations(table: TileTable, storage: str) -> Iterator[Configuration]:
    """The work on vectors between passes: costs in memory, streamed features, and those that come in blocks."""
    partial, streamed = ("anchors", "totals"), ("anchors", "totals", "items")
    roundoff = 2.0**-53 if storage == "float64" else 2.0**-24
    for textbook, reg_type in itertools.product((False, True), ("kl", "entropy")):
        solve = constants_of("sinkhorn" if textbook else "auto", reg_type, None, SolverOptions())
        entropy = ("ENTROPY", reg_type == "entropy")
        merge = (("BLOCK", table.merge.cols), entropy)
        if not textbook:
            yield Configuration("marginals_kernel", table.merge, storage, True, (), (*merge, ("POINTS", POINTS)))
            for given in ((), (*streamed, "alpha")):
                yield Configuration("log_u_kernel", table.merge, storage, True, given,
                                    (*merge, ("PARTS", table.merge.rows)))
        for tile in table.step:
            cut = (("BLOCK", tile.cols), ("OWN", size_of(textbook, solve).own), entropy)
            for given in ((), partial, (*partial, "mask"), (*streamed, "beta")):
                yield Configuration("measure_kernel", tile, storage, True, given,
                                    (*cut, ("PARTS", MERGED), ("TEXTBOOK", textbook),
                                     ("MEASURE", not textbook or reg_type == "entropy")))
            for given in ((),) if textbook else (("spread",), ("start", "items", "beta")):
                yield Configuration("begin_kernel", tile, storage, True, given,
                                    (*cut, *((name, solve[name]) for name in BEGINS if name != "ENTROPY")))
            if textbook:
                yield Configuration("complete_kernel", tile, storage, True, (), (cut[0], entropy))
                yield Configuration("certify_kernel", tile, storage, True, (),
                                    (("PARTS", tile.rows), ("ROUNDOFF", roundoff)))
            yield Configuration("decide_kernel", tile, storage, True, ("problems", *([] if textbook else ["gram"])),
                                (*cut, ("PARTS", tile.rows), ("ROUNDOFF", roundoff),
                                 *((name, solve[name]) for name in DECIDES if name != "ENTROPY")))
            if not textbook:
                for given in ((), ("items", "beta")):
                    yield Configuration("move_kernel", tile, storage, True, given,
                                        (*cut, *((name, solve[name]) for name in MOVES if name != "ENTROPY")))


def feature_configurations(table: TileTable | None = None) -> Iterator[Configuration]:
    """For streamed features, in one product of tiles and in several, with the fewest and most arguments."""
    table = table or TileTable()
    sums, weigh = ("right", "alpha", "beta", "cost_sum"), ("factor", "product")
    for precision in NAMES:
        for storage in ("float32", "float64") if precision == "float64" else ("float32",):
            suffix = "_float64" if precision == "float64" else ""
            for features in (16, 32, 1024):
                if features != 1024 and precision not in ("bf16x3", "bf16x6"):
                    continue
                for kernel, kind, given in (
                        ("lse", "lse", ()), ("weigh", "sums", sums[:1]), ("weigh", "sums", sums),
                        ("weigh", "weigh", weigh), ("weigh", "weigh", ("left", *sums, *weigh))):
                    yield Configuration(f"feature_{kernel}_kernel", getattr(table, f"feature_{kind}{suffix}"), storage,
                                        True, given, (), features, precision)


def source(configuration: Configuration, hip: bool = False) -> ASTSource:
    """What a launch would compile: the same signature, the same 16-byte alignment of the pointers."""
    fn = getattr(launchable, configuration.kernel)
    real = "fp64" if configuration.double else "fp32"
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    chosen = _constants(configuration, hip)
    optional = OPTIONAL + ALSO_OPTIONAL.get(configuration.kernel, ())
    for place, name in enumerate(fn.arg_names):
        absent = name in optional and name not in configuration.given
        if absent or name in chosen:
            signature[name] = "constexpr"
            constants[name] = None if absent else chosen[name]
            continue
        if name in ("x", "z"):
            signature[name] = "*fp64" if configuration.precision == "float64" else "*fp32"
        elif name == "totals" and (configuration.features or "beta" in configuration.given
                                   or "alpha" in configuration.given):
            signature[name] = "*fp64"
        elif name == "cost":
            signature[name] = "*" + REALS[configuration.storage]
        elif name in POINTER_TYPES:
            signature[name] = "*" + real if POINTER_TYPES[name] == "*" else POINTER_TYPES[name]
        else:
            signature[name] = "i64" if name == "tol_bits" else "fp32" if name.endswith("margin") else "i32"
        if signature[name].startswith("*") and (name != "cost" or configuration.aligned):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn, signature, constexprs=constants, attrs=attributes)


def _constants(configuration: Configuration, hip: bool) -> dict[str, Any]:
    tile = configuration.tile
    chosen = {"ROWS": tile.rows, "COLS": tile.cols, "STAGES": tile.stages, "SLABS": tile.rows, "SEGMENT": SEGMENT,
              "VECTOR": configuration.vector} | dict(configuration.constants)
    if hip and chosen.get("PRECISION") == "tf32x3":
        chosen["PRECISION"] = "ieee"
    if configuration.features:
        depth, chunk = feature_depth(configuration.features)
        product, factors = dot_precisions(configuration.precision, hip)
        chosen |= {"DEPTH": chunk, "SINGLE": chunk == depth, "PRECISION": product, "FACTORS": factors, "RANK": RANK,
                   "DOUBLE": configuration.double, "WIDTH": TileTable().feature_width}
        if configuration.precision == "float32":
            chosen["STAGES"] = 1
    return chosen
