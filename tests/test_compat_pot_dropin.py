"""What makes the drop-in for POT one: what POT's own tests ask of the two functions, and what POT does unasked.

POT solves another problem than its arguments say for several histograms, and for exact marginals with different totals;
the drop-in solves that problem too, and warns.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from test_compat_pot import DISTINCT, INF, RTOL, SOLVED, histograms, kl, problem, quietly, reference_measure

from uotlib.compat.pot import METHODS, sinkhorn_unbalanced, sinkhorn_unbalanced2

ot = pytest.importorskip("ot", reason="needs POT: pip install POT")

CONVENTIONS = [("kl", None), ("entropy", None), ("kl", reference_measure())]
INCOMPATIBLE = "incompatible marginals: .*; as POT does, column sums are b and row sums proportional to a"


def log_matrix(reg_type: str, a: np.ndarray, b: np.ndarray, M: np.ndarray, reg: float) -> np.ndarray:
    """log K of T = u K v."""
    return -M / reg + (np.log(np.outer(a, b)) if reg_type == "kl" else 0.0)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
class TestWhatPotTests:
    """POT's test file, in our words, on its kind of problem: squared distances of normal points, reg = reg_m = 1."""

    REG, REG_M, CLOSE = 1.0, 1.0, 1e-5

    def inputs(self, convert: Any, several: int = 0) -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(7)
        x = rng.normal(size=(40, 2))
        b = rng.random((40, several)) if several else np.full(40, 1.5 / 40)
        return convert(np.full(40, 1 / 40)), convert(b), convert(ot.dist(x, x))

    def test_scalings_solve_the_fixed_point_equations(self, convert, method, reg_type):
        a, b, M = self.inputs(convert)
        settings = {"method": method, "reg_type": reg_type}
        plan, log = sinkhorn_unbalanced(a, b, M, self.REG, self.REG_M, log=True, **settings)
        plan, u, v, a, b, M = map(np.asarray, (plan, log["logu"], log["logv"], a, b, M))
        log_kernel, power = log_matrix(reg_type, a, b, M, self.REG), self.REG_M / (self.REG_M + self.REG)
        np.testing.assert_allclose(u, power * (np.log(a) - np.logaddexp.reduce(log_kernel + v, 1)), atol=self.CLOSE)
        np.testing.assert_allclose(v, power * (np.log(b) - np.logaddexp.reduce(log_kernel.T + u, 1)), atol=self.CLOSE)
        linear = sinkhorn_unbalanced2(*self.inputs(convert), self.REG, self.REG_M, **settings)
        np.testing.assert_allclose(linear, (plan * M).sum(), atol=self.CLOSE)

    def test_scalings_of_several_histograms_do_without_reference_measure(self, convert, method, reg_type):
        a, b, M = self.inputs(convert, several=2)
        losses, log = quietly(sinkhorn_unbalanced, a, b, M, self.REG, self.REG_M, method, reg_type, log=True)
        u, v, masses, cost = (np.asarray(array) for array in (log["logu"], log["logv"], b, M))
        power, log_a = self.REG_M / (self.REG_M + self.REG), math.log(1 / 40)
        for k in range(2):
            log_kernel = -cost / self.REG
            np.testing.assert_allclose(u[:, k], power * (log_a - np.logaddexp.reduce(log_kernel + v[:, k], 1)),
                                       atol=self.CLOSE)
            np.testing.assert_allclose(v[:, k], power * (np.log(masses[:, k])
                                                         - np.logaddexp.reduce(log_kernel.T + u[:, k], 1)),
                                       atol=self.CLOSE)
            alone = sinkhorn_unbalanced2(a, b[:, k], M, self.REG, self.REG_M, method, "entropy")
            np.testing.assert_allclose(losses[k], alone, atol=1e-4)

    def test_starts_and_ways_to_say_the_same(self, convert, method, reg_type):
        """Uniform masses left empty, the reference measure spelled out, any start: one answer."""
        a, _, M = self.inputs(convert)
        empty = convert(np.array([]))
        measure = a[:, None] * a[None, :] if reg_type == "kl" else convert(np.ones((40, 40)))
        zeros = convert(np.zeros(40))
        _, duals = ot.lp.emd(a, a, M, log=True)
        settings = {"method": method, "reg_type": reg_type, "log": True}
        plan, log = sinkhorn_unbalanced(a, a, M, self.REG, self.REG_M, **settings)
        for masses, changes in ((empty, {}), (a, {"c": measure}), (a, {"warmstart": (zeros, zeros)}),
                                (a, {"warmstart": (duals["u"], duals["v"])})):
            again, again_log = sinkhorn_unbalanced(masses, masses, M, self.REG, self.REG_M, **settings, **changes)
            np.testing.assert_allclose(again, plan, atol=self.CLOSE)
            for name in ("logu", "logv"):
                np.testing.assert_allclose(again_log[name], log[name], atol=self.CLOSE)

    @pytest.mark.parametrize("first", [1.0, INF])
    @pytest.mark.parametrize("second", [1.0, INF])
    def test_forms_of_reg_m(self, convert, method, reg_type, first, second):
        a, b, M = self.inputs(convert, several=2)
        losses, log = quietly(sinkhorn_unbalanced, a, b, M, self.REG, (first, second), method, reg_type, log=True)
        forms = [[first, second], convert(np.array([first, second]))]
        if first == second:
            forms += [first, [first], (first,), convert(np.array([first]))]
        for form in forms:
            again, again_log = quietly(sinkhorn_unbalanced, a, b, M, self.REG, form, method, reg_type, log=True)
            for ours, theirs in ((again, losses), (again_log["logu"], log["logu"]), (again_log["logv"], log["logv"])):
                assert np.isfinite(np.asarray(ours)).all()
                np.testing.assert_allclose(ours, theirs, atol=self.CLOSE)


@pytest.mark.parametrize("reg_m", [0.6, (0.3, 2.0), (INF, 0.7), INF])
@pytest.mark.parametrize(("reg_type", "c"), CONVENTIONS)
def test_several_histograms_take_pots_steps(reg_m, reg_type, c):
    """POT has no reference measure there, whatever reg_type and c say."""
    a, _, M = problem()
    settings: dict[str, Any] = {"reg_type": reg_type, "c": c, "numItermax": 5, "stopThr": 0.0, "log": True}
    for warmstart in (None, (np.full((9, 3), 0.5), np.random.default_rng(2).normal(size=(12, 3)))):
        settings["warmstart"] = warmstart
        # With a warm start POT does not reshape a itself.
        their_a = a if warmstart is None else a[:, None]
        theirs, their_log = quietly(ot.unbalanced.sinkhorn_unbalanced, their_a, histograms(), M, 0.1, reg_m, **settings)
        ours, log = quietly(sinkhorn_unbalanced, a, histograms(), M, 0.1, reg_m, **settings)
        np.testing.assert_allclose(ours, theirs, rtol=1e-11)
        if reg_m != INF:  # POT's drift apart there: test_incompatible_marginals_take_pots_steps
            np.testing.assert_allclose(log["logu"], their_log["logu"], rtol=0, atol=1e-11)
            np.testing.assert_allclose(log["logv"], their_log["logv"], rtol=0, atol=1e-11)
    assert quietly(sinkhorn_unbalanced, a, histograms(1), M, 0.1, reg_m).shape == (1,)


@pytest.mark.parametrize("method", DISTINCT)
@pytest.mark.parametrize("reg_m", [(0.3, 2.0), INF])
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_histogram_in_a_batch_equals_its_own_call_with_entropy(method, reg_m, reg_type):
    a, _, M = problem()
    b = histograms()
    b[:, 1] /= b[:, 1].sum()  # this one could keep both marginals
    settings = {"method": method, "log": True, **SOLVED}
    linear, log = quietly(sinkhorn_unbalanced, a, b, M, 0.2, reg_m, reg_type=reg_type, **settings)
    total, _ = quietly(sinkhorn_unbalanced2, a, b, M, 0.2, reg_m, reg_type=reg_type, returnCost="total", **settings)
    assert (linear.shape, total.shape, log["logu"].shape, log["logv"].shape) == ((3,), (3,), (9, 3), (12, 3))
    for k in range(3):
        alone_total, alone = quietly(sinkhorn_unbalanced2, a, b[:, k], M, 0.2, reg_m, reg_type="entropy",
                                     returnCost="total", **settings)
        assert linear[k] == log["cost"][k] == pytest.approx(alone["cost"], rel=RTOL)
        assert total[k] == log["total_cost"][k] == pytest.approx(alone_total, rel=RTOL)
        if reg_m != INF:  # exact potentials are determined up to a constant
            np.testing.assert_allclose(log["logu"][:, k], alone["logu"], rtol=0, atol=RTOL)
            np.testing.assert_allclose(log["logv"][:, k], alone["logv"], rtol=0, atol=RTOL)


def test_several_histograms_say_what_they_leave_out():
    a, _, M = problem()
    for function in (sinkhorn_unbalanced, sinkhorn_unbalanced2):
        with pytest.warns(UserWarning, match=r"several histograms are solved with reg_type='entropy', as POT does .*; "
                                             r"for 'kl' call uotlib\.unbalanced_sinkhorn with b of shape \(k, m\)"
                          ) as seen:
            function(a, histograms(), M, 0.1, 0.6)
        assert [warning.filename for warning in seen] == [__file__]
        with pytest.warns(UserWarning, match="c has no effect with several histograms, as in POT") as seen:
            function(a, histograms(), M, 0.1, 0.6, reg_type="entropy", c=reference_measure())
        assert [warning.filename for warning in seen] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function(a, histograms(), M, 0.1, 0.6, reg_type="entropy")


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize(("reg_type", "c"), CONVENTIONS)
def test_incompatible_marginals_take_pots_steps(iterations, reg_type, c):
    """The same plan; POT's u and v move by sum(b)/sum(a) at every iteration, and ours have moved once."""
    a, b, M = problem()
    settings = {"reg_type": reg_type, "c": c, "numItermax": iterations, "stopThr": 0.0, "log": True}
    with pytest.warns(UserWarning, match=r"sum\(a\) = 1 and sum\(b\) = 1.6; as POT does") as seen:
        plan, log = sinkhorn_unbalanced(a, b, M, 0.1, INF, **settings)
    assert [warning.filename for warning in seen] == [__file__]
    theirs, their_log = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.1, INF, **settings)
    np.testing.assert_allclose(plan, theirs, rtol=1e-11)
    moved = (iterations - 1) * math.log(1.6)
    np.testing.assert_allclose(log["logu"] - moved, their_log["logu"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(log["logv"] + moved, their_log["logv"], rtol=0, atol=1e-11)
    assert log["cost"] == pytest.approx(their_log["cost"], rel=1e-11)


@pytest.mark.parametrize("method", DISTINCT)
@pytest.mark.parametrize("reg_m", [INF, (INF, INF), torch.tensor([INF])])
@pytest.mark.parametrize(("reg_type", "c"), CONVENTIONS)
def test_incompatible_marginals_solved(method, reg_m, reg_type, c):
    """POT's plan, T = u K v with the K of the a that was given, and the objective of that a."""
    a, b, M = problem()
    settings = {"reg_type": reg_type, "c": c, "log": True}
    with pytest.warns(UserWarning, match=INCOMPATIBLE):
        plan, log = sinkhorn_unbalanced(a, b, M, 0.2, reg_m, method, **settings, **SOLVED)
    theirs, their_log = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.2, INF, **settings, numItermax=300)
    np.testing.assert_allclose(plan, theirs, rtol=RTOL)
    np.testing.assert_allclose(plan.sum(0), b, rtol=RTOL)
    np.testing.assert_allclose(plan.sum(1), 1.6 * a, rtol=RTOL)
    measure = {"kl": np.outer(a, b) if c is None else c, "entropy": np.ones_like(M)}[reg_type]
    kernel = measure * np.exp(-M / 0.2)
    np.testing.assert_allclose(np.exp(log["logu"])[:, None] * kernel * np.exp(log["logv"]), plan, rtol=RTOL)
    objective = (plan * M).sum() + 0.2 * (kl(plan, measure) - (measure.sum() if reg_type == "entropy" else 0.0))
    assert log["total_cost"] == pytest.approx(objective, rel=RTOL)
    left_out = 0.2 * ((measure.sum() if reg_type == "kl" else 0.0) - plan.sum())
    assert log["total_cost"] == pytest.approx(their_log["total_cost"] + left_out, rel=RTOL)
    again, again_log = quietly(sinkhorn_unbalanced, a, b, M, 0.2, reg_m, method, warmstart=(log["logu"], log["logv"]),
                               **settings)
    np.testing.assert_allclose(again, plan, rtol=RTOL)
    assert len(again_log["err"]) == 1


@pytest.mark.parametrize("make", [lambda x: x.astype(np.float16), lambda x: torch.from_numpy(x).float()],
                         ids=["numpy16", "torch32"])
def test_incompatible_marginals_in_other_types(make):
    a, b, M = map(make, problem())
    with pytest.warns(UserWarning, match=INCOMPATIBLE):
        plan = sinkhorn_unbalanced(a, b, M, 0.2, INF)
    assert plan.dtype == M.dtype
    np.testing.assert_allclose(plan.sum(0), b, rtol=1e-2 if isinstance(plan, np.ndarray) else 1e-4)
    with pytest.warns(UserWarning, match=r"sum\(a\) = 1 and sum\(b\) = 1\.[56]"):
        uniform = sinkhorn_unbalanced(None, b, M, 0.2, INF)
    np.testing.assert_allclose(uniform.sum(1), np.full(9, 1.6 / 9), rtol=1e-2)
    with pytest.warns(UserWarning, match=r"sum\(a\) = (1\.99\d*|2) and sum\(b\) = 1;"):
        assert sinkhorn_unbalanced(2 * a, None, M, 0.2, INF).sum() == pytest.approx(1, rel=1e-2)


def test_totals_equal_to_rounding_are_left_alone():
    a, b, M = problem(total=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = sinkhorn_unbalanced(a, b * (1 + 1e-11), M, 0.2, INF, **SOLVED | {"stopThr": 1e-9})
        single = sinkhorn_unbalanced(*(array.astype(np.float32) for array in (a, b, M)), 0.2, INF)
    np.testing.assert_allclose(single, plan, rtol=1e-4)


def test_histograms_with_incompatible_marginals_are_counted():
    a, _, M = problem()
    b = histograms()
    b[:, 1] /= b[:, 1].sum()
    with pytest.warns(UserWarning, match=rf"sum\(b\) = {b[:, 0].sum():g} \(2 of 3 histograms\); as POT does"):
        sinkhorn_unbalanced(a, b, M, 0.2, INF, reg_type="entropy")
    b[:, 2] = 0
    with pytest.raises(ValueError, match=r"must have the same total, got sum\(a\) = 1 and sum\(b\) = .* \(item 0"):
        sinkhorn_unbalanced(a, b, M, 0.2, INF, reg_type="entropy")


@pytest.mark.parametrize(("reg_type", "with_c", "several"), [
    ("kl", False, False), ("entropy", False, False), ("kl", True, False), ("entropy", False, True)])
def test_total_cost_of_incompatible_marginals_is_differentiable(reg_type, with_c, several):
    a, b, M = problem(3, 4)
    arrays = {"a": a, "b": histograms(2)[:4] if several else b, "M": M, "reg": 0.5}
    arrays |= {"c": reference_measure()[:3, :4]} if with_c else {}
    inputs = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in arrays.items()}

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        return quietly(sinkhorn_unbalanced2, **dict(zip(inputs, tensors, strict=True)), reg_m=INF, reg_type=reg_type,
                       method="sinkhorn_stabilized", returnCost="total", stopThr=1e-11, numItermax=5000)

    assert torch.autograd.gradcheck(total, tuple(inputs.values()))
    assert quietly(sinkhorn_unbalanced2, **inputs, reg_m=INF, reg_type=reg_type).requires_grad
