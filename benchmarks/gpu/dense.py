"""An iteration on dense costs: the library's, in a CUDA graph and from the host, and its peers'."""

from __future__ import annotations

from functools import cache, partial

from . import problems
from .iteration import our_iteration, peer_iteration
from .peers import dense_peers
from .stage import Stage

#: (problems, points a side), most worth first.
SHAPES = ((1, 4096), (1, 2048), (1, 1024), (8, 4096), (8, 2048), (8, 1024))
#: Peers are timed at the first eps, on which their iterations do not depend.
REGS, REG_M = (1e-2, 1e-1, 1e-3, 1e-4), 1.0


def measure(stage: Stage) -> None:
    shapes, regs = stage.choose(SHAPES, ((1, 12), (2, 9))), stage.choose(REGS, (1e-1,))
    for reg in regs:
        for batch, n in shapes:
            drawn = cache(partial(problems.dense, batch, n, reg, REG_M, stage.device))
            shape = {"n": n, "batch": batch, "eps": reg}
            for method in ("sinkhorn", "auto"):
                for graph in stage.choose((True, False), (True,)):
                    stage.row({"method": f"uotlib {method}", **shape, "graph": graph},
                              lambda drawn=drawn, method=method, graph=graph: our_iteration(
                                  stage, drawn(), method, graph))
            for peer in dense_peers(stage) if reg == regs[0] else ():
                for graph in (True, False) if peer.graph else (False,):
                    if batch == 1 or peer.batched:
                        stage.row({"method": peer.name, **shape, "graph": graph},
                                  lambda drawn=drawn, peer=peer, graph=graph: peer_iteration(
                                      stage, peer, drawn(), graph))
