"""The drop-in for POT: its interface and iterates, and the answers that it gives where POT's are wrong or missing.

Where POT solves another problem than its arguments say, see test_compat_pot_dropin.py.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import uotlib
from uotlib.compat import pot
from uotlib.compat.pot import sinkhorn_unbalanced, sinkhorn_unbalanced2

ot = pytest.importorskip("ot", reason="needs POT: pip install POT")

INF = math.inf
PENALTIES = [0.6, (0.3, 2.0), (INF, 0.7), (0.4, INF)]
#: One method of POT for each of uotlib's.
DISTINCT = ["sinkhorn", "sinkhorn_translation_invariant"]
#: Both sides solved to 1e-12; conditioning and rounding leave a few orders of magnitude.
SOLVED, RTOL = {"stopThr": 1e-12, "numItermax": 20000}, 1e-8


def problem(n: int = 9, m: int = 12, seed: int = 0, total: float = 1.6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masses with different totals and a cost, float64."""
    rng = np.random.default_rng(seed)
    a, b = rng.random(n) + 0.2, rng.random(m) + 0.2
    return a / a.sum(), total * b / b.sum(), rng.random((n, m))


def histograms(k: int = 3) -> np.ndarray:
    """Columns with totals of their own, (12, k)."""
    return np.random.default_rng(5).random((12, k)) + 0.1


def reference_measure(seed: int = 3) -> np.ndarray:
    """Positive and far from any outer product."""
    return np.random.default_rng(seed).random((9, 12)) + 0.05


def quietly(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """POT warns at every call with reg_type="entropy"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **settings)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float((p * np.log(p / q) - p + q).sum())


@pytest.mark.parametrize("name", ["sinkhorn_unbalanced", "sinkhorn_unbalanced2"])
def test_signature_is_pots(name):
    """Same names, order and defaults; ``tau`` is the one keyword of POT's ``**kwargs`` that its documentation names."""
    theirs = inspect.signature(getattr(ot.unbalanced, name)).parameters
    ours = inspect.signature(getattr(pot, name)).parameters
    named = [(p.name, p.default) for p in theirs.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    assert [(p.name, p.default) for p in ours.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY] == named
    assert [p.name for p in ours.values() if p.kind is inspect.Parameter.KEYWORD_ONLY] == ["tau"]


@pytest.mark.parametrize("iterations", [1, 2, 7])
@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize(("reg_type", "c"), [("kl", None), ("entropy", None), ("kl", reference_measure())])
def test_sinkhorn_takes_pots_steps(iterations, reg_m, reg_type, c):
    """The same iterate after the same number of iterations: equal to rounding, converged or not."""
    a, b, M = problem()
    settings = {"reg_type": reg_type, "c": c, "numItermax": iterations, "stopThr": 0.0, "log": True}
    plan, log = sinkhorn_unbalanced(a, b, M, 0.1, reg_m, **settings)
    theirs, their_log = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.1, reg_m, **settings)
    np.testing.assert_allclose(plan, theirs, rtol=1e-11)
    np.testing.assert_allclose(log["logu"], their_log["logu"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(log["logv"], their_log["logv"], rtol=0, atol=1e-11)
    assert log["cost"] == pytest.approx(their_log["cost"], rel=1e-11)


@pytest.mark.parametrize("method", DISTINCT)
@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize(("reg_type", "c"), [("kl", None), ("entropy", None), ("kl", reference_measure())])
def test_every_method_reaches_pots_plan(method, reg_m, reg_type, c):
    """POT's translation-invariant solver is wrong for unequal penalties; ours is held to POT's textbook solver."""
    a, b, M = problem()
    settings = {"reg_type": reg_type, "c": c, **SOLVED}
    theirs = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.2, reg_m, **settings)
    plan, log = sinkhorn_unbalanced(a, b, M, 0.2, reg_m, method, log=True, **settings)
    np.testing.assert_allclose(plan, theirs, rtol=RTOL)
    assert log["cost"] == pytest.approx((theirs * M).sum(), rel=RTOL)


@pytest.mark.parametrize("name", ["sinkhorn_stabilized", "sinkhorn_reg_scaling", "SINKHORN_TRANSLATION_INVARIANT"])
def test_methods_for_hard_problems_are_one(name):
    a, b, M = problem()
    plan, log = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, name, log=True)
    np.testing.assert_array_equal(plan, sinkhorn_unbalanced(a, b, M, 0.1, 0.6, DISTINCT[1]))
    assert sinkhorn_unbalanced2(a, b, M, 0.1, 0.6, name) == log["cost"]


@pytest.mark.parametrize("make", [
    lambda x: x, lambda x: x.astype(np.float32), lambda x: x.astype(np.float16), torch.from_numpy,
    lambda x: torch.from_numpy(x).float(), lambda x: torch.from_numpy(x).bfloat16()],
    ids=["numpy64", "numpy32", "numpy16", "torch64", "torch32", "bfloat16"])
def test_same_kind_of_array_and_type_back(make):
    a, b, M = map(make, problem())
    plan, log = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, log=True)
    costs = sinkhorn_unbalanced(a, make(histograms()), M, 0.1, 0.6, reg_type="entropy")
    for answer in (plan, log["logu"], log["logv"], log["cost"], log["total_cost"], costs):
        assert answer.dtype == M.dtype
        assert isinstance(answer, torch.Tensor) == isinstance(M, torch.Tensor)
    assert (plan.shape, log["logu"].shape, log["logv"].shape, log["cost"].shape) == ((9, 12), (9,), (12,), ())
    exact = sinkhorn_unbalanced(*problem(), 0.1, 0.6)
    rounding = float((torch if isinstance(M, torch.Tensor) else np).finfo(M.dtype).eps)
    # An error in a cost up to 1 counts 1/reg in the plan, and moves both potentials as much again; 1e-7 is the spacing
    # of the smallest numbers of float16.
    np.testing.assert_allclose(np.asarray(torch.as_tensor(plan).double()), exact, rtol=30 * rounding + 1e-5, atol=1e-7)


def test_lists_and_integers_and_odd_memory():
    """Lists follow the other arrays; integers count as float64; no array is written to or warned about."""
    a, b, M = problem()
    plan = sinkhorn_unbalanced(a, b, M, 0.1, 0.6)
    assert isinstance(sinkhorn_unbalanced(a.tolist(), b.tolist(), M.tolist(), 0.1, 0.6), np.ndarray)
    mixed = sinkhorn_unbalanced(a.tolist(), [], torch.from_numpy(M).float(), 0.1, 0.6)
    assert mixed.dtype == torch.float32
    M_whole = np.arange(6).reshape(2, 3)
    assert sinkhorn_unbalanced([1, 2], [1, 1, 1], M_whole, 1, 1).dtype == np.float64
    backwards, big_endian, frozen = M[::-1, ::-1].copy()[::-1, ::-1], a.astype(">f8"), b.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sinkhorn_unbalanced(big_endian, frozen, backwards, 0.1, 0.6)
    np.testing.assert_array_equal(again, plan)


@pytest.mark.parametrize("reg_m", [0.6, np.float32(0.5), [0.6], (0.3, 2.0), np.array([0.3, 2.0]), torch.tensor([0.5]),
                                   torch.tensor([0.25, 2.0]), np.array(0.6), 1])
def test_forms_of_reg_m(reg_m):
    a, b, M = problem()
    pair = np.broadcast_to(np.asarray(reg_m, dtype=np.float64), (2,))
    np.testing.assert_allclose(sinkhorn_unbalanced(a, b, M, 0.1, reg_m), sinkhorn_unbalanced(a, b, M, 0.1, tuple(pair)),
                               rtol=1e-12)


@pytest.mark.parametrize("reg_m", PENALTIES)
@pytest.mark.parametrize(("reg_type", "c"), [("kl", None), ("entropy", None), ("kl", reference_measure())])
def test_log_describes_the_plan(reg_m, reg_type, c):
    """T = u K v, costs are those of this T, and total_cost is the objective, which POT's is only up to total masses."""
    a, b, M = problem()
    settings = {"reg_type": reg_type, "c": c, "log": True, **SOLVED}
    plan, log = sinkhorn_unbalanced(a, b, M, 0.2, reg_m, **settings)
    measure = {"kl": a[:, None] * b if c is None else c, "entropy": np.ones_like(M)}[reg_type]
    kernel = measure * np.exp(-M / 0.2)
    np.testing.assert_allclose(np.exp(log["logu"])[:, None] * kernel * np.exp(log["logv"]), plan, rtol=1e-12)
    assert set(log) == {"err", "logu", "logv", "cost", "total_cost"}
    assert log["cost"] == pytest.approx((plan * M).sum(), rel=1e-12)
    assert log["err"][-1] <= 1e-12 < log["err"][0]

    taus = np.broadcast_to(reg_m, (2,))
    penalties = sum(tau * kl(r, q) for tau, r, q in ((taus[0], plan.sum(1), a), (taus[1], plan.sum(0), b))
                    if math.isfinite(tau))
    entropic = 0.2 * (kl(plan, measure) - (measure.sum() if reg_type == "entropy" else 0.0))
    assert log["total_cost"] == pytest.approx((plan * M).sum() + entropic + penalties, rel=RTOL)
    assert log["total_cost"] == sinkhorn_unbalanced2(a, b, M, 0.2, reg_m, returnCost="total", **settings)[0]

    _, theirs = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.2, reg_m, **settings)
    left_out = 0.2 * ((measure.sum() if reg_type == "kl" else 0.0) - plan.sum())
    left_out += sum(tau * (q.sum() - plan.sum()) for tau, q in zip(taus, (a, b), strict=True) if math.isfinite(tau))
    assert log["total_cost"] == pytest.approx(theirs["total_cost"] + left_out, rel=1e-7)


@pytest.mark.parametrize("method", DISTINCT)
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_warm_start_is_interchangeable_with_pots(method, reg_type):
    """A solution of either library, as (log u, log v), is a fixed point of the other."""
    a, b, M = problem()
    settings = {"reg_type": reg_type, "log": True}
    plan, log = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, method, **settings, **SOLVED)
    _, theirs = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.1, 0.6, **settings, **SOLVED)
    again, our_log = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, method, warmstart=(theirs["logu"], theirs["logv"]),
                                         **settings)
    np.testing.assert_allclose(again, plan, rtol=RTOL)
    assert len(our_log["err"]) == 1
    _, their_log = quietly(ot.unbalanced.sinkhorn_unbalanced, a, b, M, 0.1, 0.6, warmstart=(log["logu"], log["logv"]),
                           **settings)
    assert len(their_log["err"]) == 1


def test_warm_start_is_pots_own_after_any_number_of_steps():
    a, b, M = problem()
    start = tuple(np.random.default_rng(1).normal(size=size) for size in (9, 12))
    settings = {"warmstart": start, "numItermax": 3, "stopThr": 0.0}
    np.testing.assert_allclose(sinkhorn_unbalanced(a, b, M, 0.1, 0.6, **settings),
                               ot.unbalanced.sinkhorn_unbalanced(a, b, M, 0.1, 0.6, **settings), rtol=1e-11)


@pytest.mark.parametrize("empty", [[], np.array([]), None], ids=["list", "array", "none"])
def test_empty_masses_are_uniform(empty):
    _, _, M = problem()
    np.testing.assert_array_equal(sinkhorn_unbalanced(empty, empty, M, 0.1, 0.6),
                                  sinkhorn_unbalanced(np.full(9, 1 / 9), np.full(12, 1 / 12), M, 0.1, 0.6))


def test_reference_measure_zero_forbids_a_pair():
    """KL(T|c) is infinite where c = 0 < T: the same plan as with an infinite cost there."""
    a, b, M = problem()
    c = reference_measure()
    c[2, 3], c[:, 5] = 0, 0
    plan = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, c=c)
    forbidden = np.where(c == 0, np.inf, M)
    np.testing.assert_array_equal(plan[c == 0], 0)
    np.testing.assert_allclose(plan, sinkhorn_unbalanced(a, b, forbidden, 0.1, 0.6, c=np.where(c == 0, 1.0, c)),
                               rtol=1e-12)
    assert sinkhorn_unbalanced2(a, b, forbidden, 0.1, 0.6, c=c) == pytest.approx((plan * M).sum(), rel=1e-12)


def test_reference_measure_has_no_effect_with_entropy():
    a, b, M = problem()
    plain = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, reg_type="entropy")
    with pytest.warns(UserWarning, match="c has no effect with reg_type='entropy'"):
        np.testing.assert_array_equal(
            sinkhorn_unbalanced(a, b, M, 0.1, 0.6, reg_type="entropy", c=reference_measure()), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(
            sinkhorn_unbalanced(a, b, M, 0.1, 0.6, reg_type="Entropy", c=np.ones_like(M)), plain)


@pytest.mark.parametrize("method", DISTINCT)
@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
def test_zero_masses_take_no_part(method, reg_type):
    """The plan without these points, with empty rows and columns for them; POT's "kl" stops before it starts."""
    a, b, M = problem()
    a[[1, 4]], b[3] = 0, 0
    plan, log = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, method, reg_type, log=True)
    rows, cols = a > 0, b > 0
    assert plan[~rows].sum() == plan[:, ~cols].sum() == 0
    alone = sinkhorn_unbalanced(a[rows], b[cols], M[np.ix_(rows, cols)], 0.1, 0.6, method, reg_type)
    np.testing.assert_allclose(plan[np.ix_(rows, cols)], alone, rtol=1e-5)  # both solved to 1e-6
    assert math.isfinite(log["total_cost"])
    again = sinkhorn_unbalanced(a, b, M, 0.1, 0.6, method, reg_type, warmstart=(log["logu"], log["logv"]))
    np.testing.assert_allclose(again, plan, rtol=1e-5)


@pytest.mark.parametrize("method", DISTINCT)
@pytest.mark.parametrize("reg_m", [0.05, (0.02, 0.5)])
def test_small_reg_keeps_its_mass(method, reg_m):
    """Only the diagonal is worth using, so that each pair is alone: c + sum tau log(t/a) + reg log(t/a^2) = 0.

    e^(-c/reg) underflows; POT's plain-domain solvers return an empty plan here.
    """
    n, reg, c = 6, 1e-3, 1.0
    taus = np.broadcast_to(reg_m, (2,))
    M = np.where(np.eye(n, dtype=bool), c, 30.0)
    mass = math.exp(((taus.sum() + 2 * reg) * math.log(1 / n) - c) / (taus.sum() + reg))
    plan = sinkhorn_unbalanced([], [], M, reg, reg_m, method, stopThr=1e-9, numItermax=20000)
    np.testing.assert_allclose(plan, mass * np.eye(n), rtol=1e-6, atol=1e-12)


def torch_problem(**changes: Any) -> dict[str, torch.Tensor]:
    a, b, M = problem(3, 4)
    c = reference_measure()[:3, :4]
    numbers = {"a": a, "b": b, "M": M, "c": c, "reg": 0.5, "reg_m": np.array([0.6, 1.0])} | changes
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in numbers.items()}


@pytest.mark.parametrize(("method", "reg_type", "with_c", "several"), [
    ("sinkhorn", "kl", False, False), ("sinkhorn_stabilized", "entropy", False, False),
    ("sinkhorn_stabilized", "kl", True, False), ("sinkhorn_stabilized", "entropy", False, True)])
def test_total_cost_is_differentiable_in_everything(method, reg_type, with_c, several):
    inputs = torch_problem(**({"b": histograms(2)[:4]} if several else {}))
    if not with_c:
        del inputs["c"]

    def total(*tensors: torch.Tensor) -> torch.Tensor:
        return sinkhorn_unbalanced2(**dict(zip(inputs, tensors, strict=True)), method=method, reg_type=reg_type,
                                    returnCost="total", stopThr=1e-11, numItermax=5000)

    assert torch.autograd.gradcheck(total, tuple(inputs.values()), fast_mode=True)


def test_gradient_to_the_cost_is_the_plan_and_log_is_constant():
    inputs = torch_problem()
    total, log = sinkhorn_unbalanced2(**inputs, returnCost="total", log=True, **SOLVED)
    total.backward()
    with torch.no_grad():
        plan, again = sinkhorn_unbalanced(**inputs, log=True, **SOLVED)
    torch.testing.assert_close(inputs["M"].grad, plan, rtol=1e-10, atol=0)
    assert not any(log[name].requires_grad for name in ("logu", "logv", "cost", "total_cost"))
    for name in ("logu", "logv", "cost", "total_cost"):
        torch.testing.assert_close(log[name], again[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total.detach(), log["total_cost"], rtol=1e-14, atol=0)


def test_gradient_where_the_reference_measure_is_zero():
    inputs = torch_problem()
    with torch.no_grad():
        inputs["c"][1, 2] = 0
    sinkhorn_unbalanced2(**inputs, returnCost="total").backward()
    assert inputs["M"].grad[1, 2] == 0
    assert all(torch.isfinite(tensor.grad).all() for tensor in inputs.values())


@pytest.mark.parametrize(("several", "reg_type"), [(False, "kl"), (False, "entropy"), (True, "entropy")])
def test_plan_and_linear_cost_are_differentiable_too(several, reg_type):
    inputs = torch_problem(**({"b": histograms(2)[:4]} if several else {}))
    if reg_type == "entropy":
        del inputs["c"]
    for function in (sinkhorn_unbalanced, sinkhorn_unbalanced2):
        def answer(*tensors: torch.Tensor, function=function) -> torch.Tensor:
            return function(**dict(zip(inputs, tensors, strict=True)), reg_type=reg_type, stopThr=1e-11,
                            numItermax=5000)

        assert torch.autograd.gradcheck(answer, tuple(inputs.values()), atol=1e-4, fast_mode=True)
        with torch.no_grad():
            assert not answer(*inputs.values()).requires_grad


def test_log_is_constant_where_the_cost_is_not():
    inputs = torch_problem()
    cost, log = sinkhorn_unbalanced2(**inputs, log=True, **SOLVED)
    assert cost.requires_grad
    assert not any(log[name].requires_grad for name in ("logu", "logv", "cost", "total_cost"))


def test_limits():
    a, b, M = problem()
    with pytest.warns(uotlib.ConvergenceWarning, match="did not reach tol within max_iter=2"):
        sinkhorn_unbalanced(a, b, M, 0.01, 0.6, numItermax=np.int64(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, log = sinkhorn_unbalanced(a, b, M, 0.01, 0.6, numItermax=2, stopThr=0, log=True)
    assert len(log["err"]) == 1  # asked for no test: only the last one is known


def test_verbose_prints_progress(capsys):
    sinkhorn_unbalanced(*problem(), 0.1, 0.6, verbose=True)
    sinkhorn_unbalanced2(*problem(), 0.1, 0.6)
    printed = capsys.readouterr()
    assert printed.out.startswith("pass ")
    assert "violation" in printed.out
    assert printed.err == ""


def test_absorption_threshold_is_accepted_where_pot_has_one():
    a, b, M = problem()
    np.testing.assert_array_equal(sinkhorn_unbalanced(a, b, M, 0.1, 0.6, "sinkhorn_stabilized", tau=1e3),
                                  sinkhorn_unbalanced(a, b, M, 0.1, 0.6, "sinkhorn_stabilized"))
    with pytest.raises(ValueError, match="tau belongs to method='sinkhorn_stabilized', got it with method='sinkhorn'"):
        sinkhorn_unbalanced(a, b, M, 0.1, 0.6, tau=1e3)


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[1] = value
    return array


A, B, COST = problem()


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"stopThreshold": 1e-3}, TypeError, "unexpected keyword argument 'stopThreshold'"),
    ({"method": "badmethod"}, ValueError, "method must be one of 'sinkhorn', .*, got 'badmethod'"),
    ({"method": None}, ValueError, "method must be one of .*, got None"),
    ({"reg_type": "l2"}, ValueError, "reg_type must be one of 'kl', 'entropy', got 'l2'"),
    ({"M": torch.from_numpy(COST)}, TypeError, "all NumPy or all torch, got torch for M and NumPy for a, b"),
    ({"M": "cost"}, TypeError, "M must be a NumPy array, a torch tensor or a list, got str"),
    ({"M": None}, ValueError, r"M must have shape \(n, m\), got nothing"),
    ({"M": COST[None]}, ValueError, r"M must have shape \(n, m\), got \(1, 9, 12\)"),
    ({"M": COST.astype(complex)}, TypeError, "M must hold real numbers .* got dtype complex128"),
    ({"M": changed(COST, np.nan)}, ValueError, "cost must not contain NaN, got 1 of them"),
    ({"a": B}, ValueError, r"a must have shape \(9,\) to fit M, got \(12,\)"),
    ({"b": A}, ValueError, r"b must have shape \(12,\) or \(12, k\) to fit M, got \(9,\)"),
    ({"a": changed(A, -1)}, ValueError, "a must be finite and non-negative, got -1"),
    ({"b": changed(B, np.nan)}, ValueError, "b must be finite and non-negative, got nan"),
    ({"c": COST[:2]}, ValueError, r"c must have the shape of M, \(9, 12\), got \(2, 12\)"),
    ({"c": changed(COST, -1)}, ValueError, r"c must be finite and non-negative, got -1 \(1 such entries\)"),
    ({"reg": 0}, ValueError, "reg must be positive and finite, got 0"),
    ({"reg": "0.1"}, TypeError, "reg must be a number, got str"),
    ({"reg": torch.ones(2)}, ValueError, r"reg must be a single number, got shape \(2,\)"),
    ({"reg_m": -1.0}, ValueError, "reg_m must be positive, got -1.0"),
    ({"reg_m": (1.0, 2.0, 3.0)}, ValueError, "reg_m must be a number or hold one or two of them, got 3"),
    ({"reg_m": INF, "a": 0 * A}, ValueError, r"same total, got sum\(a\) = 0 and sum\(b\) = 1.6"),
    ({"reg_m": INF, "b": changed(B, -1)}, ValueError, "b must be finite and non-negative, got -1"),
    ({"warmstart": A}, TypeError, r"warmstart must be a pair \(log u, log v\)"),
    ({"warmstart": (A, A)}, ValueError, r"warmstart\[1\] must have shape \(12,\), got \(9,\)"),
    ({"numItermax": 0}, ValueError, "numItermax must be at least 1, got 0"),
    ({"numItermax": 10.0}, TypeError, "numItermax must be an int, got float"),
    ({"stopThr": -1e-6}, ValueError, "stopThr must be finite and not negative, got -1e-06"),
    ({"stopThr": None}, TypeError, "stopThr must be a number, got NoneType"),
])
def test_errors_name_the_argument(changes, error, message):
    for function in (sinkhorn_unbalanced, sinkhorn_unbalanced2):
        with pytest.raises(error, match=message):
            function(**({"a": A, "b": B, "M": COST, "reg": 0.1, "reg_m": 0.6} | changes))


def test_wrong_return_cost():
    with pytest.raises(ValueError, match="returnCost must be 'linear' or 'total', got 'both'"):
        sinkhorn_unbalanced2(A, B, COST, 0.1, 0.6, returnCost="both")
