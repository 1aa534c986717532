"""Times of the sweep beside one read of the cost and two log-sum-exps of torch, in the same run."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from uotlib.backends.triton import TritonBackend
from uotlib.kernels.tiles import Tile, TileTable

from .ceilings import read_call
from .correctness import BOUND, draw, sweep_error
from .timing import Call, call_us, copies_beyond_l2, graph_us

#: Alternatives to the table's tile for rows of 4096, to be judged on a device.
CANDIDATES = (Tile(2, 4096, 8), Tile(2, 4096, 8, stages=2), Tile(1, 4096, 8), Tile(1, 4096, 8, stages=4),
              Tile(2, 4096, 16, per_sm=1), Tile(4, 4096, 16, per_sm=1), Tile(4, 4096, 16, stages=2, per_sm=1))


def _sweep_calls(case: dict[str, Tensor], copies: int, backend: TritonBackend) -> list[Call]:
    mass = torch.zeros_like(case["log_v"])
    costs = [case["cost"]] + [case["cost"].clone() for _ in range(copies - 1)]
    return [lambda cost=cost: backend.sweep(**{**case, "cost": cost}, col_mass=mass) for cost in costs]


def two_logsumexp(cost: Tensor, log_u: Tensor, log_v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A textbook iteration's two passes, as a user of torch would write them."""
    exponent = cost * -scale
    return (exponent + log_v[:, None, :]).logsumexp(2), (exponent + log_u[:, :, None]).logsumexp(1)


def time_size(n: int, batch: int, regs: tuple[float, ...], device: torch.device, hardware: dict[str, Any],
              compiled: bool) -> list[dict[str, Any]]:
    """One row an eps.  A sweep that fails its check is not timed."""
    shape, backend = (batch, n, n), TritonBackend()
    copies = copies_beyond_l2(batch * n * n * 4, hardware["l2_bytes"])
    case = draw(shape, regs[0], device)
    reads: list[Call] = [read_call(case["cost"].clone(), hardware["multiprocessors"]) for _ in range(copies)]
    read = graph_us(reads)
    del reads
    vectors = torch.zeros(batch, n, device=device)

    def textbook() -> tuple[Tensor, Tensor]:
        return two_logsumexp(case["cost"], vectors, vectors, 10.0)

    common: dict[str, Any] = {"n": n, "batch": batch, "one_read_us": read, "two_logsumexp_us": call_us(textbook)}
    if compiled:
        fused = torch.compile(two_logsumexp, dynamic=False)
        common["two_logsumexp_compiled_us"] = call_us(lambda: fused(case["cost"], vectors, vectors, 10.0))
    rows = []
    for eps in regs:
        case = draw(shape, eps, device)
        wrong = sweep_error(case, backend)
        row = {**common, "eps": eps, "error": wrong, "correct": wrong <= BOUND[torch.float32]}
        if row["correct"]:
            calls = _sweep_calls(case, copies, backend)
            row["sweep_us"] = graph_us(calls)
            row["sweep_cached_us"] = graph_us(calls[:1] * 10)
            row["sweep_from_host_us"] = call_us(calls[0])
            row["over_one_read"] = row["sweep_us"] / read
            for name in ("two_logsumexp_us", "two_logsumexp_compiled_us"):
                if name in common:
                    row[name.removesuffix("_us") + "_over_sweep"] = common[name] / row["sweep_us"]
        rows.append(row)
    return rows


def time_batches(device: torch.device, hardware: dict[str, Any]) -> dict[str, Any]:
    """64 problems of 512 x 512, all in one sweep."""
    case, backend = draw((64, 512, 512), 1e-2, device), TritonBackend()
    wrong = sweep_error(case, backend)
    record: dict[str, Any] = {"n": 512, "batch": 64, "error": wrong, "correct": wrong <= BOUND[torch.float32]}
    if record["correct"]:
        calls = _sweep_calls(case, copies_beyond_l2(case["cost"].nbytes, hardware["l2_bytes"]), backend)
        record["sweep_us"] = graph_us(calls)
        record["sweep_cached_us"] = graph_us(calls[:1] * 10)
    return record


def time_fallback(device: torch.device) -> dict[str, Any]:
    """What the exact redo of weak columns costs at 4096: no column flagged, one, all."""
    case, backend = draw((1, 4096, 4096), 1e-2, device), TritonBackend()
    record = {}
    for name, count in (("none", 0), ("one", 1), ("all", 4096)):
        mask = torch.arange(4096, device=device)[None] < count
        record[name + "_us"] = graph_us([lambda mask=mask: backend.col_lse_masked(case["cost"], case["offset"],
                                                                                  case["reg"], mask)])
    return record


def time_tiles(device: torch.device, hardware: dict[str, Any]) -> list[dict[str, Any]]:
    """The sweep at 4096 with each candidate tile."""
    case = draw((1, 4096, 4096), 1e-2, device)
    copies = copies_beyond_l2(case["cost"].nbytes, hardware["l2_bytes"])
    rows = []
    for tile in CANDIDATES:
        backend = TritonBackend(dataclasses.replace(TileTable(), sweep=(tile,)))
        row: dict[str, Any] = dataclasses.asdict(tile)
        try:
            wrong = sweep_error(case, backend)
            row |= {"error": wrong, "correct": wrong <= BOUND[torch.float32]}
            if row["correct"]:
                row["sweep_us"] = graph_us(_sweep_calls(case, copies, backend))
        except Exception as failure:  # a candidate that does not fit the device is a result too
            row |= {"correct": False, "failure": f"{type(failure).__name__}: {failure}"[:300]}
        rows.append(row)
    return rows
