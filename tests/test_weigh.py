"""The pass that gradients through the plan are sums of: W = T (L R'), its sums, and W itself where it is wanted."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from instruction_sets import passes_at_lower_levels
from interpreted import OWN_PASSES
from problems import generator
from torch import Tensor

import uotlib
from uotlib.backends import BACKENDS

NATIVE = BACKENDS["native"]
#: Rounding of a sum of up to 400 products, relative to the sum of their sizes.
RTOL = {torch.float32: 3e-6, torch.float64: 1e-14}


def drawn(n: int, m: int, rank: int, dtype: torch.dtype, batch: int = 1, seed: int = 0):
    """Cost, log-scalings, eps and factors; a twentieth of the pairs forbidden, a tenth of the points without mass."""
    rng = generator(seed)
    cost = torch.rand(batch, n, m, generator=rng, dtype=torch.float64)
    cost = torch.where(torch.rand(batch, n, m, generator=rng) < 0.05, torch.inf, cost).to(dtype)
    log_u, log_v = (torch.randn(batch, size, generator=rng, dtype=torch.float64) for size in (n, m))
    log_u[:, ::10], log_v[:, 3::10] = -torch.inf, -torch.inf
    left, right = (torch.randn(batch, size, rank, generator=rng, dtype=torch.float64).to(dtype) for size in (n, m))
    return cost, log_u, log_v, 0.05 + torch.rand(batch, generator=rng, dtype=torch.float64), left, right


def exact(cost: Tensor, log_u: Tensor, log_v: Tensor, reg: Tensor, left: Tensor,
          right: Tensor) -> tuple[Tensor, Tensor]:
    """W, and what it would be without cancellation, in float64."""
    plan = torch.exp(log_u[:, :, None] + log_v[:, None, :] - cost.double() / reg[:, None, None])
    left, right = left.double(), right.double()
    return plan * (left @ right.mT), plan * (left.abs() @ right.abs().mT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 41, 2), (41, 7, 1), (8, 64, 5), (129, 401, 3), (65, 1100, 67)])
@pytest.mark.parametrize("backend", [*OWN_PASSES, "reference"])
def test_sums_and_entries(backend, shape, dtype):
    n, m, rank = shape
    cost, log_u, log_v, reg, left, right = drawn(n, m, rank, dtype, batch=2)
    rows, cols = torch.full((2, n), torch.nan, dtype=torch.float64), torch.ones(2, m, dtype=torch.float64)
    out, scale = torch.full((2, n, m), torch.nan, dtype=dtype), torch.tensor([-2.0, 0.25], dtype=torch.float64)
    BACKENDS[backend].weigh(cost, log_u, log_v, reg, left, right, rows, cols, out=out, scale=scale)
    weight, size = exact(cost, log_u, log_v, reg, left, right)
    for found, sum_of, bound in ((rows, weight.sum(2), size.sum(2)), (cols - 1, weight.sum(1), size.sum(1)),
                                 (out / scale[:, None, None], weight, size)):
        # float32 entries have the rounding of their exponent too
        assert bool(((found - sum_of).abs() <= RTOL[dtype] * (bound + 1) * 8).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 41, 2), (33, 513, 16), (64, 1030, 17), (129, 401, 66), (301, 70, 5)])
@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("backend", [*OWN_PASSES, "reference"])
def test_products(backend, weighed, shape, dtype):
    """s W F and s W' F, added to what is there; without factors, of the plan itself."""
    n, m, depth = shape
    cost, log_u, log_v, reg, left, right = drawn(n, m, 2, dtype, batch=2)
    rng = generator(1)
    over, down = (torch.randn(2, size, depth, generator=rng, dtype=torch.float64).to(dtype) for size in (m, n))
    factors = (left, right) if weighed else (None, None)
    scale = torch.tensor([-2.0, 0.25], dtype=torch.float64)
    rows, cols = torch.empty(2, n, dtype=torch.float64), torch.zeros(2, m, dtype=torch.float64)
    across, along = torch.ones(2, n, depth, dtype=dtype), torch.ones(2, m, depth, dtype=dtype)
    chosen = BACKENDS[backend]
    chosen.weigh(cost, log_u, log_v, reg, *factors, rows, cols, scale=scale, factor=over, product=across)
    chosen.weigh_columns(cost, log_u, log_v, reg, *factors, down, along, scale=scale)
    ones = torch.ones(2, n, 1, dtype=dtype), torch.ones(2, m, 1, dtype=dtype)
    weight, size = exact(cost, log_u, log_v, reg, *(factors if weighed else ones))
    s = scale[:, None, None]
    for found, product, bound in (
            (across, s * weight @ over.double(), s.abs() * size @ over.double().abs()),
            (along, s * weight.mT @ down.double(), s.abs() * size.mT @ down.double().abs()),
            (rows[:, :, None] + 1, weight.sum(2, keepdim=True), size.sum(2, keepdim=True)),
            (cols[:, :, None] + 1, weight.sum(1)[:, :, None], size.sum(1)[:, :, None])):
        assert bool(((found - 1 - product).abs() <= RTOL[dtype] * (bound + 1) * 8).all())


@pytest.mark.parametrize("rank", [2, 9])
@pytest.mark.parametrize("backend", [*OWN_PASSES, "reference"])
def test_entries_alone_and_added(backend, rank):
    """Without sums, and onto what is there."""
    cost, log_u, log_v, reg, left, right = drawn(37, 530, rank, torch.float64, batch=2)
    given, out = (cost, log_u, log_v, reg, left, right, None, None), torch.full((2, 37, 530), torch.nan).double()
    weight, size = exact(*given[:6])
    for times in (1, 2):
        BACKENDS[backend].weigh(*given, out=out, add=times > 1)
        assert bool(((out - times * weight).abs() <= 1e-13 * (size + 1)).all())


@pytest.mark.parametrize("backend", [*OWN_PASSES, "reference"])
def test_no_factors_are_none(backend):
    """A sum of no terms is 0, where no factors at all mean the plan itself."""
    cost, log_u, log_v, reg, left, right = drawn(9, 20, 2, torch.float32)
    rows, cols, out = torch.full((1, 9), torch.nan).double(), torch.zeros(1, 20).double(), torch.full_like(cost, 2.0)
    BACKENDS[backend].weigh(cost, log_u, log_v, reg, left[..., :0], right[..., :0], rows, cols, out=out)
    for found in (rows, cols, out):
        assert bool((found == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 41, 2), (33, 1030, 66), (130, 17, 130), (5, 6, 0)])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_products_of_features(backend, shape, dtype):
    """To rows of a larger tensor."""
    n, m, depth = shape
    rng = generator(2)
    left, right = (torch.randn(2, *size, generator=rng, dtype=torch.float64).to(dtype)
                   for size in ((n + 3, depth), (depth, m)))
    out = torch.full((2, n + 5, m), torch.nan, dtype=dtype)
    BACKENDS[backend].product(left[:, 3:], right, out[:, 2 : n + 2])
    expected, size = left[:, 3:].double() @ right.double(), left[:, 3:].double().abs() @ right.double().abs()
    assert bool(((out[:, 2 : n + 2] - expected).abs() <= RTOL[dtype] * size).all())
    assert bool(out[:, :2].isnan().all())
    assert bool(out[:, n + 2 :].isnan().all())


@pytest.mark.parametrize("backend", OWN_PASSES)
def test_rows_of_a_larger_tensor_and_shared_costs(backend):
    """A cost and a result with strides of their own; problems that share a cost."""
    cost, log_u, log_v, reg, left, right = drawn(30, 45, 2, torch.float32, batch=3)
    wide = torch.rand(2, 30, 90)
    wide[:, :, :45] = cost[:2]
    items = torch.tensor([1, 0, 1])
    rows, cols = torch.empty(3, 30, dtype=torch.float64), torch.zeros(3, 45, dtype=torch.float64)
    out = torch.full((3, 50, 45), 7.0)
    BACKENDS[backend].weigh(wide[:, :, :45], log_u, log_v, reg, left, right, rows, cols, items, out=out[:, 5:35])
    weight, size = exact(cost[items], log_u, log_v, reg, left, right)
    assert bool(((out[:, 5:35] - weight).abs() <= 1e-5 * (size + 1)).all())
    assert bool((out[:, :5] == 7).all())
    assert bool((out[:, 35:] == 7).all())
    assert bool(((rows - weight.sum(2)).abs() <= 1e-5 * (size.sum(2) + 1)).all())


def test_threads_do_not_change_a_digit():
    given = drawn(300, 310, 3, torch.float32)
    threads, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            rows, cols = torch.empty(1, 300, dtype=torch.float64), torch.zeros(1, 310, dtype=torch.float64)
            across, along = torch.zeros(1, 300, 3), torch.zeros(1, 310, 3)
            NATIVE.weigh(*given, rows, cols, factor=given[5], product=across)
            NATIVE.weigh_columns(*given, given[4], along)
            answers.append(torch.cat([part.double().flatten() for part in (rows, cols, across, along)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_bad_calls_are_refused():
    cost, log_u, log_v, reg, left, right = drawn(5, 6, 2, torch.float32)
    rows, cols = torch.empty(1, 5, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"right must be float32 of shape \(1, 6, 2\).*float64"):
        NATIVE.weigh(cost, log_u, log_v, reg, left, right.double(), rows, cols)
    with pytest.raises(ValueError, match=r"left must be float32 of shape \(1, 5, 2\).*\(1, 4, 2\)"):
        NATIVE.weigh(cost, log_u, log_v, reg, left[:, :4], right, rows, cols)
    with pytest.raises(ValueError, match=r"out must be float32 of shape \(1, 5, 6\)"):
        NATIVE.weigh(cost, log_u, log_v, reg, left, right, rows, cols, out=torch.empty(1, 6, 5).mT)
    with pytest.raises(ValueError, match=r"factor must be float32 of shape \(1, 6, 2\).*\(1, 5, 2\)"):
        NATIVE.weigh(cost, log_u, log_v, reg, left, right, rows, cols, factor=left, product=left.clone())
    with pytest.raises(ValueError, match="left and right, and factor and product, belong together"):
        NATIVE.weigh(cost, log_u, log_v, reg, left, None, rows, cols)
    with pytest.raises(ValueError, match=r"right must be float32 of shape \(1, 2, 6\).*\(1, 6, 2\)"):
        NATIVE.product(left, right, cost)
    with pytest.raises(TypeError, match="col_sum is added to in place: it must be float64"):
        NATIVE.weigh(cost, log_u, log_v, reg, left, right, rows, cols.float())


def test_lower_instruction_sets():
    passes_at_lower_levels(__file__, "(sums_and_entries or products) and native")


@pytest.mark.parametrize(("reg", "far"), [(1e-3, 1e5), (1e-3, 1e9), (1e-4, 1e4), (1e-4, 1e6)])
@pytest.mark.parametrize("reg_m", [1.0, math.inf])
def test_one_far_row_does_not_spoil_the_others(reg, far, reg_m):
    """The value's gradient is the plan, where |C| / eps is beyond what one grid of log-scalings can hold."""
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.rand(40, 2, generator=generator) for _ in range(2))
    cost = torch.cdist(x, z).square()
    cost[0] += far
    cost.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", uotlib.ConvergenceWarning)
        solution = uotlib.unbalanced_sinkhorn(cost, reg=reg, reg_m=reg_m, backend="native")
    (gradient,) = torch.autograd.grad(solution.value, cost)
    plan = solution.plan.detach()
    assert float((gradient - plan)[1:].abs().max()) < 1e-4 * float(plan[1:].max())
