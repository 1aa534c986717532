"""The four operations on the CPU, by the compiled kernels of csrc/cpu: one read of the cost each.

Arithmetic is in the type of the cost and sums over more than a few hundred rows are in float64.  Results do not depend
on the number of threads, which is torch's (`torch.set_num_threads`).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from .._extension import extension, missing
from .base import Backend

_DTYPES = (torch.float32, torch.float64)


class NativeBackend(Backend):
    name = "native"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if missing is not None:
            return missing
        if device.type != "cpu":
            return f"the native backend runs on the CPU, the cost is on {device}"
        if dtype not in _DTYPES:
            return f"the native backend takes costs of type float32 or float64, not {str(dtype).removeprefix('torch.')}"
        return None

    def row_lse(self, cost: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        log_v, reg = _vector(log_v), _vector(reg)
        lse = _empty(len(reg), cost.shape[1])
        _kernels().row_lse(_cost(cost, reg, items), log_v.data_ptr(), lse.data_ptr())
        return lse

    def col_lse(self, cost: Tensor, log_u: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        log_u, reg = _vector(log_u), _vector(reg)
        lse = _empty(len(reg), cost.shape[2])
        _kernels().col_lse(_cost(cost, reg, items), log_u.data_ptr(), lse.data_ptr())
        return lse

    def sweep(self, cost: Tensor, log_v: Tensor, offset: Tensor, damping: Tensor, reg: Tensor, shift: Tensor,
              col_mass: Tensor, items: Tensor | None = None) -> Tensor:
        log_v, offset, damping, reg, shift = map(_vector, (log_v, offset, damping, reg, shift))
        lse = _empty(len(reg), cost.shape[1])
        total = col_mass if col_mass.is_contiguous() else col_mass.contiguous()
        _kernels().sweep(_cost(cost, reg, items), log_v.data_ptr(), offset.data_ptr(), damping.data_ptr(),
                         shift.data_ptr(), total.data_ptr(), lse.data_ptr())
        if total is not col_mass:
            col_mass.copy_(total)
        return lse

    def panel(self, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, items: Tensor | None = None) -> Tensor:
        log_u, log_v, reg = map(_vector, (log_u, log_v, reg))
        plan = torch.empty(len(reg), *cost.shape[1:], dtype=cost.dtype)
        _kernels().panel(_cost(cost, reg, items), log_u.data_ptr(), log_v.data_ptr(), plan.data_ptr())
        return plan


def _kernels() -> ModuleType:
    if extension is None:
        raise ImportError(missing)
    return extension


def _vector(values: Tensor) -> Tensor:
    """As the kernels read it.  The caller must keep the result alive over the call."""
    return values.to(torch.float64).contiguous()


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


def _cost(cost: Tensor, reg: Tensor, items: Tensor | None) -> object:
    """The part of a call's description that all operations share; `reg` and `items` as the kernels read them."""
    batch, rows, columns = cost.shape
    if items is not None and (items.dtype != torch.int64 or not items.is_contiguous()):
        raise ValueError(f"items must be contiguous and int64, got strides {items.stride()} and {items.dtype}")
    if columns > 1 and cost.stride(2) != 1:
        raise ValueError(f"cost must have unit stride along its last axis, got strides {cost.stride()}")
    return _kernels().Cost(cost.data_ptr(), cost.dtype == torch.float64, cost.stride(0), cost.stride(1),
                           batch if items is None else len(items), rows, columns,
                           0 if items is None else items.data_ptr(), reg.data_ptr(), torch.get_num_threads())
