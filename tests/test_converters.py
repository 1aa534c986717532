"""Converters: the other library's own iteration and closed forms, against uotlib with the converted parameters."""

from __future__ import annotations

import doctest
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import uotlib
from uotlib import converters
from uotlib.converters import Converted, from_geomloss, from_ott

#: Both sides are solved to a violation of 1e-12; conditioning and rounding leave a few orders of magnitude.
RTOL = 1e-8


def points(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masses(n: int, seed: int, total: float) -> Tensor:
    mass = 0.2 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mass * (total / mass.sum())


X, Z, A = points(9, 0), points(11, 1), masses(9, 2, 1.0)


def cost_for(p: float) -> Tensor | uotlib.Cost:
    """What the docstring tells users to pass."""
    return uotlib.SqEuclideanCost(X, Z) if p == 2 else torch.cdist(X, Z)


def geomloss_potentials(cost: Tensor, b: Tensor, eps: float, rho: float) -> tuple[Tensor, Tensor]:
    """GeomLoss's symmetric iteration: both potentials from the old ones, damped and averaged, until it stands."""
    damping = 1 / (1 + eps / rho)
    f, g = torch.zeros_like(A), torch.zeros_like(b)
    for _ in range(2000):
        new_f = -damping * eps * torch.logsumexp(b.log() + (g - cost) / eps, 1)
        new_g = -damping * eps * torch.logsumexp(A.log() + (f - cost.mT) / eps, 1)
        f, g = 0.5 * (f + new_f), 0.5 * (g + new_g)
    return f, g


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, 0.7])
def test_geomloss_plan_and_value(p, reach):
    """Same plan as GeomLoss's fixed point for |x-z|^p/p, blur^p and reach^p; numbers times ``cost_scale``."""
    b = masses(11, 3, 1.0 if reach is None else 1.4)
    eps, rho = 0.4**p, math.inf if reach is None else reach**p
    cost = torch.cdist(X, Z) ** p / p
    f, g = geomloss_potentials(cost, b, eps, rho)
    plan = A[:, None] * b * torch.exp((f[:, None] + g - cost) / eps)
    converted = from_geomloss(0.4, reach, p)
    assert converted.cost_scale == p
    solution = uotlib.unbalanced_sinkhorn(cost_for(p), A, b, tol=1e-12, **converted.settings)
    torch.testing.assert_close(solution.plan, plan, rtol=RTOL, atol=0)
    torch.testing.assert_close(solution.transport_cost / converted.cost_scale, (cost * plan).sum(), rtol=RTOL, atol=0)
    if reach is not None:  # balanced potentials are unique up to a constant only
        torch.testing.assert_close(solution.f / converted.cost_scale, f, rtol=RTOL, atol=RTOL)
        dual = (-rho * (A @ torch.expm1(-f / rho) + b @ torch.expm1(-g / rho))
                - eps * (plan.sum() - A.sum() * b.sum()))
        torch.testing.assert_close(solution.value / converted.cost_scale, dual, rtol=RTOL, atol=0)


@pytest.mark.parametrize("reach", [0.5, 2.0])
def test_geomloss_value_of_two_diracs(reach):
    r"""min_t of ct + (2 rho + eps) KL(t|1) is (2 rho + eps)(1 - e^{-c/(2 rho + eps)}), with c half the square."""
    x, z = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    converted = from_geomloss(0.3, reach)
    strength = 2 * reach**2 + 0.3**2
    expected = -strength * math.expm1(-0.5 / strength)
    solution = uotlib.unbalanced_sinkhorn(uotlib.SqEuclideanCost(x, z), tol=1e-14, **converted.settings)
    assert float(solution.value) / converted.cost_scale == pytest.approx(expected, rel=1e-12)


def test_geomloss_custom_cost_has_scale_one():
    assert from_geomloss(0.1, 0.5, p=2, cost_scale=1) == Converted(0.1**2, (0.25, 0.25), "kl", 1.0)
    assert from_geomloss(0.1, 0.5, p=3, cost_scale=1).reg == pytest.approx(1e-3)
    assert from_geomloss(0.1, p=1).reg_m == (math.inf, math.inf)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reach", [None, 0.7])
def test_against_geomloss_itself(p, reach):
    geomloss = pytest.importorskip("geomloss", reason="needs geomloss: pip install --no-deps geomloss==0.3.1")
    b = masses(11, 3, 1.0)
    loss = geomloss.SamplesLoss("sinkhorn", p=p, blur=0.4, reach=reach, debias=False, scaling=0.999,
                                backend="tensorized")(A, X, b, Z)
    converted = from_geomloss(0.4, reach, p)
    solution = uotlib.unbalanced_sinkhorn(cost_for(p), A, b, tol=1e-12, **converted.settings)
    assert float(solution.value) / converted.cost_scale == pytest.approx(float(loss), rel=1e-3)  # where annealing ends


def ott_potentials(cost: Tensor, b: Tensor, eps: float, tau_a: float, tau_b: float) -> tuple[Tensor, Tensor]:
    """OTT's update without recentring: tau times the balanced one, with log masses in the potentials."""
    f, g = torch.zeros_like(A), torch.zeros_like(b)
    for _ in range(2500):
        g = tau_b * eps * (b.log() - torch.logsumexp((f - cost.mT) / eps, 1))
        f = tau_a * eps * (A.log() - torch.logsumexp((g - cost) / eps, 1))
    return f, g


@pytest.mark.parametrize("tau", [(0.9, 0.9), (0.8, 0.95), (1.0, 0.9), (0.7, 1.0), (1.0, 1.0)])
def test_ott_plan_and_potentials(tau):
    b = masses(11, 3, 1.0 if tau == (1.0, 1.0) else 1.4)
    cost = torch.cdist(X, Z)
    f, g = ott_potentials(cost, b, 0.1, *tau)
    converted = from_ott(0.1, *tau)
    solution = uotlib.unbalanced_sinkhorn(cost, A, b, tol=1e-12, **converted.settings)
    torch.testing.assert_close(solution.plan, torch.exp((f[:, None] + g - cost) / 0.1), rtol=RTOL, atol=0)
    if tau != (1.0, 1.0):
        torch.testing.assert_close(solution.f, f, rtol=RTOL, atol=RTOL)
        torch.testing.assert_close(solution.g, g, rtol=RTOL, atol=RTOL)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.99])
def test_ott_penalty_inverts_its_definition(tau):
    rho_a, rho_b = from_ott(0.3, tau, 1.0).reg_m
    assert rho_a / (rho_a + 0.3) == pytest.approx(tau, rel=1e-14)
    assert math.isinf(rho_b)


def test_against_ott_itself():
    pytest.importorskip("ott", reason="needs OTT-JAX: pip install ott-jax==0.6.0")
    import jax.numpy as jnp
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    cost, b = torch.cdist(X, Z), masses(11, 3, 1.4)
    problem = LinearProblem(Geometry(jnp.asarray(cost.numpy()), epsilon=0.1), jnp.asarray(A.numpy()),
                            jnp.asarray(b.numpy()), tau_a=0.8, tau_b=0.95)
    theirs = torch.tensor(Sinkhorn(threshold=1e-6, max_iterations=20000)(problem).matrix.tolist(), dtype=torch.float64)
    ours = uotlib.unbalanced_sinkhorn(cost, A, b, tol=1e-12, **from_ott(0.1, 0.8, 0.95).settings).plan
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)  # JAX's default is float32


@pytest.mark.parametrize(("convert", "arguments", "error", "message"), [
    (from_geomloss, {"blur": 0.0}, ValueError, "blur must be positive and finite, got 0.0"),
    (from_geomloss, {"blur": math.nan}, ValueError, "blur must be positive and finite, got nan"),
    (from_geomloss, {"blur": "0.1"}, TypeError, "blur must be a number, got str"),
    (from_geomloss, {"blur": 0.1, "reach": -1}, ValueError, "reach must be positive and finite, got -1"),
    (from_geomloss, {"blur": 0.1, "p": 0}, ValueError, "p must be positive and finite, got 0"),
    (from_geomloss, {"blur": 0.1, "p": 3}, ValueError, "cost_scale must be given .* p = 3"),
    (from_geomloss, {"blur": 0.1, "cost_scale": 0}, ValueError, "cost_scale must be positive and finite, got 0"),
    (from_ott, {"epsilon": None}, TypeError, "epsilon must be a number, got NoneType"),
    (from_ott, {"epsilon": -0.1}, ValueError, "epsilon must be positive and finite, got -0.1"),
    (from_ott, {"epsilon": 0.1, "tau_a": 1.5}, ValueError, r"tau_a must be in \(0, 1\], got 1.5"),
    (from_ott, {"epsilon": 0.1, "tau_b": 0}, ValueError, "tau_b must be positive and finite, got 0"),
])
def test_errors_name_the_argument(convert, arguments, error, message):
    with pytest.raises(error, match=message):
        convert(**arguments)


def test_examples_in_docstrings():
    assert doctest.testmod(converters).failed == 0


def test_snippets_of_the_page_run():
    """docs/coming-from.md, whole, as a reader would paste it; it asserts what it says."""
    pytest.importorskip("ot", reason="needs POT: pip install POT")
    page = (Path(__file__).parents[1] / "docs" / "coming-from.md").read_text()
    snippets = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 6
    exec("\n".join(snippets), {})
