"""The adjoint's passes: compiled, in torch, and as dense linear algebra in float64."""

from __future__ import annotations

import math

import pytest
import torch
from instruction_sets import passes_at_lower_levels
from interpreted import OWN_PASSES
from problems import INF
from torch import Tensor

from uotlib._extension import extension, missing
from uotlib.backends import BACKENDS
from uotlib.backends.base import Backend
from uotlib.backends.native import NativeBackend
from uotlib.backends.reference import ReferenceBackend
from uotlib.gradients import adjoint

pytestmark = pytest.mark.skipif(extension is None, reason=str(missing))

NATIVE, REFERENCE = NativeBackend(), ReferenceBackend()
SHAPES = [(1, 1, 1), (2, 1, 7), (1, 9, 1), (2, 7, 41), (1, 41, 401), (3, 65, 33), (1, 129, 129), (1, 401, 129),
          (1, 513, 66), (1, 70, 2309)]
DTYPES = [torch.float32, torch.float64]
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


class Inputs:
    """A kernel N with rows and columns of norm about 1, as the adjoint has it, and right-hand sides."""

    def __init__(self, batch: int, n: int, m: int, dtype: torch.dtype, reg: float = 0.05, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.cost = torch.rand(batch, n, m, generator=self.rng, dtype=dtype)
        self.items: Tensor | None = None
        self.reg = reg * (1 + torch.rand(batch, generator=self.rng, dtype=torch.float64))
        self.log_a, self.log_b = (-3 * self.random(batch, k) for k in (n, m))
        self.row_ratio = 1 + self.random(batch)
        self.row_side, self.vector = 2 * self.random(batch, n) - 1, 2 * self.random(batch, m) - 1
        self.total, self.sums = self.random(batch, m), self.random(batch, 3, m)
        self.scale()

    def random(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng, dtype=torch.float64)

    def scale(self) -> Inputs:
        """Halve the scalings of a plan that has nearly these masses: their roots are what N turns into one another."""
        exponent = -self.chosen / self.reg[:, None, None]
        log_v = self.log_b
        for _ in range(6):
            row_lse = torch.logsumexp(log_v[:, None] + exponent, 2)
            log_u = torch.where(row_lse > -INF, self.log_a - row_lse, -INF)
            col_lse = torch.logsumexp(log_u[:, :, None] + exponent, 1)
            last, log_v = log_v, torch.where(col_lse > -INF, self.log_b - col_lse, -INF)
        self.log_x, self.root_r = adjoint._half_scaling(log_u, row_lse)
        self.log_y, self.root_c = adjoint._half_scaling(last, col_lse)
        largest = torch.maximum(self.root_r.amax(1), self.root_c.amax(1))[:, None].clamp_min(1e-300)
        self.root_r, self.root_c = self.root_r / largest, self.root_c / largest
        self.row_diagonal = 1 + self.random(*self.root_r.shape)
        return self

    @property
    def chosen(self) -> Tensor:
        return (self.cost if self.items is None else self.cost[self.items]).double()

    @property
    def matrix(self) -> Tensor:
        """N, as nobody should make it."""
        return torch.exp(self.log_x[:, :, None] + self.log_y[:, None] - self.chosen / self.reg[:, None, None])

    def schur(self, backend: type[Backend] | Backend) -> Tensor:
        total = self.total.clone()
        backend.schur(self.cost, self.log_x, self.log_y, self.row_diagonal, self.vector, self.reg, total, self.items)
        return total

    def exact_schur(self) -> Tensor:
        through = torch.einsum("bij,bj->bi", self.matrix, self.vector) / self.row_diagonal
        return self.total + torch.einsum("bij,bi->bj", self.matrix, through)

    def eliminate(self, backend: Backend, empty: Tensor | None = None) -> tuple[Tensor, Tensor]:
        sums = self.sums.clone()
        diagonal = backend.eliminate(self.cost, self.log_x, self.log_y, self.root_r, self.root_c, self.row_side,
                                     self.row_ratio, self.reg, sums, self.items, empty)
        return diagonal, sums

    def exact_eliminate(self) -> tuple[Tensor, Tensor]:
        """N turns the roots into one another, but for points that take no part."""
        diagonal = self.row_ratio[:, None].expand_as(self.root_r)
        matrix = self.matrix
        parts = [torch.einsum("bij,bi->bj", *pair) for pair in (
            (matrix, self.root_r), (matrix, self.row_side / diagonal), (matrix.square(), 1 / diagonal))]
        return diagonal, self.sums + torch.stack(parts, 1)

    def tolerance(self) -> float:
        """Of an entry of N: a rounding of the product of cost and 1/eps, and of sums and products."""
        finite = self.chosen[torch.isfinite(self.chosen)]
        largest = float(finite.max() / self.reg.min()) if finite.numel() else 0.0
        return 8 * UNIT[self.cost.dtype] * (8 + largest)


def check(inputs: Inputs, backend: Backend = NATIVE) -> None:
    """Both operations against dense float64, every column within what rounding can do to its sum of absolute terms."""
    matrix, rtol = inputs.matrix, inputs.tolerance()
    through = torch.einsum("bij,bj->bi", matrix, inputs.vector.abs()) / inputs.row_diagonal
    bound = 2 * rtol * torch.einsum("bij,bi->bj", matrix, through) + 1e-15
    assert ((inputs.schur(backend) - inputs.exact_schur()).abs() <= bound).all()

    diagonal, sums = inputs.eliminate(backend)
    exact_diagonal, exact_sums = inputs.exact_eliminate()
    torch.testing.assert_close(diagonal, exact_diagonal, rtol=rtol, atol=0)
    sizes = [torch.einsum("bij,bi->bj", *pair) for pair in (
        (matrix, inputs.root_r), (matrix, inputs.row_side.abs()), (matrix.square(), torch.ones_like(inputs.root_r)))]
    assert ((sums - exact_sums).abs() <= 2 * rtol * torch.stack(sizes, 1) + 1e-15).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", OWN_PASSES)
def test_operations_match_dense_algebra(backend, shape, dtype):
    check(Inputs(*shape, dtype), BACKENDS[backend])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_form_in_torch_does_too(dtype):
    """`Backend`'s own, by panels, which any backend may use."""
    inputs = Inputs(2, 41, 53, dtype)
    check(inputs, REFERENCE)
    inputs.items, inputs.cost = torch.tensor([2, 0]), torch.rand(3, 41, 53, dtype=dtype)
    check(inputs.scale(), REFERENCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("backend", OWN_PASSES)
def test_every_regularisation_of_the_operations(backend, reg, dtype):
    inputs = Inputs(2, 130, 95, dtype, reg=reg)
    assert (inputs.matrix <= 1 + 1e-6).all()
    check(inputs, BACKENDS[backend])


@pytest.mark.skipif(extension is not None and extension.simd_level() == "baseline",
                    reason="needs fused multiply-add, without which the cost over eps is rounded first")
def test_float32_keeps_its_digits_at_tiny_reg():
    """Log-scalings in the thousands are added without error: the entries that matter have exponents near 0."""
    inputs = Inputs(1, 60, 80, torch.float32, reg=1e-4)
    inputs.cost += torch.rand(1, 60, 1) + torch.rand(1, 1, 80)
    inputs.scale()
    assert inputs.log_x.abs().max() + inputs.log_y.abs().max() > 2000
    exact = inputs.exact_schur() - inputs.total
    error = lambda total: float(((total - inputs.total) / exact - 1).abs().max())  # noqa: E731
    ours = error(inputs.schur(NATIVE))
    plain = (inputs.log_x.float()[..., None] + inputs.log_y.float()[:, None]
             - inputs.cost / inputs.reg.float()[:, None, None]).exp().double()
    through = torch.einsum("bij,bj->bi", plain, inputs.vector) / inputs.row_diagonal
    theirs = error(inputs.total + torch.einsum("bij,bi->bj", plain, through))
    assert ours < 0.1 * theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", OWN_PASSES)
def test_strided_expanded_and_selected_costs(backend, dtype):
    inputs, backend = Inputs(4, 37, 53, dtype), BACKENDS[backend]
    whole = torch.rand(4, 80, 60, dtype=dtype)
    inputs.cost = whole[:, 2:76:2, 3:56]
    check(inputs.scale(), backend)
    inputs.cost = whole[1, :37, :53].expand(4, 37, 53)
    check(inputs.scale(), backend)
    inputs.items = torch.tensor([5, 0, 3, 3])
    inputs.cost = torch.rand(6, 37, 53, dtype=dtype)
    check(inputs.scale(), backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", OWN_PASSES)
def test_points_without_mass_and_forbidden_pairs(backend, dtype):
    inputs, backend = Inputs(2, 75, 191, dtype), BACKENDS[backend]
    inputs.log_b[:, ::3] = -INF
    inputs.log_a[:, 1::4] = -INF
    inputs.log_a[0, 8:24] = -INF       # whole tiles
    inputs.cost[:, :, 5:40:2] = INF
    inputs.cost[:, 10] = INF           # a row that reaches nothing
    inputs.cost[:, :, 88] = INF        # and a column
    inputs.cost[:, :, 128:] = INF      # and a block of them
    inputs.scale()
    assert torch.isneginf(inputs.log_x[:, 10]).all()
    check(inputs, backend)
    inputs.log_x[0] = -INF
    assert torch.equal(inputs.schur(backend)[0], inputs.total[0])


def test_a_row_that_rounding_has_moved_far_counts_as_one():
    """Rows whose sum is not within a factor of two of what was expected are taken for roundings of 1."""
    inputs = Inputs(1, 20, 30, torch.float64)
    inputs.root_r[0, :2] *= torch.tensor([3.0, 0.9], dtype=torch.float64)
    for backend in (*map(BACKENDS.get, OWN_PASSES), REFERENCE):
        diagonal = inputs.eliminate(backend)[0] / inputs.row_ratio
        torch.testing.assert_close(diagonal[0, :3], torch.tensor([1.0, 1 / 0.9, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", OWN_PASSES)
def test_empty_axes_and_batches(backend, dtype):
    for batch, n, m in ((2, 0, 5), (0, 4, 5), (2, 5, 0)):
        rows, cols, reg = (torch.ones(*shape, dtype=torch.float64) for shape in ((batch, n), (batch, m), (batch,)))
        cost, total = torch.ones(batch, n, m, dtype=dtype), torch.full((batch, m), 3.0, dtype=torch.float64)
        BACKENDS[backend].schur(cost, rows, cols, rows, cols, reg, total)
        assert (total == 3.0).all()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(1, 700, 900), (9, 130, 150)])
def test_operations_do_not_depend_on_threads(shape, threads):
    inputs = Inputs(*shape, torch.float32)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append([inputs.schur(NATIVE), *inputs.eliminate(NATIVE)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_output_is_filled(monkeypatch):
    inputs = Inputs(3, 77, 131, torch.float32)
    poisoned = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: poisoned(*size, **options).fill_(math.nan))
    assert all(output.isfinite().all() for output in (inputs.schur(NATIVE), *inputs.eliminate(NATIVE)))
    spread = inputs.total.clone().repeat(1, 2)[:, :131]  # not contiguous: written back all the same
    NATIVE.schur(inputs.cost, inputs.log_x, inputs.log_y, inputs.row_diagonal, inputs.vector, inputs.reg, spread)
    assert torch.equal(spread, inputs.schur(NATIVE))


def test_blocks_of_rows_add_up():
    inputs = Inputs(2, 77, 131, torch.float64)
    whole, total = inputs.schur(NATIVE), inputs.total.clone()
    for rows in (slice(0, 40), slice(40, 77)):
        NATIVE.schur(inputs.cost[:, rows], inputs.log_x[:, rows], inputs.log_y, inputs.row_diagonal[:, rows],
                     inputs.vector, inputs.reg, total)
    torch.testing.assert_close(total, whole, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_marked_where_they_are_negligible(dtype):
    """Never where an entry is more than 2^-24 / max(n, m) of its row or column, always where there are none."""
    n, m = 150, 333
    inputs = Inputs(1, n, m, dtype, reg=1e-3)
    place, other = torch.linspace(0, 1, n)[:, None], torch.linspace(0, 1, m)
    inputs.cost = (place - other).square().to(dtype)[None] * 4
    inputs.cost[0, 16:24, 64:128] = INF
    inputs.cost[0, 80, :] += 1.0  # a row far from everything keeps its entries
    inputs.scale()
    empty = NATIVE.adjoint_blocks(inputs.cost)
    empty.fill_(7)
    inputs.eliminate(NATIVE, empty)
    assert set(empty.unique().tolist()) == {0, 1}
    matrix = inputs.matrix[0]
    share = torch.maximum(matrix * inputs.root_c / inputs.root_r.mT, matrix * inputs.root_r.mT / inputs.root_c)
    share = torch.nn.functional.pad(share, (0, -m % 64, 0, -n % 8)).reshape(-(-n // 8), 8, -(-m // 64), 64)
    largest = share.amax((1, 3))[None]
    limit = UNIT[dtype] / max(n, m)
    assert (largest[empty == 1] <= limit * 1.001).all()
    assert empty[0, 2, 1] == 1, "all of it is forbidden"
    assert (empty[largest <= 1e-6 * limit] == 1).all()
    assert 0.2 < float(empty.double().mean()) < 0.9


def test_lower_instruction_sets():
    passes_at_lower_levels(__file__, "operations_match or forbidden or marked")


def test_bad_arguments_are_named():
    inputs = Inputs(2, 5, 7, torch.float32)
    inputs.vector = inputs.vector[:, :6]
    with pytest.raises(ValueError, match=r"vector must be of shape \(2, 7\)"):
        inputs.schur(NATIVE)
    inputs = Inputs(2, 5, 7, torch.float32)
    inputs.total = inputs.total.float()
    with pytest.raises(TypeError, match="total is added to in place: it must be float64, got float32"):
        inputs.schur(NATIVE)
    inputs.sums = inputs.sums[:, :2]
    with pytest.raises(ValueError, match=r"sums must be of shape \(2, 3, 7\)"):
        inputs.eliminate(NATIVE)
    inputs = Inputs(2, 5, 7, torch.float32)
    with pytest.raises(ValueError, match=r"empty must be of shape \(2, 1, 1\), uint8"):
        inputs.eliminate(NATIVE, torch.zeros(2, 1, 2, dtype=torch.uint8))
    inputs.items = torch.tensor([0, 2])
    with pytest.raises(ValueError, match="items must be in"):
        inputs.schur(NATIVE)
