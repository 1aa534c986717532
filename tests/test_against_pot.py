"""POT's plans, in float64, at convergence and iterate by iterate."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import ot
import pytest
import torch
from problems import CONVENTIONS, INF, KINDS, PENALTIES, Case, draw
from tolerances import assert_close

#: With both marginals exact the two conventions have one plan.
CASES = [*itertools.product(PENALTIES, ["kl"]), *itertools.product(PENALTIES[:-1], ["entropy"])]
#: Both solve to their rounding floor in float64; the issue asks for 1e-8.
RTOL = 1e-10


def pot_plan(case: Case, n_iter: int, stop: float, warmstart=None) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "the matrix c is overwritten", for the entropy convention
        plan = ot.unbalanced.sinkhorn_unbalanced(
            case.a.numpy(), case.b.numpy(), case.cost.numpy(), case.reg, case.reg_m, reg_type=case.reg_type,
            numItermax=n_iter, stopThr=stop, warmstart=warmstart)
    return torch.from_numpy(plan)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reg_m", "reg_type"), CASES)
@pytest.mark.parametrize("reg", [1.0, 0.1, 0.01])
def test_plan_is_that_of_pot(reg, reg_m, reg_type, kind):
    case = draw(16, 21, seed=1, kind=kind, reg=reg, reg_m=reg_m, reg_type=reg_type)
    solution = case.solve(tol=1e-12, max_iter=3000)
    assert bool(solution.converged)
    assert_close(solution.plan, pot_plan(case, 50_000, 1e-14), RTOL)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize("n_iter", [1, 3, 7])
def test_textbook_iterates_are_those_of_pot(n_iter, reg_m, reg_type, backend):
    case = draw(9, 14, seed=2, reg=0.05, reg_m=reg_m, reg_type=reg_type)
    solution = case.solve(method="sinkhorn", max_iter=n_iter, tol=0.0, backend=backend)
    assert int(solution.n_iter) == n_iter
    expected = pot_plan(case, n_iter, 0.0)
    assert_close(solution.plan, expected, 1e-12)
    assert_close(case.reference(n_iter).plan, expected, 1e-12)
    assert_close(solution.row_mass, expected.sum(1), 1e-12)
    assert_close(solution.col_mass, expected.sum(0), 1e-12)


@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_warm_start_is_that_of_pot(reg_type):
    case = draw(9, 14, seed=3, reg=0.05, reg_m=(0.3, INF), reg_type=reg_type)
    f, g = torch.full((9,), 0.3, dtype=torch.float64), torch.linspace(-0.1, 0.1, 14, dtype=torch.float64)
    warmstart = tuple((potential / case.reg).numpy() for potential in (f, g))
    solution = case.solve(method="sinkhorn", max_iter=2, tol=0.0, init=(f, g))
    assert_close(solution.plan, pot_plan(case, 2, 0.0, warmstart), 1e-12)


@pytest.mark.parametrize("reg_m", PENALTIES)
def test_textbook_method_converges_to_the_plan_of_auto(reg_m):
    case = draw(20, 27, seed=4, reg=0.05, reg_m=reg_m)
    textbook = case.solve(method="sinkhorn", tol=1e-11, max_iter=3000)
    auto = case.solve(tol=1e-11)
    assert bool(textbook.converged)
    assert bool(auto.converged)
    assert_close(auto.plan, textbook.plan, 1e-8)
    assert int(auto.n_iter) < int(textbook.n_iter)


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")
@pytest.mark.parametrize("reg_type", CONVENTIONS)
def test_plan_is_what_pot_finds_without_sinkhorn(reg_type):
    """POT's L-BFGS solver minimises the objective itself; against ones, KL is the entropy up to a constant."""
    case = draw(6, 8, seed=5, reg=0.2, reg_m=(0.5, 2.0), reg_type=reg_type)
    a, b, cost = case.a.numpy(), case.b.numpy(), case.cost.numpy()
    product = a[:, None] * b[None, :]
    plan = ot.unbalanced.lbfgsb_unbalanced(
        a, b, cost, case.reg, case.reg_m, c=product if reg_type == "kl" else np.ones_like(product),
        reg_div="kl", regm_div="kl", numItermax=5000, stopThr=1e-15)
    assert_close(case.solve(tol=1e-12).plan, torch.from_numpy(plan), 1e-4)  # as far as L-BFGS-B gets
