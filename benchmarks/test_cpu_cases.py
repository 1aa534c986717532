"""Every case of the CPU benchmarks: measured with ``--benchmark``, else run once at a tiny size.

What a case asserts holds in both: a figure that belongs to a wrong answer of the library is no figure.
"""

from __future__ import annotations

import pytest

from benchmarks.cpu.arrival import Arrival
from benchmarks.cpu.backward import WRONG, Gradients
from benchmarks.cpu.batches import batch_arrival, batch_iteration
from benchmarks.cpu.bench import Bench
from benchmarks.cpu.case import BEYOND, ITERATION_REGS, ORDER, TARGETS
from benchmarks.cpu.gradient_memory import gradient_memory
from benchmarks.cpu.gradients import LOSSES
from benchmarks.cpu.iteration import iteration
from benchmarks.cpu.memory import memory
from benchmarks.cpu.methods.ours import NAME
from benchmarks.cpu.overhead import overhead
from benchmarks.cpu.record import Row
from benchmarks.cpu.report import label, times
from benchmarks.problems import ORDERS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from benchmarks.conftest import RUN

    run = metafunc.config.stash[RUN]
    if "n" in metafunc.fixturenames:
        metafunc.parametrize("n", run.sizes)
    if "gradient_n" in metafunc.fixturenames:
        metafunc.parametrize("gradient_n", run.gradient_sizes)
    if "batch" in metafunc.fixturenames:
        metafunc.parametrize("batch", run.batches, ids=lambda batch: f"{batch[0]}x{batch[1]}")


def say(run: Bench, rows: list[Row]) -> None:
    for row in rows:
        floor = f"{row.of_floor:8.1f} x C.sum()" if row.of_floor is not None else ""
        run.say(f"    {label(row):60s} {floor}  {times(row):>10s}  {row.status}")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("regs", ITERATION_REGS, ids=lambda regs: f"eps{regs[0]:g}")
def test_cpu_iteration(run: Bench, n, regs, order):
    """One iteration: the library in every order, its peers (which do not mind the order) in one."""
    peers = run.peers if order == ORDER and regs == ITERATION_REGS[0] else ()
    rows = iteration(run, n, order, *regs, peers=peers)
    say(run, rows)
    assert all(row.seconds is not None or row.status == "missing" for row in rows)
    assert rows[0].method == "C.sum()"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("target", [*TARGETS, BEYOND], ids=lambda target: f"eps{target.reg:g}-tau{target.reg_m:g}")
def test_cpu_time_to_violation(run: Bench, n, target, order):
    """The library in every order and, where a peer needs it, both conventions; its peers in one order."""
    peers = run.peers_to(n, target) if order == ORDER and target is not BEYOND else ()
    case = Arrival(run, n, order, target, curves=bool(peers) and n == max(run.sizes))
    ours = [case.ours(convention) for convention in sorted({"kl", *(peer.convention for peer in peers)}, reverse=True)]
    say(run, ours)
    for peer in peers:
        say(run, [case.peer(peer)])
    slack = 1.0 if run.measuring else 1.1  # with few points the rounding of float32 sums does not average out
    for row in ours:
        assert row.violation is not None
        assert row.violation <= slack * target.violation, f"{row.convention}: judged {row.violation:.2e}"
        if order == ORDER and target is not BEYOND:
            assert row.plan_error is not None
            assert row.plan_error < 1


def test_cpu_batch(run: Bench, batch):
    """An iteration, then the time to a violation."""
    say(run, batch_iteration(run, *batch))
    rows = batch_arrival(run, *batch)
    say(run, rows)
    assert rows[0].method == NAME
    assert rows[0].status == "reached"


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.replace(" ", "-"))
def test_cpu_gradient(run: Bench, gradient_n, loss):
    """Forward and backward: the library where a peer needs it in both conventions, and its peers."""
    case, peers = Gradients(run, gradient_n, loss), run.differentiable_to(gradient_n, loss)
    ours = [case.ours(convention) for convention in sorted({"kl", *(peer.convention for peer in peers)}, reverse=True)]
    say(run, ours)
    for peer in peers:
        say(run, [case.peer(peer)])
    for row in ours:
        assert row.gradient_error is not None
        assert row.gradient_error <= WRONG, f"{row.convention}: off by {row.gradient_error:.2e}"


def test_cpu_gradient_memory(run: Bench):
    """The library for each loss; its peers, whose losses differ in nothing that they store, for one."""
    for loss in LOSSES if run.measuring else LOSSES[1:2]:
        rows = gradient_memory(run, max(run.sizes), loss, run.differentiable if loss == LOSSES[0] else ())
        say(run, rows)
        assert all(row.of_floor is not None or row.status == "missing" for row in rows)


def test_cpu_memory(run: Bench):
    row = memory(run, max(run.sizes))
    say(run, [row])
    assert row.status == "reached"


def test_cpu_loop_overhead(run: Bench):
    row = overhead(run, min(run.sizes))
    say(run, [row])
    assert row.iterations is not None
    assert row.iterations > 0
