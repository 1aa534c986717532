"""Time to a violation: the library's whole call, and each peer stopped at the first iteration that is good enough.

The same targets, search and judge as on the CPU (docs/benchmarks.md).
"""

from __future__ import annotations

from functools import cache

from benchmarks.cpu.case import BEYOND, TARGETS, Target

from . import problems
from .iteration import our_solve, peer_solve
from .peers import dense_peers
from .stage import Row, Stage

SIZES = (4096, 1024)
#: Points a side at which peers are looked at.
PEERS_AT = 4096
#: In torch the compiled one runs: eager's iterations are the same.
LEFT_OUT = ("torch, two logsumexp",)


def measure(stage: Stage) -> None:
    cases = [(n, target) for n in SIZES for target in (*TARGETS, BEYOND)]
    drawn = cache(lambda n, target: problems.dense(1, n, target.reg, target.reg_m, stage.device))
    for convention in ("kl", "entropy"):  # OTT-JAX is compared in the latter
        for n, target in stage.choose(cases, [(12, TARGETS[0])]):
            if convention == "kl" or n == stage.choose(PEERS_AT, 12):
                stage.row(_key("uotlib auto", n, target, convention),
                          lambda n=n, target=target, convention=convention: our_solve(
                              stage, drawn(n, target).but(reg_type=convention), target.violation))
    # Beside the backend that "auto" takes, as another setting; in the rehearsal triton in its place.
    for n, target in stage.choose([(PEERS_AT, TARGETS[1])], [(12, TARGETS[0])]):
        stage.row(_key("uotlib cuda, auto", n, target, "kl"), lambda n=n, target=target: our_solve(
            stage, drawn(n, target), target.violation, backend=stage.choose("cuda", "triton")))
    for n, target in stage.choose([(PEERS_AT, target) for target in TARGETS], [(12, TARGETS[0])]):
        for peer in dense_peers(stage):
            if peer.name not in LEFT_OUT:
                stage.row(_key(peer.name, n, target, peer.convention), lambda n=n, target=target, peer=peer: peer_solve(
                    stage, peer, drawn(n, target), target.violation))


def _key(method: str, n: int, target: Target, convention: str) -> Row:
    return {"method": method, "n": n, "eps": target.reg, "tau": target.reg_m, "target": target.violation,
            "convention": convention}
