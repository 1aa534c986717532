"""The Triton backend's passes for gradients, with small tiles, and whole gradients: on a GPU or under the interpreter.

What every backend's passes must do is in test_weigh.py and test_adjoint.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from test_adjoint import Inputs, check
from test_triton import DEVICE, ON_GPU, SMALL, TABLES, WIDE
from test_weigh import RTOL, drawn, exact
from torch import Tensor

import uotlib
from uotlib.backends.triton import TritonBackend

pytest.importorskip("triton", reason="needs triton: pip install triton")

if ON_GPU:
    pytestmark = pytest.mark.gpu

on_the_cpu = pytest.mark.skipif(ON_GPU, reason="compares on the CPU, under the interpreter")
DTYPES = [torch.float32, torch.float64]


@on_the_cpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 21, 35), (1, 5, 16)])
@pytest.mark.parametrize("table", [SMALL, WIDE], ids=["small", "wide"])
def test_passes_of_the_adjoint(table, shape, dtype):
    """Several slabs an item and tiles a slab; rows read once, and twice."""
    check(Inputs(*shape, dtype), TritonBackend(table))
    inputs = Inputs(*shape, dtype, reg=1e-3)
    inputs.items, inputs.cost = torch.arange(shape[0]).flip(0), torch.rand(3, *shape[1:], dtype=dtype)
    check(inputs.scale(), TritonBackend(table))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "depth"), [(1, 1), (5, 40), (37, 3)])
def test_weighed_plans_in_small_tiles(rank, depth, dtype):
    """Several blocks and spans a side, chunks of the factor, terms one by one and by products."""
    cost, log_u, log_v, reg, left, right = (part.to(DEVICE) for part in drawn(35, 50, rank, dtype, batch=2))
    over, down = (torch.randn(2, size, depth, dtype=dtype, device=DEVICE) for size in (50, 35))
    scale = torch.tensor([-2.0, 0.25], dtype=torch.float64, device=DEVICE)
    backend = TritonBackend(SMALL)
    rows, cols = torch.empty_like(log_u), torch.ones_like(log_v)
    out = cost.new_full((2, 40, 50), 7.0)
    across, along = over.new_ones(2, 35, depth), over.new_ones(2, 50, depth)
    backend.weigh(cost, log_u, log_v, reg, left, right, rows, cols, scale=scale, out=out[:, 2:37])
    backend.weigh(cost, log_u, log_v, reg, left, right, rows.clone(), cols.clone(), scale=scale, factor=over,
                  product=across)
    backend.weigh_columns(cost, log_u, log_v, reg, left, right, down, along, scale=scale)
    weight, size = exact(cost, log_u, log_v, reg, left, right)
    s = scale[:, None, None]
    assert (out[:, :2] == 7).all()
    assert (out[:, 37:] == 7).all()
    for found, product, bound in ((rows, weight.sum(2), size.sum(2)), (cols - 1, weight.sum(1), size.sum(1)),
                                  (out[:, 2:37] / s, weight, size),
                                  (across - 1, s * weight @ over.double(), s.abs() * size @ over.double().abs()),
                                  (along - 1, s * weight.mT @ down.double(), s.abs() * size.mT @ down.double().abs())):
        assert bool(((found - product).abs() <= RTOL[dtype] * (bound + 1) * 8).all())


def cost_passes(backend: TritonBackend, cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor,
                right: Tensor, scale: Tensor) -> list[Tensor]:
    """<T, C>; sums of W along rows, columns and costs, and s W, of W by factors and by cost; products of the latter."""
    own = [torch.empty_like(log_u), torch.ones_like(log_v), torch.ones_like(reg)]
    by_cost, dtype = [part.clone() for part in own], left.dtype
    total = torch.ones_like(reg)
    out, direct = (cost.new_full((len(reg), *cost.shape[1:]), math.nan, dtype=dtype) for _ in range(2))
    over, down = (torch.linspace(-1, 1, size * 3, device=DEVICE, dtype=dtype).view(1, size, 3).repeat(len(reg), 1, 1)
                  for size in cost.shape[1:])
    along, across = torch.ones_like(over), torch.ones_like(down)
    given = cost, log_u, log_v, reg
    backend.weigh_cost(*given, None, None, None, None, total)
    backend.weigh_cost(*given, left, right, *own, scale=scale, out=out)
    backend.weigh_cost(*given, None, None, *by_cost, scale=scale, direct=-2 * scale, out=direct)
    backend.weigh_cost(*given, None, None, None, None, None, scale=scale, direct=-2 * scale, factor=down, product=along)
    backend.weigh_cost(*given, None, None, None, None, None, scale=scale, direct=-2 * scale, factor=over,
                       product=across, transposed=True)
    return [total, *own, out, *by_cost, direct, along, across]


@pytest.mark.parametrize("table", list(TABLES))
@pytest.mark.parametrize(("storage", "rank"), [(torch.float32, 2), (torch.float64, 5), (torch.float16, 3),
                                               (torch.bfloat16, 5)])
def test_weights_that_meet_costs(storage, rank, table, monkeypatch):
    """One read for the sums, forbidden pairs and points without mass included; no memory is taken for zero."""
    new_empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(math.nan))
    dtype = torch.float64 if storage == torch.float64 else torch.float32
    case = [part.to(DEVICE) for part in drawn(35, 50, rank, dtype, batch=2)]
    case[0] = case[0].to(storage)
    scale = torch.tensor([-2.0, 0.25], dtype=torch.float64, device=DEVICE)
    found = cost_passes(TritonBackend(TABLES[table]), *case, scale)
    assert bool(torch.isinf(case[0]).any())
    ones = torch.ones(2, 1, 1, device=DEVICE)
    plan, _ = exact(*case[:4], ones.expand(2, 35, 1), ones.expand(2, 50, 1))
    weight, size = exact(*case)
    cost = case[0].double().nan_to_num(posinf=0.0)
    by_cost, s = plan * cost, scale[:, None, None]
    direct, over, down = s * by_cost - 2 * s * plan, *(
        torch.linspace(-1, 1, points * 3, device=DEVICE, dtype=torch.float64).view(1, points, 3) for points in (35, 50))
    bound = plan * s.abs() * (cost.abs() + 2)
    expected = [
        (by_cost.sum((1, 2)) + 1, plan.sum((1, 2))), (weight.sum(2), size.sum(2)), (weight.sum(1) + 1, size.sum(1)),
        ((weight * cost).sum((1, 2)) + 1, size.sum((1, 2))), (s * weight, s.abs() * size),
        (by_cost.sum(2), plan.sum(2)), (by_cost.sum(1) + 1, plan.sum(1)),
        ((by_cost * cost).sum((1, 2)) + 1, plan.sum((1, 2))), (direct, bound), (direct @ down + 1, bound @ down.abs()),
        (direct.mT @ over + 1, bound.mT @ over.abs())]
    for actual, (wanted, around) in zip(found, expected, strict=True):
        assert bool(((actual - wanted).abs() <= RTOL[dtype] * (around + 1) * 8).all())


@pytest.mark.parametrize("table", list(TABLES))
def test_every_output_of_the_passes_is_written(table, monkeypatch):
    new_empty = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(math.nan))
    inputs, backend = Inputs(2, 19, 43, torch.float32), TritonBackend(TABLES[table])
    case = drawn(19, 43, 2, torch.float32, batch=2)
    rows, cols = torch.empty_like(case[1]), torch.zeros_like(case[2])
    across, along = torch.zeros(2, 19, 3), torch.zeros(2, 43, 3)
    backend.weigh(*(part.to(DEVICE) for part in case), rows.to(DEVICE), cols.to(DEVICE))
    backend.weigh(*case, rows, cols, factor=torch.ones(2, 43, 3), product=across)
    backend.weigh_columns(*case, torch.ones(2, 19, 3), along)
    for result in (inputs.schur(backend), *inputs.eliminate(backend), rows, cols, across, along):
        assert torch.isfinite(result).all()


def test_nothing_to_weigh():
    """No rows, no columns, no terms: zeros are added, and nothing is launched."""
    backend = TritonBackend()
    for n, m, rank in ((0, 4, 1), (3, 0, 1), (3, 4, 0)):
        cost, left, right = (torch.ones(1, *shape, device=DEVICE) for shape in ((n, m), (n, rank), (m, rank)))
        log_u, log_v, reg = (cost.new_zeros(size, dtype=torch.float64) for size in ((1, n), (1, m), 1))
        rows, cols = torch.ones_like(log_u), torch.ones_like(log_v)
        across, along = cost.new_ones(1, n, 2), cost.new_ones(1, m, 2)
        backend.weigh(cost, log_u, log_v, reg + 1, left, right, rows, cols, factor=cost.new_ones(1, m, 2),
                      product=across)
        backend.weigh_columns(cost, log_u, log_v, reg + 1, left, right, cost.new_ones(1, n, 2), along)
        assert not rows.any()
        total = torch.ones_like(reg)
        backend.weigh_cost(cost, log_u, log_v, reg + 1, left, right, rows.fill_(1), cols, total)
        assert not rows.any()
        assert all((result == 1).all() for result in (cols, across, along, total))


def gradients(backend: str, features: bool, shared: bool) -> list[Tensor]:
    """Of a loss of several outputs to cost, masses and eps."""
    rng = torch.Generator().manual_seed(1)
    x, z, v, b = (torch.rand(shape, generator=rng, dtype=torch.float64).to(DEVICE)
                  for shape in ((2, 7, 3), (2, 9, 3), (2, 9, 6), (2, 9)))
    x, z, reg = x[:1] if shared else x, z[:1] if shared else z, torch.tensor([0.1, 0.2], dtype=torch.float64,
                                                                           device=DEVICE)
    inputs = [x, z] if features else [(x[:, :, None] - z[:, None]).square().sum(3)]
    inputs = [tensor.requires_grad_() for tensor in (*inputs, b, v, reg)]
    *own, b, v, reg = inputs
    cost = uotlib.SqEuclideanCost(*own) if features else own[0]
    solution = uotlib.unbalanced_sinkhorn(cost, b=b, reg=reg, reg_m=0.7, tol=1e-8, backend=backend,
                                          options=uotlib.SolverOptions(adjoint_tol=1e-10))
    loss = (solution.f.sin().sum() + solution.barycentric(v).square().sum() + solution.apply_t(v[:, :7]).cos().sum()
            + solution.row_mass.square().sum() + solution.value.sum() + solution.transport_cost.square().sum())
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("features", [False, True])
def test_gradients_are_those_of_the_reference(features, shared, monkeypatch):
    """And no pass is made of panels, not even of the gradient to eps or of <C, T>."""
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pass was made of panels")

    expected = gradients("reference", features, shared)
    monkeypatch.setattr(TritonBackend, "panel", refuse)
    for actual, wanted in zip(gradients("triton", features, shared), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))

