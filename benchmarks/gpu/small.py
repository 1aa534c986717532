"""Batches of small problems: an iteration of all of them, and whole solves."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from benchmarks.cpu.case import BATCH_TARGET, BATCHES, TARGETS, Problem

from . import problems
from .iteration import our_iteration, our_solve, peer_iteration, peer_solve
from .peers import dense_peers
from .stage import Stage


def measure(stage: Stage) -> None:
    target = stage.choose(BATCH_TARGET, TARGETS[0])
    for batch, n in stage.choose(BATCHES, ((2, 9),)):
        shape = {"n": n, "batch": batch, "eps": target.reg}
        drawn: Callable[[], Problem] = cache(partial(
            problems.dense, batch, n, target.reg, target.reg_m, stage.device))
        for method in ("sinkhorn", "auto"):
            for graph in stage.choose((True, False), (True,)):
                stage.row({"case": "iteration", "method": f"uotlib {method}", **shape, "graph": graph},
                          lambda drawn=drawn, method=method, graph=graph: our_iteration(stage, drawn(), method, graph))
        stage.row({"case": "solve", "method": "uotlib auto", **shape},
                  lambda drawn=drawn: our_solve(stage, drawn(), target.violation))
        for peer in dense_peers(stage):
            if not peer.batched:
                continue
            for graph in (True, False) if peer.graph else (False,):
                stage.row({"case": "iteration", "method": peer.name, **shape, "graph": graph},
                          lambda drawn=drawn, peer=peer, graph=graph: peer_iteration(stage, peer, drawn(), graph))
            stage.row({"case": "solve", "method": peer.name, **shape},
                      lambda drawn=drawn, peer=peer: peer_solve(stage, peer, drawn(), target.violation))
