"""A matrix-free iteration: the library's, and that of peers that store no cost or all of it."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks.cpu.methods.base import Missing
from benchmarks.cpu.methods.ours import answer
from uotlib import unbalanced_sinkhorn

from . import feature_problem
from .feature_peers import FeaturePeer, compile_ahead, feature_peers
from .feature_problem import FeatureProblem
from .ours import CHECKED
from .stage import Row, Stage

#: (cost, n, d), most worth first.  The squared Euclidean one is flash-sinkhorn's own.
CELLS = tuple(("squared Euclidean", n, d) for d in (128, 64, 512) for n in (16384, 4096, 65536, 100000)) + tuple(
    ("cosine", n, d) for d in (64, 512) for n in (4096, 16384, 65536))
#: Where peers are timed: autotuning and what they store take time.
PEER_CELLS = (("squared Euclidean", 16384, 128), ("squared Euclidean", 65536, 64), ("squared Euclidean", 4096, 64),
              ("squared Euclidean", 16384, 512), ("squared Euclidean", 100000, 64), ("cosine", 16384, 64))
#: Of products, beside what the library chooses by eps: what flash-sinkhorn is asked for, to compare like with like.
PRECISIONS = ("tf32", "float32")
TINY = (("squared Euclidean", 24, 5), ("cosine", 17, 3))
#: Entries of the cost up to which an iteration is short enough to be timed in a graph too; of cosines, for whose
#: precision the norms of the features are not looked at.
IN_A_GRAPH = 1 << 24


def measure(stage: Stage) -> None:
    for cell in stage.choose(CELLS, TINY):
        for graph in (False, True) if cell[0] == "cosine" and cell[1] ** 2 <= IN_A_GRAPH else (False,):
            stage.row(_key("uotlib sinkhorn", cell, graph), partial(_ours, stage, cell, graph))
    for cell in stage.choose(PEER_CELLS, TINY):
        for precision in PRECISIONS if cell[0] != "cosine" else ():
            stage.row(_key(f"uotlib sinkhorn, {precision}", cell, False), partial(_ours, stage, cell, False, precision))
    rows = [(peer, cell) for cell in stage.choose(PEER_CELLS, TINY) for peer in feature_peers(stage)
            if cell[0] in peer.kinds and cell[1] <= peer.largest]
    compile_ahead(stage, {cell[1:] for peer, cell in rows if peer.name.startswith("flash")
                          and not stage.known(_key(peer.name, cell, False))})
    for peer, cell in rows:
        stage.row(_key(peer.name, cell, False), partial(_peer, stage, peer, cell))


def _key(method: str, cell: tuple[str, int, int], graph: bool) -> Row:
    kind, n, d = cell
    return {"method": method, "cost": kind, "n": n, "d": d, "graph": graph}


@lru_cache(maxsize=1)
def _problem(device: torch.device, cell: tuple[str, int, int]) -> FeatureProblem:
    return feature_problem.draw(*cell, device)


def _ours(stage: Stage, cell: tuple[str, int, int], graph: bool, precision: str | None = None) -> Row:
    problem = _problem(stage.device, cell)
    try:
        cost = problem.cost(materialize=False, precision=precision)
    except ValueError as reason:
        raise Missing(str(reason)) from reason

    def run(iterations: int) -> Any:
        return unbalanced_sinkhorn(cost, problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m, method="sinkhorn",
                                   tol=0, max_iter=iterations, grad="none", backend="triton")

    pair = answer(run(CHECKED))
    row = feature_problem.judged(problem, pair.f, pair.g)
    if precision is not None:  # as coarse as it was asked to be: shown with its error
        del row["correct"], row["bound"]
    elif not row["correct"]:
        return row
    return row | _timed(stage, problem, run, graph)


def _peer(stage: Stage, peer: FeaturePeer, cell: tuple[str, int, int]) -> Row:
    problem = _problem(stage.device, cell)
    run = peer.prepare(problem)
    f, g = run(CHECKED)
    row: Row = {"eps": problem.reg, "error": None}
    if peer.judged:
        row = feature_problem.judged(problem, f, g)
    elif not bool(torch.isfinite(f).all() & torch.isfinite(g).all()):
        row["correct"] = False
    # One that is less exact than it should be is timed all the same, and shown with its error.
    return row | _timed(stage, problem, run, False)


def _timed(stage: Stage, problem: FeatureProblem, run: Any, graph: bool) -> Row:
    """Time, rate, its share of each rate that products were measured at, and the peak of memory."""
    seconds = stage.timer.per_iteration(run, graph)
    rate = feature_problem.flop(problem) / seconds
    tops = {name: stage.ceilings.get(f"matmul_{name}_flop_per_s") for name in ("float32", "tf32", "bfloat16")}
    return {"eps": problem.reg, "seconds": seconds, "flop_per_s": rate,
            **{f"of_{name}": rate / top if top else None for name, top in tops.items()},
            "peak_bytes": stage.timer.peak(lambda: run(1))}
