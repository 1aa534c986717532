"""The operations on the CPU, by the compiled kernels of csrc/cpu: one read of the cost each, or less of it by a sweep
that may skip blocks; whole solves (`native_solve`), and those of the adjoint (csrc/cpu/conjugate.cpp).

Arithmetic is in the type of the cost.  Sums along a row are in that type within a block of 4 KiB of columns and in
float64 over blocks.  Sums down a column are in that type within a slab of rows and in float64 over slabs, at most 64 of
them, 32 where the adjoint begins: a slab has fewer than 128 rows up to n = 4096 (128 there) and about n / 64 beyond,
320 at n = 20,000.  Results do not depend on the number of threads, which is torch's (`torch.set_num_threads`).
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._extension import extension, missing
from ..process import on_threads
from . import native_solve
from .base import Backend

if TYPE_CHECKING:
    from ..gradients.adjoint import Scaled
    from ..options import SolverOptions
    from ..outcome import Outcome
    from ..problem import Problem

_DTYPES = (torch.float32, torch.float64)


class NativeBackend(Backend):
    """The kernels get addresses, so shapes, types and devices are checked here, the entries of ``items`` among them."""

    name = "native"
    adjoint_temporaries = weigh_temporaries = 0

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if missing is not None:
            return missing
        if device.type != "cpu":
            return f"the native backend runs on the CPU, the cost is on {device}"
        if dtype not in _DTYPES:
            return f"the native backend takes costs of type float32 or float64, not {_name(dtype)}"
        return None

    def row_lse(self, cost: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        log_v, reg = _vector("log_v", log_v, count, m), _vector("reg", reg, count)
        lse = _empty(count, n)
        _kernels().row_lse(_cost(cost, reg, items), log_v.data_ptr(), lse.data_ptr())
        return lse

    def col_lse(self, cost: Tensor, log_u: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        log_u, reg = _vector("log_u", log_u, count, n), _vector("reg", reg, count)
        lse = _empty(count, m)
        _kernels().col_lse(_cost(cost, reg, items), log_u.data_ptr(), lse.data_ptr())
        return lse

    def col_lse_masked(self, cost: Tensor, log_u: Tensor, reg: Tensor, mask: Tensor,
                       items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        log_u, reg = _vector("log_u", log_u, count, n), _vector("reg", reg, count)
        if mask.shape != (count, m) or mask.dtype != torch.bool or not mask.is_cpu:
            raise ValueError(f"mask must be bool of shape {(count, m)} on the CPU, got {_name(mask.dtype)} of shape "
                             f"{tuple(mask.shape)} on {mask.device}")
        lse, mask = _empty(count, m), mask.contiguous()
        _kernels().col_lse_masked(_cost(cost, reg, items), log_u.data_ptr(), mask.data_ptr(), lse.data_ptr())
        return lse

    def sweep(self, cost: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
              col_mass: Tensor, items: Tensor | None = None, *, row_hint: Tensor | None = None,
              col_hint: Tensor | None = None, block_min: Tensor | None = None,
              missed: Tensor | None = None) -> Tensor:
        r"""As `Backend.sweep`; what is expected may be said beforehand, and then saves time, right or wrong.

        Args:
            row_hint: (B, n), the expected result: that of the last sweep.  Spares the search for row maxima.
            col_hint: (B, m), expected :math:`\log\sum_i e^{\log u_i - C_{ij}/\varepsilon}`.
            block_min: Result of `block_min` for this cost.  With both hints, blocks of the cost are skipped in which
                each entry is expected to be negligible beside its row's and its column's sum.  Rows are checked
                afterwards: their results are right to the rounding of the cost's type whatever the hints were.
            missed: (B, ceil(m / 64)), float64, with ``block_min``: added to it is a bound of what skipping left out of
                ``col_mass`` for the column of the block with the largest ``log_v``, and for any other in proportion
                to its scaling.  The caller redoes columns for which that matters.
        """
        count, n, m = _sizes(cost, items)
        log_v, offset = _vector("log_v", log_v, count, m), _vector("offset", offset, count, n)
        damping, shift = _vector("damping", damping, count), _vector("shift", shift, count)
        reg, total = _vector("reg", reg, count), _added_to("col_mass", col_mass, count, m)
        if (block_min is None) != (missed is None):
            raise ValueError("block_min and missed belong together: give both or neither")
        if block_min is not None:
            _check_table(block_min, cost)
        row_hint = None if row_hint is None else _vector("row_hint", row_hint, count, n)
        col_hint = None if col_hint is None else _vector("col_hint", col_hint, count, m)
        if missed is not None:
            if missed.dtype != torch.float64 or not missed.is_contiguous():
                raise TypeError(f"missed is added to in place: it must be contiguous and float64, got "
                                f"{_name(missed.dtype)} with strides {missed.stride()}")
            _vector("missed", missed, count, _kernels().block_columns(m))
        lse = _empty(count, n)
        _kernels().sweep(_cost(cost, reg, items), log_v.data_ptr(), offset.data_ptr(), damping.data_ptr(),
                         shift.data_ptr(), total.data_ptr(), lse.data_ptr(), _address(row_hint), _address(col_hint),
                         _address(block_min), _address(missed))
        if total is not col_mass:
            col_mass.copy_(total)
        return lse

    def block_min(self, cost: Tensor) -> Tensor:
        """The least entry of each block of 8 rows and 64 columns, (B, ceil(n / 8), ceil(m / 64)), for `sweep`."""
        count, n, m = _sizes(cost, None)
        table = torch.empty(count, _kernels().block_rows(n), _kernels().block_columns(m), dtype=cost.dtype,
                            device="cpu")
        reg = torch.ones(count, dtype=torch.float64, device="cpu")
        _kernels().block_min(_cost(cost, reg, None), table.data_ptr())
        return table

    def panel(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        log_u, log_v = _vector("log_u", log_u, count, n), _vector("log_v", log_v, count, m)
        reg = _vector("reg", reg, count)
        plan = torch.empty(count, n, m, dtype=cost.dtype, device="cpu")
        _kernels().panel(_cost(cost, reg, items), log_u.data_ptr(), log_v.data_ptr(), plan.data_ptr())
        return plan

    def weigh(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None, right: Tensor | None,
              row_sum: Tensor | None, col_sum: Tensor | None, items: Tensor | None = None, *,
              scale: Tensor | None = None, out: Tensor | None = None, add: bool = False,
              factor: Tensor | None = None, product: Tensor | None = None) -> None:
        count, n, m = _sizes(cost, items)
        rows = None if row_sum is None else _added_to("row_sum", row_sum, count, n)
        cols = None if col_sum is None else _added_to("col_sum", col_sum, count, m)
        if out is not None and (out.shape != (count, n, m) or out.dtype != cost.dtype or not out.is_cpu
                                or (m > 1 and out.stride(2) != 1)):
            raise ValueError(f"out must be {_name(cost.dtype)} of shape {(count, n, m)} on the CPU with unit stride "
                             f"along its last axis, got {_name(out.dtype)} of shape {tuple(out.shape)} on {out.device}")
        if out is not None and factor is not None:
            raise ValueError("out and factor exclude each other: give one of them")
        if left is not None and left.shape[2] == 0:  # W = 0, of factors that have no address
            super().weigh(cost, log_u, log_v, reg, left, right, row_sum, col_sum, items, scale=scale, out=out, add=add,
                          factor=factor, product=product)
            return
        _weigh(cost, log_u, log_v, reg, left, right, items, scale, rows, cols, out, add, factor, product, m, n, False)
        for total, given in ((rows, row_sum), (cols, col_sum)):
            if total is not None and given is not None and total is not given:
                given.copy_(total)

    def weigh_columns(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None,
                      right: Tensor | None, factor: Tensor, product: Tensor, items: Tensor | None = None, *,
                      scale: Tensor | None = None) -> None:
        _, n, m = _sizes(cost, items)
        if left is None or left.shape[2]:
            _weigh(cost, log_u, log_v, reg, left, right, items, scale, None, None, None, False, factor, product, n, m,
                   True)

    def fresh(self, memory: Tensor) -> Tensor:
        _kernels().prefer_large_pages(memory.data_ptr(), memory.untyped_storage().nbytes())
        return memory

    def product(self, left: Tensor, right: Tensor, out: Tensor) -> None:
        count, n, m = _sizes(out, None)
        rank = left.shape[-1]
        left, right = _block("left", left, out, count, n, rank), _block("right", right, out, count, rank, m)
        left, right = left.contiguous(), _panels(right.mT)
        reg = torch.ones(count, dtype=torch.float64, device="cpu")
        _kernels().product(_cost(out, reg, None), left.data_ptr(), right.data_ptr(), rank)

    def solve(self, problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
              init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome | None:
        _sizes(cost, problem.cost_items)
        return native_solve.solve(problem, cost, method, max_iter, tol, init, options)

    def schur(self, cost: Tensor, log_x: Tensor, log_y: Tensor, row_diagonal: Tensor, vector: Tensor, reg: Tensor,
              total: Tensor, items: Tensor | None = None) -> None:
        count, n, m = _sizes(cost, items)
        log_x, log_y = _vector("log_x", log_x, count, n), _vector("log_y", log_y, count, m)
        row_diagonal, vector = _vector("row_diagonal", row_diagonal, count, n), _vector("vector", vector, count, m)
        reg, sums = _vector("reg", reg, count), _added_to("total", total, count, m)
        _kernels().schur(_cost(cost, reg, items), log_x.data_ptr(), log_y.data_ptr(), row_diagonal.data_ptr(),
                         vector.data_ptr(), sums.data_ptr())
        if sums is not total:
            total.copy_(sums)

    def eliminate(self, cost: Tensor, log_x: Tensor, log_y: Tensor, root_r: Tensor, root_c: Tensor, row_side: Tensor,
                  row_ratio: Tensor, reg: Tensor, sums: Tensor, items: Tensor | None = None,
                  empty: Tensor | None = None) -> Tensor:
        count, n, m = _sizes(cost, items)
        log_x, log_y = _vector("log_x", log_x, count, n), _vector("log_y", log_y, count, m)
        root_r, root_c = _vector("root_r", root_r, count, n), _vector("root_c", root_c, count, m)
        row_side, row_ratio = _vector("row_side", row_side, count, n), _vector("row_ratio", row_ratio, count)
        reg, total = _vector("reg", reg, count), _added_to("sums", sums, count, 3, m)
        if empty is not None:
            _check_empty(empty, count, n, m)
        diagonal = _empty(count, n)
        _kernels().eliminate(_cost(cost, reg, items), log_x.data_ptr(), log_y.data_ptr(), root_r.data_ptr(),
                             root_c.data_ptr(), row_side.data_ptr(), row_ratio.data_ptr(), diagonal.data_ptr(),
                             total.data_ptr(), _address(empty))
        if total is not sums:
            sums.copy_(total)
        return diagonal

    def adjoint_blocks(self, cost: Tensor, items: Tensor | None = None) -> Tensor:
        """One byte for each block of 8 rows and 64 columns, (B, ceil(n / 8), ceil(m / 64))."""
        count, n, m = _sizes(cost, items)
        return torch.zeros(count, _kernels().block_rows(n), _kernels().block_columns(m), dtype=torch.uint8,
                           device="cpu")

    def conjugate_gradients(self, system: Scaled, cost: Tensor, rhs: Tensor, start: Tensor, tol: float,
                            max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        problem, items = system.solved.problem, system.solved.kernel.cost_items
        count, n, m = _sizes(cost, items)
        vectors = [_vector(name, values, count, n) for name, values in (
            ("log_x", system.log_x), ("row_diagonal", system.row_diagonal), ("image", system.image))]
        vectors += [_vector(name, values, count, m) for name, values in (
            ("log_y", system.log_y), ("col_diagonal", system.col_diagonal), ("preconditioner", system.preconditioner),
            ("root_c", system.root_c), ("rhs", rhs))]
        log_x, row_diagonal, image, log_y, col_diagonal, preconditioner, root, rhs = vectors
        reg, along = _vector("reg", problem.reg, count), _vector("along", system.along, count)
        start = _vector("start", start, count)
        if system.empty is not None:
            _check_empty(system.empty, count, n, m)
        answer, residual, through = _empty(count, m), _empty(count), _empty(count, n)
        run = _kernels().ConjugateGradients(
            _cost(cost, reg, items), log_x.data_ptr(), log_y.data_ptr(), row_diagonal.data_ptr(),
            _address(system.empty), col_diagonal.data_ptr(), preconditioner.data_ptr(), root.data_ptr(),
            rhs.data_ptr(), along.data_ptr(), image.data_ptr(), start.data_ptr(), tol, max_iter,
            answer.data_ptr(), residual.data_ptr(), through.data_ptr())
        while not run.advance(native_solve.TURN):
            pass  # Python may interrupt here
        return answer, residual, through


def _weigh(cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor | None, right: Tensor | None,
           items: Tensor | None, scale: Tensor | None, rows: Tensor | None, cols: Tensor | None, out: Tensor | None,
           add: bool, factor: Tensor | None, product: Tensor | None, inner: int, outer: int, columns: bool) -> None:
    """Both passes; the factor has ``inner`` rows, the product ``outer``."""
    count, n, m = _sizes(cost, items)
    log_u, log_v = _vector("log_u", log_u, count, n), _vector("log_v", log_v, count, m)
    reg = _vector("reg", reg, count)
    scale = None if scale is None else _vector("scale", scale, count)
    rank = 0 if left is None else left.shape[-1]
    if (left is None) != (right is None) or (factor is None) != (product is None):
        raise ValueError("left and right, and factor and product, belong together: give both or neither")
    if left is not None and right is not None:
        left = _block("left", left, cost, count, n, rank).contiguous()
        right = _panels(_block("right", right, cost, count, m, rank))
    depth, total = 0, product
    if factor is not None and product is not None:
        depth = factor.shape[-1]
        factor = _with_unit_stride(_block("factor", factor, cost, count, inner, depth))
        total = _with_unit_stride(_block("product", product, cost, count, outer, depth))
        if depth == 0 and columns:
            return
    strides = (0, 0) if out is None else (out.stride(0), out.stride(1))
    _kernels().weigh(_cost(cost, reg, items), log_u.data_ptr(), log_v.data_ptr(), _address(left), _address(right), rank,
                     _address(rows), _address(cols), _address(out), *strides, add, _address(scale), _strided(factor),
                     _strided(total), depth, columns)
    if product is not None and total is not None and total is not product:
        product.copy_(total)


def _panels(right: Tensor) -> Tensor:
    """A right factor (B, m, k) as the kernels read it: (B, panels, k, columns of a panel), zeros behind the last."""
    count, m, rank = right.shape
    wide = _kernels().panel_columns
    panels = right.new_zeros if m % wide else right.new_empty
    laid = panels(count, -(-m // wide), rank, wide)
    whole = m // wide * wide
    with on_threads(1):
        laid[:, : m // wide] = right[:, :whole].unflatten(1, (m // wide, wide)).mT
        if whole < m:
            laid[:, -1, :, : m - whole] = right[:, whole:].mT
    return laid


def _with_unit_stride(values: Tensor) -> Tensor:
    return values if values.stride(-1) == 1 or values.shape[-1] == 1 else values.contiguous()


def _strided(values: Tensor | None) -> tuple[int, int, int]:
    """Address, and strides of the batch and of the rows."""
    return (0, 0, 0) if values is None else (values.data_ptr(), values.stride(0), values.stride(1))


def _block(name: str, values: Tensor, cost: Tensor, *shape: int) -> Tensor:
    if values.shape != shape or values.dtype != cost.dtype or not values.is_cpu:
        raise ValueError(f"{name} must be {_name(cost.dtype)} of shape {shape} on the CPU, got {_name(values.dtype)} "
                         f"of shape {tuple(values.shape)} on {values.device}")
    return values


def least(cost: Tensor) -> Tensor:
    """The least entry of a cost (B, n, m), NaN if any is."""
    return NativeBackend().block_min(cost).amin()


def _kernels() -> ModuleType:
    if extension is None:
        raise ImportError(missing)
    return extension


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sizes(cost: Tensor, items: Tensor | None) -> tuple[int, int, int]:
    """Problems to work on, rows and columns, of a cost and items that the kernels can read."""
    if cost.dtype not in _DTYPES:
        raise TypeError(f"cost must be float32 or float64, got {_name(cost.dtype)}")
    if cost.ndim != 3 or not cost.is_cpu:
        raise ValueError(f"cost must be of shape (B, n, m) on the CPU, got {tuple(cost.shape)} on {cost.device}")
    batch, rows, columns = cost.shape
    if columns > 1 and cost.stride(2) != 1:
        raise ValueError(f"cost must have unit stride along its last axis, got strides {cost.stride()}")
    if items is None:
        return batch, rows, columns
    if items.dtype != torch.int64:
        raise TypeError(f"items must be int64, got {_name(items.dtype)}")
    if items.ndim != 1 or not items.is_cpu or not items.is_contiguous():
        raise ValueError(f"items must be contiguous, of shape (A,) on the CPU, got {tuple(items.shape)} with strides "
                         f"{items.stride()} on {items.device}")
    if len(items):
        low, high = items.aminmax()
        if int(low) < 0 or int(high) >= batch:
            raise ValueError(f"items must be in [0, {batch}), the cost's batch, got {int(low)} to {int(high)}")
    return len(items), rows, columns


def _vector(name: str, values: Tensor, *shape: int) -> Tensor:
    """As the kernels read it.  The caller must keep the result alive over the call."""
    if values.shape != shape or not values.is_cpu:
        raise ValueError(f"{name} must be of shape {shape} on the CPU, got {tuple(values.shape)} on {values.device}")
    return values.to(torch.float64).contiguous()


def _added_to(name: str, values: Tensor, *shape: int) -> Tensor:
    """A result that is added to in place; the caller copies back what had to be made contiguous."""
    if values.dtype != torch.float64:
        raise TypeError(f"{name} is added to in place: it must be float64, got {_name(values.dtype)}")
    return _vector(name, values, *shape)


def _address(values: Tensor | None) -> int:
    return 0 if values is None else values.data_ptr()


def _check_table(table: Tensor, cost: Tensor) -> None:
    batch, n, m = cost.shape
    shape = batch, _kernels().block_rows(n), _kernels().block_columns(m)
    if table.shape != shape or table.dtype != cost.dtype or not table.is_cpu or not table.is_contiguous():
        raise ValueError(f"block_min must be of shape {shape} and type {_name(cost.dtype)}, contiguous on the CPU, got "
                         f"{tuple(table.shape)}, {_name(table.dtype)} on {table.device}")


def _check_empty(table: Tensor, count: int, n: int, m: int) -> None:
    shape = count, _kernels().block_rows(n), _kernels().block_columns(m)
    if table.shape != shape or table.dtype != torch.uint8 or not table.is_cpu or not table.is_contiguous():
        raise ValueError(f"empty must be of shape {shape}, uint8 and contiguous on the CPU, got {tuple(table.shape)}, "
                         f"{_name(table.dtype)} on {table.device}")


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64, device="cpu")


def _cost(cost: Tensor, reg: Tensor, items: Tensor | None) -> object:
    """The part of a call's description that all operations share; `reg` and `items` as the kernels read them."""
    batch, rows, columns = cost.shape
    return _kernels().Cost(cost.data_ptr(), cost.dtype == torch.float64, cost.stride(0), cost.stride(1),
                           batch if items is None else len(items), rows, columns,
                           0 if items is None else items.data_ptr(), reg.data_ptr(), torch.get_num_threads())
