"""Whole solves by the resident kernel of csrc/cuda: one launch from potentials to certificate, float32, NVIDIA devices.

The kernel keeps what it can of the cost in shared memory from one iteration to the next, and solves small problems of a
batch beside each other; `docs/cuda.md` says how.  What is not a solve of a cost in memory (single passes of streamed
costs, products with the plan, gradients) is done by the kernels of the triton backend, from which this one inherits.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .._extension import extension, missing
from ..exceptions import BackendUnavailable
from ..options import SolverOptions
from ..outcome import SCALARS, Outcome, StoredOutcome
from .triton import TritonBackend
from .triton_small import MAX_PASSES

if TYPE_CHECKING:
    from types import ModuleType

    from ..problem import Problem


class CudaBackend(TritonBackend):
    """The resident kernel.  Not among those that "auto" tries: no record has shown yet what it gains on a device."""

    name = "cuda"
    automatic = False
    storages: ClassVar[tuple[str, ...]] = ()

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        if missing is not None:
            return missing
        if device.type != "cuda" or torch.version.hip is not None:
            where = "a ROCm device" if device.type == "cuda" else str(device)
            return f"the cuda backend needs an NVIDIA GPU; the cost is on {where}"
        if dtype != torch.float32:
            return f"the cuda backend takes float32 costs, not {str(dtype).removeprefix('torch.')}"
        return super().why_not(device, dtype) or _device_reason(_index(device))

    def solve(self, problem: Problem, cost: Tensor, method: str, max_iter: int, tol: float | None,
              init: tuple[Tensor, Tensor] | None, options: SolverOptions) -> Outcome:
        """See `uotlib.backends.base.Backend.solve`.

        Raises:
            BackendUnavailable: for what the kernel does not take, though its device could run it.

        Warns:
            RuntimeWarning: once a device, if it refuses a launch of clusters that it had promised.
        """
        assert extension is not None  # why_not has said so
        batch, (_, n, m) = problem.batch, cost.shape
        reason = _refusal(extension, n, m, max_iter, tol, options)
        if reason is not None:
            raise BackendUnavailable(reason)
        answers = torch.empty(batch * (3 * n + 3 * m + SCALARS), dtype=torch.float64, device=cost.device)
        if batch:
            start = None if init is None else init[1]
            # Contiguous copies may go when this returns: what takes their memory comes behind the launch on the stream.
            keep = [None if values is None else values.contiguous() for values in (
                problem.rows.mass, problem.rows.penalty.tau, problem.cols.mass, problem.cols.penalty.tau, problem.reg,
                problem.cost_items, start)]
            mass_a, tau_a, mass_b, tau_b, reg, items, begin = [0 if values is None else values.data_ptr()
                                                               for values in keep]
            run = extension.Resident(
                (cost.data_ptr(), cost.stride(0), cost.stride(1), items, batch, n, m), (mass_a, tau_a),
                (mass_b, tau_b), reg, begin, answers.data_ptr(), problem.reg_type == "entropy", method == "sinkhorn",
                max_iter, tol or 0.0, tol != 0, _settings(options))
            index = _index(cost.device)
            memory = torch.empty(run.workspace(index), dtype=torch.uint8, device=cost.device)
            if run.launch(index, torch.cuda.current_stream(cost.device).cuda_stream, memory.data_ptr()):
                warnings.warn(f"device {index} refused a launch of clusters: from now on blocks that share a problem "
                              "meet in global memory, with the same results", RuntimeWarning, stacklevel=2)
        return StoredOutcome(answers, batch, n, m)

    def division(self, shape: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
        """How a batch (B, n, m) of contiguous costs is divided on a device, with the default options.

        Returns:
            ``groups`` of so many ``blocks`` that each work on a problem at a time, and whether each is a ``cluster``;
            the ``rows`` of a block, of which ``resident_rows`` stay in shared memory; and how the ``others`` come:
            "ahead" (to registers), through a "ring" in shared memory, or as "panels" of rows too wide for that, with
            so many ``stages``, filled by ``bulk`` copies or by each thread.

        Raises:
            BackendUnavailable: if the device cannot run the kernel, or the kernel does not take such costs.
        """
        batch, n, m = shape
        reason = self.why_not(device, torch.float32)
        if reason is None and extension is not None:
            reason = _refusal(extension, n, m, 1, None, SolverOptions())
        if reason is not None or extension is None:
            raise BackendUnavailable(reason or missing)
        nothing = 0, 0
        request = extension.Resident((0, n * m, m, 0, batch, n, m), nothing, nothing, 0, 0, 0, False, False, 1, 0.0,
                                     False, _settings(SolverOptions()))
        return request.division(_index(device))


def _settings(options: SolverOptions) -> dict[str, Any]:
    return vars(options) | {"check_every": options.looks_every(asynchronous=False)}


def _refusal(limits: ModuleType, n: int, m: int, max_iter: int, tol: float | None,
             options: SolverOptions) -> str | None:
    """What of a problem and its options the kernel does not take, in a sentence."""
    if m > limits.RESIDENT_COLUMNS:
        return f"the cuda backend takes costs of up to {limits.RESIDENT_COLUMNS} columns, got {m}"
    if n >= 1 << 30:
        return f"the cuda backend takes costs of fewer than 2^30 rows, got {n}"
    if max_iter > MAX_PASSES:  # a kernel cannot be interrupted
        return f"the cuda backend takes max_iter up to {MAX_PASSES}, got {max_iter}"
    for name, most in (("anderson_depth", limits.RESIDENT_DEPTH), ("anneal_order", limits.RESIDENT_ORDER)):
        if getattr(options, name) > most:
            return f"the cuda backend takes SolverOptions.{name} up to {most}, got {getattr(options, name)}"
    if options.progress is not False and tol != 0:
        return f"the cuda backend cannot report progress: a solve is one launch; got progress={options.progress!r}"
    return None


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def _device_reason(index: int) -> str | None:
    reason = extension.resident_why_not(index) if extension is not None else missing
    return f"the cuda backend cannot run on device {index}: {reason}" if reason else None
