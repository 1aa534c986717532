"""The loop as a caller sees it: when it stops, what it counts, what it says."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from problems import CONVENTIONS, INF, PENALTIES, draw
from tolerances import assert_close

import uotlib
from uotlib import ConvergenceWarning, CosineCost, SolverOptions
from uotlib.reference import reference_dual, reference_plan, reference_primal

METHODS = ["auto", "sinkhorn"]


def violation(case, f, g) -> float:
    """By its definition, from the potentials alone."""
    plan = reference_plan(f, g, case.cost, case.a, case.b, case.reg, case.reg_type)
    rows, cols = case.a * torch.exp(-f / case.reg_m[0]), case.b * torch.exp(-g / case.reg_m[1])
    return float(((plan.sum(1) - rows).abs().sum() + (plan.sum(0) - cols).abs().sum()) / plan.sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reg_m", PENALTIES)
def test_violation_is_what_it_says(method, reg_m):
    for tol in (1e-2, 1e-5, 1e-9):
        case = draw(seed=1, reg=0.03, reg_m=reg_m)
        solution = case.solve(method=method, tol=tol, max_iter=5000)
        assert bool(solution.converged)
        assert float(solution.violation) <= tol
        assert violation(case, solution.f, solution.g) == pytest.approx(float(solution.violation), rel=1e-3, abs=1e-13)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("max_iter", [1, 2, 3, 5, 8, 9, 11, 16, 20, 25, 28])
def test_a_short_budget_still_answers_the_question_asked(max_iter, reg_type):
    """However few passes there are, pair, plan, violation and gap are those of the target eps."""
    case = draw(20, 27, seed=2, reg=1e-3, reg_type=reg_type)
    solution = case.solve(max_iter=max_iter, tol=0.0)
    plan = reference_plan(solution.f, solution.g, case.cost, case.a, case.b, case.reg, reg_type)
    assert_close(solution.plan, plan, 1e-9)
    assert float(solution.violation) == pytest.approx(violation(case, solution.f, solution.g), rel=1e-6)
    gap = reference_primal(plan, *case.definition) - reference_dual(solution.f, solution.g, *case.definition)
    assert float(solution.gap) == pytest.approx(float(gap), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_tol_zero_runs_all_passes_and_does_not_warn(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for max_iter in (1, 2, 7, 30):
            assert int(draw(seed=3).solve(method=method, tol=0, max_iter=max_iter).n_iter) == max_iter
    many = 60 if method == "auto" else 200
    assert bool(draw(seed=3).solve(method=method, tol=0, max_iter=many).converged), "within the default tolerance"


@pytest.mark.parametrize("method", METHODS)
def test_one_warning_when_max_iter_ends_first(method):
    case = draw(seed=4, reg=0.01, batch=(3,))
    with pytest.warns(ConvergenceWarning, match="3 of 3 problems did not reach tol within max_iter=4 pass") as caught:
        solution = case.solve(method=method, max_iter=4, tol=1e-10)
    assert len(caught) == 1
    assert caught[0].filename == __file__.replace("test_solver_loop", "problems"), "points at the caller"
    assert not solution.converged.any()
    assert (solution.n_iter == 4).all()
    with pytest.warns(ConvergenceWarning, match=r"the problem did not reach tol .* violation \d\.\d\de"):
        case.item(0).solve(method=method, max_iter=4, tol=1e-10)


def test_no_warning_at_convergence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool(draw(seed=5, batch=(2,)).solve().converged.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_floor_is_recognised(dtype, backend):
    """The reference backend computes in float64 whatever the cost's type, and can go below float32's floor."""
    case = draw(40, 50, seed=6, kind="clustered", reg=0.01)
    case = case.but(cost=case.cost.to(dtype), a=case.a.to(dtype), b=case.b.to(dtype))
    if dtype == torch.float32 and backend == "reference":
        assert bool(case.solve(tol=1e-12, max_iter=5000, backend=backend).converged)
        return
    with pytest.warns(ConvergenceWarning, match=f"rounding floor of {str(dtype)[6:]}.*raise tol or use float64"):
        solution = case.solve(tol=1e-12 if dtype == torch.float32 else 1e-17, max_iter=5000, backend=backend)
    assert int(solution.n_iter) < 1000
    assert not bool(solution.converged)
    assert float(solution.violation) < (1e-3 if dtype == torch.float32 else 1e-11)


def test_default_tolerance():
    r"""max(1e-5, u max|f, g| / (4 eps))."""
    double = draw(seed=7, reg=1e-3).solve(max_iter=5000)
    assert float(double.violation) <= 1e-5
    case = draw(30, 30, seed=7, kind="clustered", reg=1e-4, reg_m=0.1)
    single = case.but(cost=case.cost.float(), a=case.a.float(), b=case.b.float()).solve(max_iter=5000)
    largest = float(torch.maximum(single.f.abs().max(), single.g.abs().max()))
    assert bool(single.converged)
    assert float(single.violation) <= 2.0**-24 * largest / (4 * 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_progress_is_told_every_check(method):
    for every in (1, 3):
        seen: list[uotlib.Progress] = []
        case = draw(seed=8, reg=0.02, batch=(2,))
        solution = case.solve(method=method, options=SolverOptions(progress=seen.append, check_every=every))
        assert len(seen) >= int(solution.n_iter.max()) // every - 1
        assert [state.n_iter for state in seen] == sorted({state.n_iter for state in seen})
        assert all(state.reg >= 0.02 for state in seen)
        assert seen[-1].reg == pytest.approx(0.02)
        assert all(1 <= state.running <= 2 and state.violation >= 0 for state in seen)
        assert seen[-1].violation <= 1e-5


def test_progress_can_be_printed(capsys):
    draw(seed=8).solve(options=SolverOptions(progress=True))
    assert "violation" in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reg_m", PENALTIES)
def test_its_own_solution_is_where_it_stays(method, reg_m):
    """Not annealed away: a start at the solution is seen to be one within three passes."""
    case = draw(seed=9, reg=0.02, reg_m=reg_m)
    first = case.solve(tol=1e-9, max_iter=5000)
    again = case.solve(method=method, tol=1e-7, init=(first.f, first.g))
    assert int(again.n_iter) <= 3
    assert_close(again.plan, first.plan, 1e-5)


def test_a_start_nearby_saves_passes():
    case = draw(seed=10, reg=0.01)
    cold = case.solve(tol=1e-8)
    near = case.but(cost=case.cost + 1e-4 * torch.rand_like(case.cost)).solve(tol=1e-8, init=(cold.f, cold.g))
    assert bool(near.converged)
    assert int(near.n_iter) < int(cold.n_iter)


def test_start_broadcasts_and_may_be_infinite():
    """Potentials of points that reached nothing are +inf in a solution, and a solution is a legal start."""
    case = draw(4, 5, seed=11, batch=(3,))
    cost = case.cost.clone()
    cost[:, 1] = INF
    case = case.but(cost=cost)
    first = case.solve(tol=1e-9)
    assert torch.isposinf(first.f[:, 1]).all()
    again = case.solve(tol=1e-9, init=(first.f, first.g))
    assert_close(again.plan, first.plan, 1e-7)
    shared = case.solve(tol=1e-9, init=(first.f[0], first.g[0]))
    assert_close(shared.plan, first.plan, 1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_every_item_takes_its_own_time(method, backend):
    """Items of very different difficulty stop on their own, where and as they would have stopped alone."""
    case = draw(11, 9, seed=12, batch=(4,), kind="clustered")
    reg = torch.tensor([1.0, 0.3, 0.02, 0.05], dtype=torch.float64)
    tau = torch.tensor([0.1, 1.0, 5.0, INF], dtype=torch.float64)
    together = case.solve(method=method, reg=reg, reg_m=(tau, 0.5), tol=1e-6, max_iter=5000, backend=backend)
    assert bool(together.converged.all())
    assert int(together.n_iter.max()) > 3 * int(together.n_iter.min())
    for item in range(4):
        alone = case.item(item).solve(method=method, reg=float(reg[item]), reg_m=(float(tau[item]), 0.5), tol=1e-6,
                                      max_iter=5000, backend=backend)
        assert int(alone.n_iter) == int(together.n_iter[item])
        assert_close(together.plan[item], alone.plan, 1e-9)
        assert float(alone.violation) == pytest.approx(float(together.violation[item]), rel=1e-3)


def test_converged_is_per_item():
    case = draw(11, 9, seed=13, batch=(2,))
    reg = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="1 of 2 problems"):
        solution = case.solve(reg=reg, max_iter=25, tol=1e-9)
    assert solution.converged.tolist() == [True, False]
    assert int(solution.n_iter[0]) < int(solution.n_iter[1]) == 25


def test_checking_less_often_stops_at_a_check():
    case = draw(seed=14, reg=0.05)
    often, seldom = (case.solve(options=SolverOptions(check_every=every)) for every in (1, 10))
    assert int(seldom.n_iter) % 10 == 0
    assert int(often.n_iter) <= int(seldom.n_iter) < int(often.n_iter) + 10 + 10
    assert_close(seldom.plan, often.plan, 1e-4)


@pytest.mark.parametrize("change", [{"anderson_depth": 0}, {"anderson_depth": 1}, {"anneal_passes": 1},
                                    {"anneal_factor": 0.1}, {"anneal_start": 1e-9}, {"safeguard": 1.0},
                                    {"anderson_start": 5}, {"block_bytes": 4096}])
def test_settings_change_the_way_and_not_the_answer(change):
    case = draw(seed=15, kind="clustered", reg=0.02)
    solution = case.solve(tol=1e-9, max_iter=5000, options=SolverOptions(**change))
    assert bool(solution.converged)
    assert_close(solution.plan, case.solve(tol=1e-10).plan, 1e-6)


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SolverOptions().anneal_factor = 0.5


def test_inputs_are_left_alone():
    case = draw(seed=16)
    copies = [tensor.clone() for tensor in (case.cost, case.a, case.b)]
    f, g = torch.zeros(13), torch.zeros(17)
    case.solve(init=(f, g), max_iter=3, tol=0)
    for tensor, copy in zip((case.cost, case.a, case.b), copies, strict=True):
        assert torch.equal(tensor, copy)
    assert not f.any()
    assert not g.any()


def test_the_same_call_gives_the_same_bits(backend):
    case = draw(seed=17)
    first, second = (case.solve(backend=backend) for _ in range(2))
    assert torch.equal(first.plan, second.plan)
    assert torch.equal(first.value, second.value)


def test_auto_beats_the_textbook_by_far_where_tau_is_large():
    """eps 1e-3, tau 1: the textbook contracts by (tau / (tau + eps))^2 a step."""
    case = draw(60, 60, seed=18, kind="clustered", reg=1e-3, reg_m=1.0)
    auto = case.solve(tol=1e-6, max_iter=5000)
    with pytest.warns(ConvergenceWarning):
        textbook = case.solve(method="sinkhorn", tol=1e-6, max_iter=4 * int(auto.n_iter))
    assert bool(auto.converged)
    assert float(textbook.violation) > 1e-4


def test_features_and_dense_costs_take_the_same_way():
    x, z = (torch.randn(points, 4, generator=torch.Generator().manual_seed(points), dtype=torch.float64)
            for points in (12, 15))
    dense = 1 - torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(z, dim=-1).T
    settings = {"reg": 0.05, "reg_m": 1.0, "tol": 1e-8}
    features = uotlib.unbalanced_sinkhorn(CosineCost(x, z, materialize=False), **settings)
    explicit = uotlib.unbalanced_sinkhorn(dense, **settings)
    assert abs(int(features.n_iter) - int(explicit.n_iter)) <= 1
    assert float(features.value) == pytest.approx(float(explicit.value), rel=1e-9)
    assert not math.isnan(float(features.gap))
