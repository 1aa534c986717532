"""The compiled sweep told beforehand what to expect: hints, skipped blocks, functions of arrays."""

from __future__ import annotations

import math
import time

import pytest
import torch
from instruction_sets import passes_at_lower_levels
from torch import Tensor

from uotlib._extension import extension, missing
from uotlib.backends.native import NativeBackend
from uotlib.backends.reference import ReferenceBackend

pytestmark = pytest.mark.skipif(extension is None, reason=str(missing))

NATIVE, REFERENCE = NativeBackend(), ReferenceBackend()
DTYPES = [torch.float32, torch.float64]
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


class Clusters:
    """A problem whose kernel is nearly block-diagonal, after some iterations: what a solve looks like late."""

    def __init__(self, n: int, m: int, dtype: torch.dtype, *, reg: float = 1e-3, clusters: int = 6,
                 order: str = "sorted", outliers: bool = False, tau: float = 1.0, seed: int = 0,
                 batch: int = 1) -> None:
        draw = torch.Generator().manual_seed(seed)
        centres = 2 * torch.rand(clusters, 2, generator=draw, dtype=torch.float64)
        x, y = (self._points(centres, count, batch, order, draw) for count in (n, m))
        if outliers:
            x[:, 1::5] += 4.0
            y[:, 2::7] -= 4.0
        self.cost = (x[:, :, None] - y[:, None]).square().sum(3).to(dtype)
        self.reg = torch.full((batch,), reg, dtype=torch.float64)
        self.damping = tau / (tau + self.reg)
        self.offset = torch.full((batch, n), -math.log(n), dtype=torch.float64)
        self.target = torch.full((batch, m), -math.log(m), dtype=torch.float64)
        self.shift = torch.full((batch,), -math.log(n), dtype=torch.float64)
        self.items: Tensor | None = None
        exact = self.cost.double()
        g = torch.zeros(batch, m, dtype=torch.float64)
        for eps in (1.0, 0.1, 0.03, 0.01, reg, reg, reg):
            scaled, damping = exact / eps, tau / (tau + eps)
            row = torch.logsumexp(self.target[:, None] + g[:, None] / eps - scaled, 2)
            column = torch.logsumexp((self.offset - damping * row)[..., None] - scaled, 1)
            g = -eps * damping * column
        self.row_hint, self.col_hint = row, column
        self.log_v = self.target + g / reg

    @staticmethod
    def _points(centres: Tensor, count: int, batch: int, order: str, draw: torch.Generator) -> Tensor:
        which = torch.randint(len(centres), (count,), generator=draw)
        which = which.sort().values if order == "sorted" else which
        return centres[which] + 0.02 * torch.randn(batch, count, 2, generator=draw, dtype=torch.float64)

    def sweep(self, backend=NATIVE, **expectations: Tensor | None) -> tuple[Tensor, Tensor]:
        count = len(self.reg)
        mass = torch.zeros(count, self.cost.shape[2], dtype=torch.float64)
        return backend.sweep(self.cost, self.log_v, self.offset, self.damping, self.reg, self.shift, mass, self.items,
                             **expectations), mass

    def skipping(self, row_hint: Tensor | None = None, col_hint: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Row log-sum-exps, column masses, and the bound of what each column misses."""
        m = self.cost.shape[2]
        missed = torch.zeros(len(self.reg), -(-m // 64), dtype=torch.float64)
        lse, mass = self.sweep(row_hint=self.row_hint if row_hint is None else row_hint,
                               col_hint=self.col_hint if col_hint is None else col_hint,
                               block_min=NATIVE.block_min(self.cost), missed=missed)
        return lse, mass, missed.repeat_interleave(64, 1)[:, :m]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 9, 70), (1, 130, 300), (3, 33, 129)])
def test_block_minima(shape, dtype):
    cost = torch.randn(*shape, dtype=dtype)
    cost[0, 0, 0] = math.inf
    padded = torch.nn.functional.pad(cost, (0, -shape[2] % 64, 0, -shape[1] % 8), value=math.inf)
    blocks = padded.view(shape[0], padded.shape[1] // 8, 8, padded.shape[2] // 64, 64)
    assert torch.equal(NATIVE.block_min(cost), blocks.amin((2, 4)))
    cost[-1, -1, -1] = math.nan
    table = NATIVE.block_min(cost)
    assert table.isnan().nonzero().tolist() == [[size - 1 for size in table.shape]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reg", [0.1, 1e-3])
def test_a_hint_changes_nothing_but_the_time(reg, dtype):
    """Right, off by many eps, far off, without a finite value: the same sums to rounding in the cost's type."""
    case = Clusters(140, 330, dtype, reg=reg)
    plain, exact = case.sweep(), case.sweep(REFERENCE)
    error = 64 * UNIT[dtype] * (1 + case.cost.max().item() / reg)
    torch.testing.assert_close(plain, exact, rtol=error, atol=error)
    wrong = case.row_hint.clone()
    wrong[:, ::3] += 40
    wrong[:, 1::5] -= 1e4
    wrong[:, 2::7] = torch.tensor([math.nan, math.inf, -math.inf]).repeat(100)[: wrong[:, 2::7].shape[1]]
    for hint in (case.row_hint, wrong, 0 * wrong, case.row_hint + 20, case.row_hint - 20):
        for ours, truth in zip(case.sweep(row_hint=hint), exact, strict=True):
            torch.testing.assert_close(ours, truth, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.05])
def test_skipping_equals_not_skipping(dtype, order, outliers, tau):
    """Rows to rounding; columns within the bound that is returned, which is small where the hints are right."""
    case = Clusters(520, 650, dtype, order=order, outliers=outliers, tau=tau)
    lse, mass, missed = case.skipping()
    whole_lse, whole = case.sweep(row_hint=case.row_hint)
    relative = 4 * UNIT[dtype]
    assert (lse - whole_lse).abs().max() <= relative * (1 + lse.abs().max())
    assert ((mass - whole).abs() <= missed + relative * 8 * whole).all()
    heavy = whole >= 1e-25
    doubtful = heavy & ~(missed <= UNIT[dtype] * mass)
    assert ((mass - whole).abs() <= relative * 8 * whole)[heavy & ~doubtful].all()
    if order == "sorted" and not outliers:
        assert not torch.equal(mass, whole) or (missed > 0).any()  # something was skipped
        assert doubtful.double().mean() < 0.2


@pytest.mark.parametrize("dtype", DTYPES)
def test_hints_that_are_wrong(dtype):
    """Of another eps, random, shuffled: rows stay right, and no column is off by more than its bound."""
    case = Clusters(520, 650, dtype)
    whole_lse, whole = case.sweep()
    draw = torch.Generator().manual_seed(1)
    noise = [300 * torch.randn(hint.shape, generator=draw, dtype=torch.float64)
             for hint in (case.row_hint, case.col_hint)]
    pairs = [(0.1 * case.row_hint, 0.1 * case.col_hint), (10 * case.row_hint, 10 * case.col_hint),
             (case.row_hint + noise[0], case.col_hint + noise[1]), (case.row_hint, case.col_hint + 1e3),
             (case.row_hint + 5, case.col_hint + 5), (case.row_hint + math.inf, case.col_hint - math.inf),
             (case.row_hint * math.nan, case.col_hint * math.nan)]
    error = 16 * UNIT[dtype] * (1 + whole_lse.abs().max().item() + case.cost.max().item() / 1e-3)
    for row_hint, col_hint in pairs:
        lse, mass, missed = case.skipping(row_hint, col_hint)
        torch.testing.assert_close(lse, whole_lse, rtol=0, atol=error)
        assert ((mass - whole).abs() <= missed + error * whole).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_forbidden_pairs_where_blocks_are_skipped(dtype):
    case = Clusters(260, 400, dtype)
    far = (case.cost[0] == case.cost[0].max()).nonzero()[0].tolist()
    case.cost[0, :, 64:128] = torch.where(case.cost[0, :, 64:128] > 1, math.inf, case.cost[0, :, 64:128])
    lse, mass, missed = case.skipping()
    whole_lse, whole = case.sweep()
    error = 64 * UNIT[dtype] * 1e4
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=error)
    assert ((mass - whole).abs() <= missed + error * whole).all()
    case.cost[0, far[0], far[1]] = math.nan
    lse, mass, _ = case.skipping()
    assert lse.isnan().nonzero().tolist() == [[0, far[0]]]
    assert mass.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_skipping_does_not_depend_on_threads(dtype):
    case = Clusters(520, 1300, dtype, batch=2)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(case.skipping())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_items_take_their_own_table():
    case = Clusters(130, 300, torch.float32, batch=3)
    whole = case.skipping()
    order = torch.tensor([2, 0])
    case.items = order
    for name in ("reg", "damping", "offset", "shift", "log_v", "row_hint", "col_hint"):
        setattr(case, name, getattr(case, name)[order])
    for part, all_of_them in zip(case.skipping(), whole, strict=True):
        assert torch.equal(part, all_of_them[order])


def test_table_and_bound_are_checked():
    case = Clusters(20, 70, torch.float32)
    table, missed = NATIVE.block_min(case.cost), torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="block_min and missed belong together"):
        case.sweep(block_min=table)
    for wrong in (table[:, :1], table.double(), table[0]):
        with pytest.raises(ValueError, match=r"^block_min must be of shape \(1, 3, 2\) and type float32, contiguous"):
            case.sweep(block_min=wrong, missed=missed)
    with pytest.raises(TypeError, match=r"^missed is added to in place"):
        case.sweep(block_min=table, missed=missed.float())
    for name in ("row_hint", "col_hint"):
        with pytest.raises(ValueError, match=rf"^{name} must be of shape \(1, "):
            case.sweep(**{name: torch.zeros(1, 3)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_single_columns(dtype):
    """Those asked for equal `col_lse` bit for bit or nearly; all others are -inf."""
    case = Clusters(300, 700, dtype, batch=3)
    log_u = case.offset - case.damping[:, None] * case.row_hint
    whole = NATIVE.col_lse(case.cost, log_u, case.reg)
    draw = torch.Generator().manual_seed(0)
    for share in (0.0, 0.01, 0.6, 1.0):
        mask = torch.rand(3, 700, generator=draw) < share
        mask[1] = False
        some = NATIVE.col_lse_masked(case.cost, log_u, case.reg, mask)
        assert (some[~mask] == -math.inf).all()
        torch.testing.assert_close(some[mask], whole[mask], rtol=0, atol=8 * UNIT[dtype])
    items = torch.tensor([2, 1])
    some = NATIVE.col_lse_masked(case.cost, log_u[items], case.reg[items], torch.ones(2, 700, dtype=torch.bool), items)
    torch.testing.assert_close(some, whole[items], rtol=0, atol=8 * UNIT[dtype])
    with pytest.raises(ValueError, match=r"^mask must be bool of shape \(3, 700\) on the CPU"):
        NATIVE.col_lse_masked(case.cost, log_u, case.reg, torch.ones(3, 700))


def of_array(name: str, x: Tensor) -> Tensor:
    y = torch.full_like(x, 7.0)
    getattr(extension, name)(x.data_ptr(), y.data_ptr(), x.numel())
    return y


def test_exp_and_log_of_arrays():
    """2 units in the last place (torch's own are within one), the limits, and tails that fill no vector."""
    draw = torch.Generator().manual_seed(0)
    x = torch.cat([torch.linspace(-708, 709.7, 200_001, dtype=torch.float64),
                   torch.randn(50_000, generator=draw, dtype=torch.float64)])
    ulp = 2.0**-52
    assert (of_array("exp", x) / x.exp() - 1).abs().max() <= 3 * ulp
    y = torch.cat([x.exp(), 1 + torch.linspace(-1e-3, 1e-3, 10_001, dtype=torch.float64)])
    exact = y.log()
    assert ((of_array("log", y) - exact).abs() <= 3 * ulp * exact.abs()).all()
    edges = torch.tensor([-math.inf, 0.0, math.inf, math.nan, 710.0, -800.0], dtype=torch.float64)
    assert of_array("exp", edges).nan_to_num(nan=-1.0, posinf=5.0).tolist() == [0, 1, 5, -1, 5, 0]
    edges = torch.tensor([0.0, 1.0, math.inf], dtype=torch.float64)
    assert of_array("log", edges).tolist() == [-math.inf, 0.0, math.inf]
    assert of_array("log", torch.tensor([-1.0, -math.inf, math.nan], dtype=torch.float64)).isnan().all()
    for count in range(20):
        assert torch.equal(of_array("exp", x[:count]), of_array("exp", x)[:count])
        assert torch.equal(of_array("log", y[:count]), of_array("log", y)[:count])


def test_exp2_of_every_float32_in_an_octave():
    """All 2^23 arguments of [-2, -1): within 2 units in the last place."""
    x = (torch.arange(1 << 23, dtype=torch.int32) + 0x3F800000).view(torch.float32) - 3.0
    y = torch.empty_like(x)
    extension.exp2(False, x.data_ptr(), y.data_ptr(), x.numel())
    exact = x.double().exp2()
    unit = 2.0 ** (exact.log2().floor() - 23)
    assert ((y.double() - exact).abs() / unit).max() <= 2.0


def test_denormals_do_not_slow_the_sweep():
    """Rows whose terms are mostly under 2^-126 take about as long as others: they are flushed."""
    n = 512
    flat, steep = torch.zeros(1, n, n), torch.full((1, n, n), 88.0)
    steep[:, :, 0] = 0.0
    zero, one = torch.zeros(1, n, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    times = {}
    for name, cost in (("flat", flat), ("steep", steep)):
        taken = []
        for _ in range(15):
            begin = time.perf_counter()
            NATIVE.sweep(cost, zero, zero, one, one, 0 * one, torch.zeros_like(zero))
            taken.append(time.perf_counter() - begin)
        times[name] = min(taken)
    assert times["steep"] <= 5 * times["flat"]


def test_lower_instruction_sets():
    passes_at_lower_levels(__file__, "minima or hint or skipping or skipped or columns or arrays or octave")
