"""The judge of gradients, and what it finds each peer's to be: right where it is, wrong where it is."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cpu.backward import FEW, GRADIENT_TARGET, MORE, WRONG, Gradients
from benchmarks.cpu.bench import Bench
from benchmarks.cpu.case import Target
from benchmarks.cpu.gradients import DIFFERENTIABLE, LOGSUMEXP, LOSSES, OTT, Differentiable, Pass, Task, draw_task
from benchmarks.cpu.gradients.base import cosine
from benchmarks.cpu.gradients.ours import gradient_error, our_pass, true_gradient
from benchmarks.cpu.methods import Missing
from uotlib.reference import reference_plan, reference_sinkhorn

EASY = Target(0.1, 1.0, 1e-4)
POT, GEOMLOSS = DIFFERENTIABLE[1:3]


def gradient(method: Differentiable, given: Task, iterations: int) -> torch.Tensor:
    try:
        run = method.prepare(given.but(reg_type=method.convention), iterations)
    except Missing as absent:
        pytest.skip(str(absent))
    return run.tensor(run.backward(run.forward(iterations)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_cpu_true_gradient_is_that_of_the_reference(loss, reg_type):
    """The loss of the reference's plan as a function of the input, by central differences along a direction."""
    given = draw_task(loss, 14, EASY).but(reg_type=reg_type)
    one, v = given.problem, given.v.double()
    a, b = one.a.double(), one.b.double()
    leaf = (given.x if given.to_features else one.cost).double()

    def of(tensor: torch.Tensor) -> float:
        cost = cosine(tensor, given.z.double()) if given.to_features else tensor
        found = reference_sinkhorn(cost, a, b, one.reg, one.reg_m, reg_type, n_iter=600)
        plan = reference_plan(found.f, found.g, cost, a, b, one.reg, reg_type)
        if given.of_plan:
            return float(given.loss_of(plan, v))

        def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
            return (p * (p / q).log() - p + q).sum()

        entropic = kl(plan, a[:, None] * b) if reg_type == "kl" else (plan * (plan.log() - 1)).sum()
        return float((cost * plan).sum() + one.reg_m * (kl(plan.sum(1), a) + kl(plan.sum(0), b)) + one.reg * entropic)

    direction = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-5
    slope = (of(leaf + step * direction) - of(leaf - step * direction)) / (2 * step)
    true = true_gradient(given)
    assert float((true * direction).sum()) == pytest.approx(slope, rel=1e-5)
    assert gradient_error(true, true) == 0.0
    assert gradient_error(-true, true) == pytest.approx(2.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", DIFFERENTIABLE, ids=lambda method: method.name)
def test_cpu_gradients_of_peers_where_it_is_easy(method, loss):
    """All that differentiate their iterations, or the solution, are right; GeomLoss sees its last step."""
    given = draw_task(loss, 24, EASY).but(reg_type=method.convention)
    error = gradient_error(gradient(method, given, 16 if method is OTT else 200), true_gradient(given))
    if method is GEOMLOSS:
        assert error > 10 * WRONG
    else:
        assert error < WRONG
    own = our_pass(given, EASY.violation)
    assert gradient_error(own.backward(own.forward(0)), true_gradient(given)) < WRONG


def test_cpu_autograd_through_too_few_iterations_is_wrong():
    given = draw_task("plan to C", 24, GRADIENT_TARGET)
    assert gradient_error(gradient(LOGSUMEXP, given, 4), true_gradient(given)) > 10 * WRONG
    assert POT.iterations(24, GRADIENT_TARGET) > 100


@pytest.mark.parametrize(("scale", "status"), [(1.0, "reached"), (1.5, "wrong")])
def test_cpu_a_wrong_gradient_is_called_wrong(scale, status):
    """The library itself, told to be a peer, and one whose gradient is half as large again."""

    def prepare(given: Task, _: int) -> Pass:
        own = our_pass(given, EASY.violation)
        return Pass(own.forward, lambda made: scale * own.backward(made))

    bench = Bench.tiny()
    peer = Differentiable("peer", "scaled", prepare, lambda n, target: 7, affine=False)
    row = Gradients(bench, 20, "plan to C").peer(peer)
    assert row.status == status
    assert row.gradient_error == pytest.approx(scale - 1, abs=0.01)
    assert row.iterations == 7
    assert bench.recorder.rows == [row]


def test_cpu_time_of_many_iterations_is_told_by_few(monkeypatch):
    """Forward 1 s and 2 s an iteration, backward 3 s and 4 s an iteration: 100 take 201 s and 403 s."""
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1e-6  # what the library and the floor take
        return clock[0]

    monkeypatch.setattr("benchmarks.cpu.search.time.perf_counter", tick)
    ran = []

    def prepare(given: Task, _: int) -> Pass:
        own = our_pass(given, EASY.violation)

        def forward(iterations: int) -> object:
            ran.append(iterations)
            clock[0] += 1 + 2 * iterations
            return own.forward(iterations), iterations

        def backward(made) -> torch.Tensor:
            clock[0] += 3 + 4 * made[1]
            return own.backward(made[0])

        return Pass(forward, backward)

    peer = Differentiable("peer", "", prepare, lambda n, target: 100)
    row = Gradients(Bench.tiny(), 20, "plan to C").peer(peer)
    assert row.seconds == pytest.approx(604.0)
    assert row.backward == pytest.approx(403.0)
    assert sorted(set(ran)) == [FEW, MORE, 100]  # the last to judge the gradient, untimed
    assert row.note == f"time from {MORE} of 100 iterations, gradient judged at n = 20"


def test_cpu_a_missing_peer_has_a_row():
    def prepare(given: Task, _: int) -> Pass:
        raise Missing("peer is not installed")

    row = Gradients(Bench.tiny(), 20, "value to C").peer(Differentiable("peer", "", prepare, lambda *_: 1))
    assert (row.status, row.note, row.seconds) == ("missing", "peer is not installed", None)
