"""Costs: what each formula says, that storage and arithmetic do not change it, and that users can add their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from tolerances import assert_close, max_error
from torch.autograd import gradcheck

import uotlib
from uotlib import CosineCost, Cost, DotCost, SolverOptions, SqEuclideanCost, unbalanced_sinkhorn
from uotlib.backends import BACKENDS
from uotlib.operators import cost_matrix

TINY = SolverOptions(block_bytes=4096)
FORMULAS = {
    CosineCost: lambda x, z: 1 - torch.nn.functional.cosine_similarity(x[..., :, None, :], z[..., None, :, :], dim=-1),
    SqEuclideanCost: lambda x, z: (x[..., :, None, :] - z[..., None, :, :]).square().sum(-1),
    DotCost: lambda x, z: -torch.einsum("...id,...jd->...ij", x, z),
}


def features(*shapes, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes]


def matrix(cost: Cost, dtype: torch.dtype, reg: float) -> torch.Tensor:
    """All rows of a cost, as the solver sees them."""
    return cost.block(cost.prepare(dtype, reg), slice(None), dtype)


@pytest.mark.parametrize("kind", FORMULAS)
def test_formula(kind):
    x, z = features((2, 7, 3), (2, 5, 3))
    assert_close(matrix(kind(x, z), torch.float64, 0.1), FORMULAS[kind](x, z), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("materialize", [True, False, None])
@pytest.mark.parametrize("kind", FORMULAS)
def test_features_are_their_matrix(kind, materialize, dtype, backend):
    x, z = features((3, 33, 4), (3, 21, 4), dtype=dtype)
    dense = matrix(kind(x, z), dtype, 0.5)
    settings = {"reg": 0.5, "reg_m": (0.7, 2.0), "backend": backend, "tol": 1e-6}
    solution = unbalanced_sinkhorn(kind(x, z, materialize=materialize), options=TINY, **settings)
    expected = unbalanced_sinkhorn(dense, **settings)
    rtol = 1e-11 if dtype == torch.float64 else 1e-4
    assert solution.plan.dtype == dtype
    assert_close(solution.plan, expected.plan, rtol)
    assert_close(solution.value, expected.value, rtol)
    assert_close(solution.transport_cost, expected.transport_cost, rtol)


@pytest.mark.parametrize("kind", FORMULAS)
def test_feature_batches_broadcast(kind):
    x, z = features((4, 1, 6, 3), (5, 7, 3))
    solution = unbalanced_sinkhorn(kind(x, z), reg=0.5, reg_m=1.0, tol=1e-10)
    assert solution.plan.shape == (4, 5, 6, 7)
    alone = unbalanced_sinkhorn(kind(x[2, 0], z[3]), reg=0.5, reg_m=1.0, tol=1e-10)
    assert_close(solution.plan[2, 3], alone.plan, 1e-9)


def test_one_set_of_features_serves_many_masses(backend):
    x, z = features((6, 3), (7, 3))
    a = torch.rand(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for materialize in (True, False):
        cost = SqEuclideanCost(x, z, materialize=materialize)
        solution = unbalanced_sinkhorn(cost, a, reg=0.5, reg_m=1.0, tol=1e-10, backend=backend)
        for item in range(4):
            alone = unbalanced_sinkhorn(FORMULAS[SqEuclideanCost](x, z), a[item], reg=0.5, reg_m=1.0, tol=1e-10)
            assert_close(solution.plan[item], alone.plan, 1e-9)
            assert int(solution.argmax(dim=-2)[item, 0]) == int(alone.plan[:, 0].argmax())


@pytest.mark.parametrize("reg", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("kind", FORMULAS)
def test_automatic_precision_keeps_the_error_below_a_hundredth_of_eps(kind, reg):
    """float32 features: the cost's own rounding to float32 comes on top, u max|C|."""
    x, z = features((50, 64), (40, 64), dtype=torch.float32, seed=2)
    x, z = (torch.nn.functional.normalize(part, dim=-1) for part in (x, z))
    exact = FORMULAS[kind](x.double(), z.double())
    error = float((matrix(kind(x, z), torch.float32, reg).double() - exact).abs().max())
    # Cosines are of normalised features, whose rounding to float32 the cost's definition does not see.
    assert error <= 0.01 * reg + 4 * 2.0**-24 * float(exact.abs().max())


def test_long_features_keep_the_error_below_a_hundredth_of_eps():
    """Sums of 1024 terms of one sign, made by a backend: the pieces that they are added in bound their error."""
    x, z = (torch.rand(points, 1024, generator=torch.Generator().manual_seed(points)) for points in (50, 40))
    exact = FORMULAS[CosineCost](x.double(), z.double())
    cost = CosineCost(x, z)
    prepared = cost.prepare(torch.float32, 1e-3)
    matrix = cost_matrix(cost, prepared, 50, 40, torch.float32, BACKENDS["native"], 1 << 20, torch.float32)[0]
    assert float((matrix.double() - exact).abs().max()) <= 1e-6


class RootCost(SqEuclideanCost):
    """|x - z| smoothed: a block of its own."""

    bilinear = False

    def block(self, prepared, rows, dtype):
        return (1 + super().block(prepared, rows, dtype)).sqrt()


def test_a_block_of_its_own_is_used():
    x, z = features((6, 3), (5, 3))
    values = [unbalanced_sinkhorn(cost, reg=0.2, reg_m=1.0, tol=1e-10).value for cost in (
        RootCost(x, z, materialize=True), RootCost(x, z, materialize=False),
        (1 + FORMULAS[SqEuclideanCost](x, z)).sqrt())]
    assert_close(values[0], values[2], 1e-9)
    assert_close(values[1], values[2], 1e-9)


@pytest.mark.parametrize("length", [1e-14, 1.0, 1e17])
def test_gradient_of_cosines_of_any_length(length):
    x, z = (part.float() for part in features((6, 3), (5, 3)))
    gradients = []
    for kind, by in ((torch.float32, length), (torch.float64, 1.0)):
        given = (x.to(kind) * by).requires_grad_()
        unbalanced_sinkhorn(CosineCost(given, z.to(kind)), reg=0.2, reg_m=1.0).value.backward()
        gradients.append(given.grad.double() * by)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


def test_precision_can_be_forced():
    x, z = features((50, 256), (40, 256), dtype=torch.float32, seed=3)
    exact = FORMULAS[DotCost](x.double(), z.double())
    single, double = (matrix(DotCost(x, z, precision=name), torch.float32, 1e-4) for name in ("float32", "float64"))
    assert single.dtype == double.dtype == torch.float32
    assert torch.equal(double[0], exact.float()), "float64 products are right to the last bit of float32"
    assert 0 < max_error(single[0], exact) < 1e-5


def test_distances_far_from_the_origin_keep_their_digits():
    """|x|^2 + |z|^2 - 2 x.z cancels unless the features are centred first."""
    x, z = features((20, 3), (20, 3), dtype=torch.float32, seed=4)
    far_x, far_z = x + 1000.0, z + 1000.0
    exact = FORMULAS[SqEuclideanCost](far_x.double(), far_z.double())
    assert_close(matrix(SqEuclideanCost(far_x, far_z), torch.float32, 1.0)[0], exact, 1e-5)


def test_no_distance_is_negative_and_no_cosine_out_of_range():
    (x,) = features((50, 8), dtype=torch.float32, seed=5)
    assert float(matrix(SqEuclideanCost(x, x), torch.float32, 1.0).min()) >= 0
    cosine = matrix(CosineCost(x, -x), torch.float32, 1.0)
    assert float(cosine.min()) >= 0
    assert float(cosine.max()) <= 2


def test_cosine_ignores_length_and_survives_a_zero_vector():
    x, z = features((5, 3), (4, 3), dtype=torch.float32)
    x[2] = 0.0
    scaled = matrix(CosineCost(1e-15 * x, 1e15 * z), torch.float32, 0.1)
    assert_close(scaled, matrix(CosineCost(x, z), torch.float32, 0.1), 1e-6)
    assert torch.equal(scaled[0, 2], torch.ones(4))
    x.requires_grad_()
    unbalanced_sinkhorn(CosineCost(x, z), reg=0.1, reg_m=1.0).value.backward()
    assert torch.isfinite(x.grad[[0, 1, 3, 4]]).all()


def test_gradient_where_features_coincide():
    """A distance of zero has gradient zero, clamped or not."""
    (x,) = features((5, 3), seed=6)
    x = x.requires_grad_()
    for kind in (SqEuclideanCost, CosineCost):
        (gradient,) = torch.autograd.grad(unbalanced_sinkhorn(kind(x, x.detach()), reg=1e-3, reg_m=1.0).value, x)
        assert float(gradient.abs().max()) < 1e-6


class ManhattanCost(Cost):
    """|x - z|_1: not an inner product, so the whole of what a user has to write."""

    def __init__(self, x: torch.Tensor, z: torch.Tensor, materialize: bool | None = None) -> None:
        self.x, self.z, self.materialize = x, z, materialize

    @property
    def tensors(self):
        return (("cost.x", self.x), ("cost.z", self.z))

    @property
    def shape(self):
        return torch.Size(), len(self.x), len(self.z)

    def prepare(self, dtype, reg):
        return self.x.to(dtype)[None], self.z.to(dtype)[None]

    def block(self, prepared, rows, dtype):
        x, z = prepared
        return (x[:, rows, None, :] - z[:, None, :, :]).abs().sum(-1)


@pytest.mark.parametrize("materialize", [True, False])
def test_a_cost_of_the_users_own(materialize, backend):
    x, z = features((35, 3), (21, 3), seed=7)
    settings = {"reg": 0.3, "reg_m": (0.5, 2.0), "tol": 1e-11, "backend": backend}
    solution = unbalanced_sinkhorn(ManhattanCost(x, z, materialize), options=TINY, **settings)
    expected = unbalanced_sinkhorn(torch.cdist(x, z, p=1), **settings)
    assert_close(solution.plan, expected.plan, 1e-11)
    assert_close(solution.transport_cost, expected.transport_cost, 1e-11)

    def value(x, z):
        return unbalanced_sinkhorn(ManhattanCost(x, z, materialize), options=TINY, **settings).value

    leaves = tuple(tensor[:4].clone().requires_grad_() for tensor in (x, z))
    assert gradcheck(value, leaves, eps=1e-6, atol=2e-6, fast_mode=True)
    a = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    many = unbalanced_sinkhorn(ManhattanCost(x[:4], z, materialize), a, options=TINY, **settings)
    alone = unbalanced_sinkhorn(torch.cdist(x[:4], z, p=1), a[1], **settings)
    assert_close(many.plan[1], alone.plan, 1e-9)


def test_an_incomplete_cost_cannot_be_made():
    class NoBlock(Cost):
        tensors = ()

    with pytest.raises(TypeError, match="abstract"):
        NoBlock()


def test_blocks_never_exceed_their_memory():
    """A streamed cost is asked for no more rows at once than block_bytes allow."""
    asked = []

    class Watched(SqEuclideanCost):
        def block(self, prepared, rows, dtype):
            answer = super().block(prepared, rows, dtype)
            asked.append(answer.numel() * answer.element_size())
            return answer

    x, z = features((200, 2), (100, 2), dtype=torch.float32)
    options = SolverOptions(block_bytes=8192)
    solution = unbalanced_sinkhorn(Watched(x, z, materialize=False), reg=1.0, reg_m=1.0, options=options)
    sampled = asked.pop(0)  # a few rows for the scale of the cost
    assert sampled <= 200 * 100 * 4 / 4
    solution.apply(z)
    solution.argmax()
    assert bool(solution.transport_cost > 0)
    assert max(asked) <= 8192


def test_streaming_needs_little_memory():
    """n = m = 6000 would be 144 MB as a matrix in float32; streamed, the solve and its gradient take a third."""
    code = textwrap.dedent("""
        import resource, torch, uotlib
        torch.set_num_threads(1)
        def solve(n):
            x = torch.randn(n, 16).requires_grad_()
            cost = uotlib.SqEuclideanCost(x, torch.randn(n, 16), materialize=False)
            options = uotlib.SolverOptions(block_bytes=1 << 23)
            solution = uotlib.unbalanced_sinkhorn(cost, reg=10.0, reg_m=10.0, max_iter=3, tol=0, options=options)
            solution.value.backward()
            assert torch.isfinite(x.grad).all()
        solve(300)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        solve(6000)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)
    if sys.platform != "linux":
        pytest.skip("needs Linux, where ru_maxrss is in kilobytes")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(answer.stdout) < 50, f"{answer.stdout.strip()} MB"


def test_names_are_exported():
    assert {"Cost", "CosineCost", "SqEuclideanCost", "DotCost"} <= set(uotlib.__all__)


@pytest.mark.parametrize("switch", ["high", "medium"])
def test_reduced_precision_switches_do_not_reach_the_cost(switch):
    """Whatever the process allows float32 products, it finds the setting as it left it."""
    x, z = (torch.randn(32, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    plain = uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), reg=0.05, reg_m=1.0).plan
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(switch)
    try:
        reduced = uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), reg=0.05, reg_m=1.0).plan
        assert torch.get_float32_matmul_precision() == switch
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(reduced, plain, rtol=0, atol=0)
