"""The judge, and what it finds each peer to be: right where it is, wrong where it is."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.cpu.case import Problem, problem
from benchmarks.cpu.methods import COMPILED, PEERS, PLAIN, STABILISED, TRANSLATION_INVARIANT, Method, Missing
from benchmarks.cpu.methods.ott import SETTINGS, Setting, linear_problem, ott_method, solver
from benchmarks.cpu.methods.ours import answer, solve
from benchmarks.cpu.search import search
from benchmarks.cpu.violation import judge, panels, plan_error, truth
from uotlib.reference import reference_plan, reference_sinkhorn

EASY = (0.1, 1.0)


def drawn(reg: float = EASY[0], reg_m: float = EASY[1], n: int = 30, reg_type: str = "kl") -> Problem:
    return problem(n, "clustered", reg, reg_m, seed=5).but(reg_type=reg_type)


def prepared(method: Method, one: Problem):
    try:
        return method.prepare(one)
    except Missing as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_cpu_judge_is_the_definition(reg_type):
    """Against the dense formula, at potentials that solve nothing."""
    one = drawn(reg_type=reg_type)
    f, g = torch.linspace(-0.1, 0.3, 30, dtype=torch.float64), torch.linspace(0.2, -0.2, 30, dtype=torch.float64)
    plan = reference_plan(f, g, one.cost, one.a, one.b, one.reg, reg_type)
    off = (plan.sum(1) - one.a * torch.exp(-f / one.reg_m)).abs().sum() + (
        plan.sum(0) - one.b * torch.exp(-g / one.reg_m)).abs().sum()
    verdict = judge(one, f, g)
    assert verdict.violation == pytest.approx(float(off / plan.sum()), rel=1e-12)
    assert verdict.mass == pytest.approx(float(plan.sum()), rel=1e-12)
    torch.testing.assert_close(torch.cat([panel for _, panel in panels(one, f, g)]), plan)


def test_cpu_judge_knows_a_closed_form():
    """One point a side: stationarity of the objective in the one entry t gives t, and f = -tau log(t/a)."""
    cost, a, b, reg, tau = 0.7, 0.4, 0.9, 0.2, 0.5
    t = math.exp(((tau * math.log(a) + tau * math.log(b) + reg * math.log(a * b)) - cost) / (2 * tau + reg))
    one = Problem(torch.tensor([[cost]]), torch.tensor([a]), torch.tensor([b]), reg, tau)
    f, g = (-tau * torch.tensor([math.log(t / mass)], dtype=torch.float64) for mass in (a, b))
    verdict = judge(one, f, g)
    assert verdict.violation < 1e-6  # the masses and the cost are float32
    assert verdict.mass == pytest.approx(t, rel=1e-6)
    assert judge(one, f + 0.01, g).violation > 0.05


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_cpu_truth_is_what_the_reference_converges_to(reg_type):
    one = drawn(reg_type=reg_type)
    true = truth(one)
    textbook = reference_sinkhorn(one.cost, one.a, one.b, one.reg, one.reg_m, reg_type, n_iter=400)
    assert judge(one, *true).violation < 1e-8
    assert plan_error(one, textbook.f, textbook.g, true) < 1e-6
    assert plan_error(one, textbook.f - 50.0, textbook.g, true) == pytest.approx(1.0)  # a plan of zeros
    assert judge(one, textbook.f, textbook.g + 0.05).violation > 0.1


def test_cpu_judge_sees_the_worst_of_a_batch():
    items = [drawn(n=12), problem(12, "shuffled", *EASY, seed=9)]
    batch = Problem(*(torch.stack([getattr(item, name) for item in items]) for name in ("cost", "a", "b")), *EASY)
    found = answer(solve(batch, 1e-6))
    assert judge(batch, found.f, found.g).violation < 2e-6
    found.g[1] += 0.1
    assert judge(batch, found.f, found.g).violation == pytest.approx(
        judge(items[1], found.f[1], found.g[1]).violation)


def test_cpu_our_potentials_are_those_of_the_plan():
    """The judge looks at float64 potentials; the plan that the user gets is theirs to float32."""
    one = drawn(1e-3, 0.1)
    solution = solve(one, 1e-3)
    found = answer(solution)
    plan = torch.cat([panel for _, panel in panels(one, found.f, found.g)])
    error = float((solution.plan.double() - plan).abs().sum() / plan.sum())
    assert error < 1e-4
    assert abs(float(solution.violation) - judge(one, found.f, found.g).violation) < 1e-4


@pytest.mark.parametrize("method", [method for method in PEERS if method is not COMPILED],
                         ids=lambda method: method.label)
def test_cpu_peers_arrive_where_it_is_easy(method):
    """Each solves the convention that it is said to: its plan is the float64 truth, or on the way there (GeomLoss)."""
    one = drawn(reg_type=method.convention)
    runner = prepared(method, one)
    schedule = method.name == "GeomLoss"  # eps reaches its target in the last step alone
    iterations = 800 if schedule else 200
    found = runner.answer(runner.run(iterations), iterations)
    assert plan_error(one, found.f, found.g, truth(one)) < (0.02 if schedule else 1e-3)
    other = one.but(reg_type="entropy" if method.convention == "kl" else "kl")
    assert judge(other, found.f, found.g).violation > 0.1


def test_cpu_compiled_iteration_is_the_eager_one():
    one = drawn(n=24)
    eager, compiled = (prepared(method, one).run(7) for method in (PEERS[-2], COMPILED))
    for plain, fast in zip(eager, compiled, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", [Setting(momentum=1.5, recenter=True), Setting(anderson=3)], ids=str)
def test_cpu_ott_loop_is_otts(setting):
    """The loop of variable length gives what OTT's own solver gives after as many iterations."""
    one = drawn(reg_type="entropy")
    runner = prepared(ott_method(setting), one)
    theirs = solver(setting, 12)(linear_problem(one, setting))
    found = runner.answer(runner.run(12), 12)
    for mine, wanted in ((found.f, theirs.f), (found.g, theirs.g)):
        torch.testing.assert_close(mine, torch.tensor(wanted.tolist(), dtype=torch.float64), rtol=1e-4, atol=1e-5)


def test_cpu_every_setting_of_ott_is_told_apart():
    assert len({str(setting) for setting in SETTINGS}) == len(SETTINGS)


@pytest.mark.parametrize("method", [*PLAIN, *STABILISED, *TRANSLATION_INVARIANT], ids=lambda method: method.label)
def test_cpu_zero_plan_is_shown_as_such(method):
    """POT at eps 1e-4: e^(-C/eps) is zero in float64, and so is the plan, without an error."""
    one = drawn(1e-4, 0.1)
    trace = search(prepared(method, one), one, 1e-3, budget=0.05)
    assert trace.status == "zero plan"
    assert plan_error(one, trace.answer.f, trace.answer.g, truth(one)) == pytest.approx(1.0, abs=1e-6)


def test_cpu_a_wrong_fixed_point_is_shown_as_wrong():
    """A method that converges, to another problem's plan: the textbook with twice the penalty."""
    one = drawn()
    right = PEERS[-2]
    other = right.prepare(one.but(reg_m=2 * one.reg_m))
    trace = search(other, one, 1e-4, budget=5.0)
    assert trace.status == "wrong"
    assert trace.verdict.violation > 0.1
    assert search(right.prepare(one), one, 1e-4, budget=5.0).status == "reached"


def test_cpu_search_finds_the_first_iterations_that_are_enough():
    one = drawn(0.05)
    runner = PEERS[-2].prepare(one)
    trace = search(runner, one, 1e-3, budget=5.0, refinements=12)
    before = runner.answer(runner.run(trace.iterations - 1), 0)
    assert trace.status == "reached"
    assert trace.verdict.violation <= 1e-3 < judge(one, before.f, before.g).violation
    assert [count for count, _, _ in trace.points] == sorted(count for count, _, _ in trace.points)
    assert search(runner, one, 1e-12, budget=1e-6).status == "slow"
