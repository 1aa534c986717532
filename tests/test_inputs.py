"""What goes in: every bad input has its message, every good form gives the same answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import INF, draw
from tolerances import ROUNDOFF, assert_close, plan_rtol

import uotlib
from uotlib import BackendUnavailable, CosineCost, SolverOptions, unbalanced_sinkhorn
from uotlib.backends import BACKENDS

CASE = draw(3, 4)
NAN = math.nan


def call(**changes):
    """A good call of a 3 x 4 problem, but for the changes."""
    return unbalanced_sinkhorn(**({"cost": CASE.cost, "a": CASE.a, "b": CASE.b, "reg": 0.1, "reg_m": 0.5} | changes))


def filled(shape, value, position=0):
    tensor = torch.ones(shape, dtype=torch.float64)
    tensor.view(-1)[position] = value
    return tensor


WRONG_TYPES = {
    "cost list": ({"cost": [[1.0]]}, r"cost must be a torch\.Tensor or a cost object .* got list"),
    "cost numpy": ({"cost": np.ones((3, 4))}, r"cost must be a torch\.Tensor .* got ndarray"),
    "cost integer": ({"cost": torch.ones(3, 4, dtype=torch.int64)}, r"cost must have a floating-point dtype.*int64"),
    "cost bool": ({"cost": torch.ones(3, 4, dtype=torch.bool)}, "cost must have a floating-point dtype.*bool"),
    "cost complex": ({"cost": torch.ones(3, 4, dtype=torch.complex64)}, "cost must have a floating-point.*complex64"),
    "cost sparse": ({"cost": torch.eye(4)[:3].to_sparse()}, "cost must be a dense tensor, got layout torch.sparse_coo"),
    "a list": ({"a": [0.2, 0.3, 0.5]}, r"a must be None or a torch\.Tensor, got list"),
    "a integer": ({"a": torch.ones(3, dtype=torch.int32)}, "a must have a floating-point dtype, got torch.int32"),
    "b complex": ({"b": torch.ones(4, dtype=torch.complex128)}, "b must have a floating-point dtype.*complex128"),
    "b sparse": ({"b": torch.ones(4).to_sparse()}, "b must be a dense tensor"),
    "reg str": ({"reg": "0.1"}, "reg must be a number or a tensor over the batch, got str"),
    "reg bool": ({"reg": True}, "reg must be a number or a tensor over the batch, got bool"),
    "reg None": ({"reg": None}, "reg must be a number or a tensor over the batch, got NoneType"),
    "reg complex": ({"reg": 1j}, "reg must be a number or a tensor over the batch, got complex"),
    "reg integer tensor": ({"reg": torch.tensor(1)}, "reg must have a floating-point dtype, got torch.int64"),
    "reg_m None": ({"reg_m": None}, "reg_m must be a number.*or a pair of these, got NoneType"),
    "reg_m bool": ({"reg_m": (1.0, True)}, r"reg_m\[1\] must be a number.*got bool"),
    "reg_m str": ({"reg_m": ("1", 1.0)}, r"reg_m\[0\] must be a number.*got str"),
    "reg_m integer tensor": ({"reg_m": torch.tensor(1)}, "reg_m must have a floating-point dtype"),
    "max_iter float": ({"max_iter": 10.0}, "max_iter must be an int, got float"),
    "max_iter bool": ({"max_iter": True}, "max_iter must be an int, got bool"),
    "tol str": ({"tol": "small"}, "tol must be None or a number, got str"),
    "tol bool": ({"tol": False}, "tol must be None or a number, got bool"),
    "tol tensor": ({"tol": torch.tensor(0.1)}, "tol must be None or a number, got Tensor"),
    "backend None": ({"backend": None}, "backend must be a str, got NoneType"),
    "options dict": ({"options": {"anneal_factor": 0.5}}, "options must be a SolverOptions, got dict"),
    "init tensor": ({"init": torch.zeros(3)}, r"init must be a pair \(f, g\) of tensors"),
    "init lists": ({"init": ([0.0] * 3, [0.0] * 4)}, r"init must be a pair \(f, g\) of tensors"),
    "init triple": ({"init": (CASE.a, CASE.b, CASE.b)}, r"init must be a pair \(f, g\) of tensors"),
    "features numpy": (lambda: {"cost": CosineCost(np.ones((3, 2)), torch.ones(4, 2))},
                       "CosineCost: x must be a torch.Tensor, got ndarray"),
    "materialize int": (lambda: {"cost": CosineCost(torch.ones(3, 2), torch.ones(4, 2), materialize=1)},
                        "CosineCost: materialize must be None, True or False, got 1"),
}
WRONG_VALUES = {
    "cost vector": ({"cost": torch.ones(4)}, r"cost must have shape \(\.\.\., n, m\), got \(4,\)"),
    "cost scalar": ({"cost": torch.tensor(1.0)}, r"cost must have shape \(\.\.\., n, m\), got \(\)"),
    "no rows": ({"cost": torch.ones(0, 4), "a": None}, "at least one row and one column, got 0 x 4"),
    "no columns": ({"cost": torch.ones(3, 0), "b": None}, "at least one row and one column, got 3 x 0"),
    "cost NaN": ({"cost": filled((3, 4), NAN)}, "cost must not contain NaN, got 1"),
    "cost -inf": ({"cost": filled((3, 4), -INF)}, "cost must not contain -inf, got 1"),
    "a of wrong size": ({"a": torch.ones(4)}, r"a must have shape \(\.\.\., 3\) to fit the cost, got \(4,\)"),
    "b of wrong size": ({"b": torch.ones(3)}, r"b must have shape \(\.\.\., 4\) to fit the cost, got \(3,\)"),
    "a scalar": ({"a": torch.tensor(1.0)}, r"a must have shape \(\.\.\., 3\)"),
    "a negative": ({"a": filled(3, -0.25)}, "a must be finite and non-negative, got -0.25"),
    "b NaN": ({"b": filled(4, NAN)}, "b must be finite and non-negative, got nan"),
    "b inf": ({"b": filled(4, INF)}, "b must be finite and non-negative, got inf"),
    "reg zero": ({"reg": 0}, "reg must be positive and finite, got 0"),
    "reg negative": ({"reg": -0.1}, "reg must be positive and finite, got -0.1"),
    "reg inf": ({"reg": INF}, "reg must be positive and finite, got inf"),
    "reg NaN": ({"reg": NAN}, "reg must be positive and finite, got nan"),
    "reg tensor zero": ({"reg": torch.tensor([0.1, 0.0])}, "reg must be positive and finite, got 0"),
    "reg tensor inf": ({"reg": torch.tensor(INF)}, "reg must be positive and finite, got inf"),
    "reg_m zero": ({"reg_m": 0.0}, "reg_m must be positive, got 0"),
    "reg_m negative": ({"reg_m": (1.0, -1.0)}, r"reg_m\[1\] must be positive, got -1"),
    "reg_m NaN": ({"reg_m": NAN}, "reg_m must be positive, got nan"),
    "reg_m tensor zero": ({"reg_m": (torch.tensor(0.0), 1.0)}, r"reg_m(\[0\])? must be positive, got 0"),
    "reg_m triple": ({"reg_m": (1.0, 1.0, 1.0)}, "reg_m must be a number, .* or a pair of these, got 3"),
    "reg_m single": ({"reg_m": [1.0]}, "reg_m must be a number, .* or a pair of these, got 1"),
    "reg_type": ({"reg_type": "l2"}, "reg_type must be 'kl' or 'entropy', got 'l2'"),
    "method": ({"method": "sinkhorn_log"}, "method must be 'auto' or 'sinkhorn', got 'sinkhorn_log'"),
    "backend": ({"backend": "numpy"}, "backend must be 'auto', 'native', 'triton', 'cuda', 'reference', got 'numpy'"),
    "grad": ({"grad": "last_step"}, "grad must be 'implicit', 'unrolled', 'envelope' or 'none', got 'last_step'"),
    "grad True": ({"grad": True}, "grad must be 'implicit', 'unrolled', 'envelope' or 'none', got True"),
    "unrolled": ({"grad": "unrolled"}, "grad='unrolled' differentiates the iterations of .*, got method='auto'"),
    "tol negative": ({"tol": -1e-3}, "tol must be finite and not negative, got -0.001"),
    "tol NaN": ({"tol": NAN}, "tol must be finite and not negative, got nan"),
    "max_iter zero": ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
    "init swapped": ({"init": (CASE.b, CASE.a)}, r"init\[0\] must have shape \(\.\.\., 3\), got \(4,\)"),
    "init batch": ({"init": (torch.zeros(2, 3), CASE.b)}, r"init\[0\]: batch dimensions \(2,\) do not broadcast"),
    "init NaN": ({"init": (filled(3, NAN), CASE.b)}, r"init\[0\] must not contain NaN, got 1"),
    "batch": ({"a": torch.ones(2, 3), "b": torch.ones(5, 4)}, r"do not broadcast: cost \(\), a \(2,\), b \(5,\)"),
    "reg batch": ({"a": torch.ones(2, 3), "reg": torch.ones(3)}, r"do not broadcast: .*a \(2,\).*reg \(3,\)"),
    "totals": ({"reg_m": INF}, r"sum\(a\) = 1 and sum\(b\) = 1\.7"),
    "devices": ({"a": torch.ones(3, device="meta")}, "a is on meta but (the )?cost is on cpu"),
    "device of reg": ({"reg": torch.ones(2, device="meta")}, "reg is on meta but cost is on cpu"),
    "device of init": ({"init": (torch.zeros(3, device="meta"), CASE.b)},
                       r"init\[0\] is on meta but the cost is on cpu"),
    "device of features": (lambda: {"cost": CosineCost(torch.ones(3, 2), torch.ones(4, 2, device="meta"))},
                           "z is on meta but cost.x is on cpu"),
    "features vector": (lambda: {"cost": CosineCost(torch.ones(3), torch.ones(4, 2))},
                        r"CosineCost: x must have shape \(\.\.\., points, d\), got \(3,\)"),
    "feature sizes": (lambda: {"cost": CosineCost(torch.ones(3, 2), torch.ones(4, 5))},
                      "CosineCost: x and z must have the same feature size, got 2 and 5"),
    "feature batches": (lambda: {"cost": CosineCost(torch.ones(2, 3, 2), torch.ones(5, 4, 2))},
                        r"CosineCost: batch dimensions of x \(2,\) and z \(5,\) do not broadcast"),
    "features inf": (lambda: {"cost": CosineCost(filled((3, 2), INF), torch.ones(4, 2))}, "cost.x must be finite"),
    "features NaN": (lambda: {"cost": CosineCost(torch.ones(3, 2), filled((4, 2), NAN))},
                     "cost.z must not contain NaN"),
    "precision": (lambda: {"cost": CosineCost(torch.ones(3, 2), torch.ones(4, 2), precision="half")},
                  "CosineCost: precision must be None, 'tf32', 'bf16x3', 'tf32x3', 'bf16x6', 'float32', 'float64', got "
                  "'half'"),
    "precision of a product that is not streamed": (
        lambda: {"cost": CosineCost(torch.ones(3, 2), torch.ones(4, 2), precision="tf32")},
        "CosineCost: precision='tf32' is of float32 features that a backend streams; here it must be None, 'float32' "
        "or 'float64'"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_wrong_type(name):
    changes, message = WRONG_TYPES[name]
    with pytest.raises(TypeError, match=message):
        call(**(changes() if callable(changes) else changes))


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_wrong_value(name):
    changes, message = WRONG_VALUES[name]
    with pytest.raises(ValueError, match=message):
        call(**(changes() if callable(changes) else changes))


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'epsilon'"):
        call(epsilon=0.1)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        SolverOptions(anneal=0.5)


@pytest.mark.parametrize(("name", "value"), [
    ("anneal_factor", 1.0), ("anneal_factor", 0.0), ("anneal_factor", NAN), ("anneal_start", 0.0),
    ("anneal_violation", -1.0), ("anneal_passes", 0), ("anderson_depth", -1), ("anderson_start", -1),
    ("safeguard", 0.5), ("check_every", 0), ("block_bytes", 100)])
def test_wrong_option(name, value):
    with pytest.raises(ValueError, match=rf"SolverOptions\.{name} must be .*, got"):
        SolverOptions(**{name: value})


def test_totals_of_a_batch_are_named_by_item():
    a, b = torch.ones(3, 3), 0.75 * torch.ones(3, 4)
    b[1] *= 2
    with pytest.raises(ValueError, match=r"sum\(a\) = 3 and sum\(b\) = 6 \(item 1 of the batch\)"):
        call(a=a, b=b, reg_m=INF)


@pytest.mark.parametrize("name", ["triton", "cuda", "native", "reference"])
def test_forced_backend_runs_or_says_why_not(name):
    reason = BACKENDS[name].why_not(torch.device("cpu"), torch.float64)
    if reason is None:
        assert bool(call(backend=name).converged)
    else:
        with pytest.raises(BackendUnavailable) as caught:
            call(backend=name)
        assert str(caught.value) == reason
        assert len(reason.split()) > 3


def test_none_is_uniform_with_total_one():
    uniform = [torch.full((size,), 1.0 / size, dtype=torch.float64) for size in (3, 4)]
    assert_close(call(a=None, b=None).plan, call(a=uniform[0], b=uniform[1]).plan, 1e-14)


def test_masses_are_not_renormalised():
    """Twice the masses is another problem: its plan follows the scaling law, not its shape alone."""
    assert float(call(a=2 * CASE.a, b=2 * CASE.b).plan.sum()) > 1.5 * float(call().plan.sum())


@pytest.mark.parametrize("shapes", [
    ((), (5,), ()), ((5,), (), ()), ((5, 1), (1, 6), ()), ((), (), (5, 6)), ((1,), (5, 1), (6,)),
    ((2, 5, 6), (6,), (5, 1))])
def test_batch_dimensions_broadcast(shapes):
    big = draw(3, 4, seed=1, batch=(60,))
    cost, a, b = (tensor[:math.prod(shape)].reshape(*shape, *tensor.shape[1:])
                  for tensor, shape in zip((big.cost, big.a, big.b), shapes, strict=True))
    batch = torch.broadcast_shapes(*shapes)
    solution = call(cost=cost, a=a, b=b, tol=1e-10)
    assert solution.plan.shape == (*batch, 3, 4)
    assert solution.value.shape == solution.gap.shape == solution.n_iter.shape == solution.converged.shape == batch
    expanded = call(cost=cost.expand(*batch, 3, 4).contiguous(), a=a.expand(*batch, 3).contiguous(),
                    b=b.expand(*batch, 4).contiguous(), tol=1e-10)
    assert_close(solution.plan, expanded.plan, 1e-12)


def test_parameters_over_the_batch():
    """reg and either reg_m may be tensors; finite and infinite penalties mix."""
    reg = torch.tensor([0.05, 0.2, 1.0], dtype=torch.float64)
    tau_a = torch.tensor([INF, 0.3, 2.0], dtype=torch.float64)
    tau_b = torch.tensor([0.5, INF, 0.1], dtype=torch.float64)
    solution = call(reg=reg, reg_m=(tau_a, tau_b), tol=1e-11)
    for item in range(3):
        alone = call(reg=float(reg[item]), reg_m=(float(tau_a[item]), float(tau_b[item])), tol=1e-11)
        assert_close(solution.plan[item], alone.plan, 1e-9)
    both = call(reg_m=tau_a[1:], tol=1e-11)
    assert_close(both.plan[0], call(reg_m=0.3, tol=1e-11).plan, 1e-9)
    grid = call(reg=reg[:, None], reg_m=(tau_b, 0.7), tol=1e-11)
    assert grid.plan.shape == (3, 3, 3, 4)
    assert_close(grid.plan[1, 2], call(reg=0.2, reg_m=(0.1, 0.7), tol=1e-11).plan, 1e-9)


def test_strides_do_not_matter(backend):
    case = draw(7, 9, seed=3, batch=(4,))
    layouts = {
        "transposed": case.cost.mT.contiguous().mT,
        "sliced": torch.full((4, 14, 30), NAN, dtype=torch.float64)[:, ::2, 2:29:3].copy_(case.cost),
        "offset": torch.full((5, 8, 11), NAN, dtype=torch.float64)[1:, 1:, 2:].copy_(case.cost),
        "batch last": case.cost.permute(1, 2, 0).contiguous().permute(2, 0, 1)}
    expected = case.solve(backend=backend).plan
    for name, cost in layouts.items():
        assert not cost.is_contiguous(), name
        assert torch.equal(case.but(cost=cost).solve(backend=backend).plan, expected), name


def test_expanded_inputs_do_not_matter(backend):
    case = draw(7, 9, seed=4)
    expected = case.solve(backend=backend).plan
    expanded = case.but(cost=case.cost.expand(3, 7, 9), a=case.a.expand(3, 7), b=case.b.expand(3, 9))
    assert_close(expanded.solve(backend=backend).plan, expected.expand(3, 7, 9), 1e-14)
    rows = case.but(cost=case.cost[:1].expand(7, 9))
    copied = rows.but(cost=rows.cost.contiguous())
    assert_close(rows.solve(backend=backend).plan, copied.solve(backend=backend).plan, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_float32(dtype, backend):
    """Exactly what float32 gives on the rounded numbers: only the input's own rounding is lost."""
    case = draw(7, 9, seed=5)
    half = case.but(cost=case.cost.to(dtype), a=case.a.to(dtype), b=case.b.to(dtype))
    full = case.but(cost=half.cost.float(), a=half.a.float(), b=half.b.float())
    solution = half.solve(backend=backend)
    assert solution.plan.dtype == solution.value.dtype == solution.f.dtype == torch.float32
    assert torch.equal(solution.plan, full.solve(backend=backend).plan)
    exact = full.but(cost=full.cost.double(), a=full.a.double(), b=full.b.double()).solve(tol=1e-11)
    assert_close(half.solve(tol=1e-6).plan, exact.plan, 1e-5 + plan_rtol(dtype, 1.0, case.reg))


def test_float64_masses_make_a_float64_problem():
    solution = call(cost=CASE.cost.float(), a=CASE.a.double(), b=None)
    assert solution.plan.dtype == torch.float64
    assert call(cost=CASE.cost.float(), a=None, b=None).plan.dtype == torch.float32


@pytest.mark.parametrize("cost", ["dense", "features"])
def test_autocast_does_not_reach_the_solver(cost):
    x, z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.randn(5, 3)
    argument = CosineCost(x, z) if cost == "features" else torch.cdist(x, z)
    operand = torch.ones(5, 2)
    plain = unbalanced_sinkhorn(argument, reg=0.01, reg_m=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = unbalanced_sinkhorn(argument, reg=0.01, reg_m=1.0)
        assert torch.equal(under.plan, plain.plan)
        assert torch.equal(under.apply(operand), plain.apply(operand))
        assert torch.equal(under.value, plain.value)


def test_integer_numbers_are_numbers():
    integers = call(reg=1, reg_m=(1, 2), tol=0, max_iter=5)
    assert torch.equal(integers.plan, call(reg=1.0, reg_m=(1.0, 2.0), tol=0.0, max_iter=5).plan)


def test_inference_tensors_are_welcome():
    with torch.inference_mode():
        inside = call(cost=CASE.cost.clone())
        assert torch.equal(inside.plan, call().plan)


def test_a_float32_problem_agrees_with_float64_up_to_rounding(backend):
    single = CASE.but(cost=CASE.cost.float(), a=CASE.a.float(), b=CASE.b.float())
    assert_close(single.solve(tol=1e-6, backend=backend).plan, CASE.solve(tol=1e-12).plan,
                 1e-5 + plan_rtol(torch.float32, 1.0, CASE.reg))
    assert uotlib.unbalanced_sinkhorn(single.cost, reg=0.1, reg_m=1.0).f.dtype == torch.float32
    assert ROUNDOFF[torch.float32] == torch.finfo(torch.float32).eps / 2
