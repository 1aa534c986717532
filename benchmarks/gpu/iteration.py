"""One row of an iteration, or of a whole solve: the library's or a peer's, judged before it is timed."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.cpu.case import Problem
from benchmarks.cpu.methods import Answer, Runner
from benchmarks.cpu.methods.ours import answer
from benchmarks.cpu.search import search
from benchmarks.cpu.violation import judge

from . import ours
from .peers import Peer
from .stage import Row, Stage

#: Relative error of a textbook peer's plan, from which on it is wrong.
PEER_BOUND = 0.02
#: Iterations after which the violation of another peer is told, and the violation from which on it is wrong.
SHOWN, UNSOLVED = 50, 1.0
#: Seconds that the search for a peer's fewest iterations may take.
BUDGET = 2.0


def our_iteration(stage: Stage, problem: Problem, method: str, graph: bool, **how: Any) -> Row:
    """``how``: more settings of `ours.solve`."""
    init = ours.near(problem)
    row = ours.check(problem, method, init, **how)
    if not row["correct"]:
        return row
    return row | _timed(stage, problem, ours.iterations(problem, method, init, **how), graph)


def peer_iteration(stage: Stage, peer: Peer, problem: Problem, graph: bool) -> Row:
    problem = problem.but(reg_type=peer.convention)
    runner = peer.prepare(problem)
    row = _verdict(peer, problem, runner)
    return row | _timed(stage, problem, runner.run, graph) if row["correct"] else row


def _timed(stage: Stage, problem: Problem, run: Any, graph: bool) -> Row:
    seconds = stage.timer.per_iteration(run, graph)
    return {"seconds": seconds, "of_copy": stage.share_of_copy(problem.cost.nbytes, seconds)}


def _verdict(peer: Peer, problem: Problem, runner: Runner) -> Row:
    """What the answer of a few iterations is worth."""
    count = ours.CHECKED if peer.textbook else SHOWN
    found = _here(runner.answer(runner.run(count), count), problem)
    if peer.textbook:
        error = ours.potential_error(problem, found.f, found.g)
        return {"error": error, "bound": PEER_BOUND, "correct": error <= PEER_BOUND}
    violation = judge(problem, found.f, found.g).violation
    return {"violation": violation, "iterations": count, "correct": violation < UNSOLVED}


def our_solve(stage: Stage, problem: Problem, violation: float, **how: Any) -> Row:
    """A whole call, to a violation as the judge sees it."""
    solve = partial(ours.to_violation, problem, violation, **how)
    solution = solve()
    pair = answer(solution)
    found = judge(problem, pair.f, pair.g).violation
    row = {"violation": found, "claimed": float(solution.violation.max()), "iterations": int(solution.n_iter.max()),
           "correct": found <= violation}
    if row["correct"]:
        row["seconds"] = stage.timer.host(solve, spend=0.5, most=10)
    return row


def peer_solve(stage: Stage, peer: Peer, problem: Problem, violation: float) -> Row:
    """The fewest iterations with which a peer is within a violation, and their time."""
    problem = problem.but(reg_type=peer.convention)
    runner = peer.prepare(problem)

    def run(iterations: int) -> Any:
        raw = runner.run(iterations)
        stage.timer.wait()
        return raw

    judged = Runner(run, lambda raw, iterations: _here(runner.answer(raw, iterations), problem))
    trace = search(judged, problem, violation, stage.choose(BUDGET, 0.2))
    row = {"status": "ok" if trace.status == "reached" else trace.status, "iterations": trace.iterations,
           "violation": trace.verdict.violation, "seconds": trace.seconds}
    if trace.status == "reached":
        row["seconds"] = stage.timer.host(partial(run, trace.iterations), spend=0.5, most=5)
    return row


def _here(found: Answer, problem: Problem) -> Answer:
    """JAX's arrays come by way of the host."""
    device = problem.cost.device
    return Answer(found.f.to(device), found.g.to(device), found.returned_mass)
