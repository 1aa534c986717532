"""The compiled CPU kernels against the reference in float64."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading

import pytest
import torch
from instruction_sets import passes_at_lower_levels
from torch import Tensor

from uotlib._extension import extension, missing
from uotlib.backends.native import NativeBackend
from uotlib.backends.reference import ReferenceBackend

pytestmark = pytest.mark.skipif(extension is None, reason=str(missing))

NATIVE, REFERENCE = NativeBackend(), ReferenceBackend()
SHAPES = [(1, 1, 1), (2, 1, 7), (1, 9, 1), (2, 8, 16), (1, 41, 401), (3, 65, 33), (1, 513, 129), (1, 70, 2309)]
DTYPES = [torch.float32, torch.float64]
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


class Inputs:
    """Random arguments of all operations; `cost` and `items` may be replaced afterwards."""

    def __init__(self, batch: int, n: int, m: int, dtype: torch.dtype, reg: float = 0.1, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.cost = torch.rand(batch, n, m, generator=draw, dtype=dtype)
        self.items: Tensor | None = None
        self.reg = reg * (1 + torch.rand(batch, generator=draw, dtype=torch.float64))
        # Scalings of the size they have in a solve: about half the cost over eps, either sign.
        self.log_u = torch.randn(batch, n, generator=draw, dtype=torch.float64) * (1 + 0.1 / reg)
        self.log_v = torch.randn(batch, m, generator=draw, dtype=torch.float64) * (1 + 0.1 / reg)
        self.offset = torch.randn(batch, n, generator=draw, dtype=torch.float64)
        self.damping = 0.5 + 0.5 * torch.rand(batch, generator=draw, dtype=torch.float64)
        self.shift = torch.zeros(batch, dtype=torch.float64)
        self.col_mass = torch.rand(batch, m, generator=draw, dtype=torch.float64)

    def aim_shift(self) -> Inputs:
        """The shift that makes the largest entry of the swept plan 1, as the solver's does."""
        lse = REFERENCE.row_lse(self.cost, self.log_v, self.reg, self.items)
        log_u = self.offset - self.damping[:, None] * lse
        self.shift = (log_u + lse).nan_to_num(neginf=-1e300).amax(dim=1).clamp_min(-1e4)
        return self

    def row_lse(self, backend) -> Tensor:
        return backend.row_lse(self.cost, self.log_v, self.reg, self.items)

    def col_lse(self, backend) -> Tensor:
        return backend.col_lse(self.cost, self.log_u, self.reg, self.items)

    def panel(self, backend) -> Tensor:
        return backend.panel(self.cost, self.log_u, self.log_v, self.reg, self.items)

    def sweep(self, backend) -> tuple[Tensor, Tensor]:
        col_mass = self.col_mass.clone()
        lse = backend.sweep(self.cost, self.log_v, self.offset, self.damping, self.reg, self.shift, col_mass,
                            self.items)
        return lse, col_mass

    def exponent_error(self) -> float:
        """Bound on an exponent's error: a few roundings of its two large terms and of a sum of exponentials."""
        finite = self.cost[torch.isfinite(self.cost)]
        scale = [t[torch.isfinite(t)].abs().max().item() for t in (self.log_u, self.log_v) if torch.isfinite(t).any()]
        largest = (finite.max() / self.reg.min()).item() if finite.numel() else 0.0
        return 4 * UNIT[self.cost.dtype] * (4 + largest + sum(scale))


def check(inputs: Inputs) -> None:
    """All four operations against the reference, within what rounding in the cost's type explains."""
    error = inputs.exponent_error()
    torch.testing.assert_close(inputs.row_lse(NATIVE), inputs.row_lse(REFERENCE), rtol=UNIT[torch.float64] * 8,
                               atol=error)
    torch.testing.assert_close(inputs.col_lse(NATIVE), inputs.col_lse(REFERENCE), rtol=UNIT[torch.float64] * 8,
                               atol=error)
    (lse, mass), (exact_lse, exact_mass) = inputs.sweep(NATIVE), inputs.sweep(REFERENCE)
    torch.testing.assert_close(lse, exact_lse, rtol=UNIT[torch.float64] * 8, atol=error)
    torch.testing.assert_close(mass, exact_mass, rtol=2 * error, atol=1e-25)
    plan = inputs.panel(NATIVE)
    assert plan.dtype == inputs.cost.dtype
    # The reference rounds to the cost's type too: below its smallest normal number nothing is promised.
    torch.testing.assert_close(plan.double(), inputs.panel(REFERENCE).double(), rtol=error,
                               atol=2 * torch.finfo(plan.dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_operations_match_the_reference(shape, dtype):
    check(Inputs(*shape, dtype).aim_shift())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-4])
def test_every_regularisation(reg, dtype):
    check(Inputs(2, 130, 95, dtype, reg=reg).aim_shift())


def test_float64_to_twelve_digits():
    inputs = Inputs(1, 300, 257, torch.float64, reg=0.5).aim_shift()
    for operation in (inputs.row_lse, inputs.col_lse, inputs.panel):
        torch.testing.assert_close(operation(NATIVE), operation(REFERENCE), rtol=1e-12, atol=1e-12)
    for ours, exact in zip(inputs.sweep(NATIVE), inputs.sweep(REFERENCE), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reg", [1.0, 1e-2, 1e-4])
def test_float32_errs_at_most_twice_as_much_as_torch(reg):
    inputs = Inputs(1, 256, 300, torch.float32, reg=reg)
    scaled = inputs.cost / -inputs.reg.float()[:, None, None]
    plain = torch.logsumexp(scaled + inputs.log_v.float()[:, None], 2), torch.logsumexp(
        scaled + inputs.log_u.float()[..., None], 1)
    ours = inputs.row_lse(NATIVE), inputs.col_lse(NATIVE)
    exact = inputs.row_lse(REFERENCE), inputs.col_lse(REFERENCE)
    for mine, theirs, truth in zip(ours, plain, exact, strict=True):
        assert (mine - truth).square().mean().sqrt() <= 2 * (theirs - truth).square().mean().sqrt()
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max()


def test_float32_plan_keeps_its_digits_at_tiny_reg():
    """At eps = 1e-4 the exponent's two large terms cancel before they are rounded: only the cost's product is not."""
    inputs = Inputs(1, 64, 80, torch.float32, reg=1e-4)
    inputs.log_u = -inputs.log_v.mean() + torch.zeros(1, 64, dtype=torch.float64)
    inputs.log_v = (inputs.cost.double().amin(1) / inputs.reg[:, None]) - inputs.log_u[:, :1]
    exact = inputs.panel(REFERENCE).double()
    support = exact > 1e-3
    assert support.sum() >= 80
    ours = inputs.panel(NATIVE).double()
    plain = (inputs.log_u.float()[..., None] + inputs.log_v.float()[:, None] - inputs.cost / inputs.reg.float()[
        :, None, None]).exp().double()
    relative = lambda plan: (plan[support] / exact[support] - 1).abs().max().item()  # noqa: E731
    assert relative(ours) < 2e-6 < relative(plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_expanded_and_selected_costs(dtype):
    inputs = Inputs(4, 37, 53, dtype).aim_shift()
    whole = torch.rand(4, 80, 60, dtype=dtype)
    inputs.cost = whole[:, 2:76:2, 3:56]
    check(inputs)
    inputs.cost = whole[1, :37, :53].expand(4, 37, 53)
    check(inputs)
    inputs.items = torch.tensor([5, 0, 3, 3])
    inputs.cost = torch.rand(6, 37, 53, dtype=dtype)
    check(inputs)
    inputs.cost = torch.rand(4, 53, 37, dtype=dtype).transpose(1, 2)
    with pytest.raises(ValueError, match="unit stride"):
        inputs.row_lse(NATIVE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_points_without_mass_and_forbidden_pairs(dtype):
    inputs = Inputs(2, 75, 91, dtype)
    inputs.log_v[:, ::3] = -math.inf
    inputs.log_u[:, 1::4] = -math.inf
    inputs.offset[:, 1::4] = -math.inf
    inputs.cost[:, :, 5:40:2] = math.inf
    inputs.cost[:, 10] = math.inf    # a row that reaches nothing
    inputs.cost[:, :, 88] = math.inf  # and a column
    check(inputs.aim_shift())


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_can_be_reached(dtype):
    inputs = Inputs(2, 20, 30, dtype)
    inputs.log_v[0] = -math.inf
    inputs.cost[1] = math.inf
    lse, mass = inputs.sweep(NATIVE)
    assert (lse == -math.inf).all()
    assert (inputs.row_lse(NATIVE) == -math.inf).all()
    torch.testing.assert_close(mass, inputs.col_mass, rtol=0, atol=0)
    inputs.log_u[0] = -math.inf
    assert (inputs.col_lse(NATIVE) == -math.inf).all()
    assert (inputs.panel(NATIVE) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_axes(dtype):
    inputs = Inputs(2, 0, 5, dtype)
    assert inputs.row_lse(NATIVE).shape == (2, 0)
    assert (inputs.col_lse(NATIVE) == -math.inf).all()
    torch.testing.assert_close(inputs.sweep(NATIVE)[1], inputs.col_mass)
    assert (Inputs(2, 5, 0, dtype).row_lse(NATIVE) == -math.inf).all()
    assert Inputs(0, 4, 5, dtype).panel(NATIVE).shape == (0, 4, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_the_cost_shows(dtype):
    inputs = Inputs(1, 30, 70, dtype).aim_shift()
    inputs.cost[0, 7, 11] = math.nan
    rows, columns, (lse, mass) = inputs.row_lse(NATIVE), inputs.col_lse(NATIVE), inputs.sweep(NATIVE)
    assert rows.isnan().nonzero().tolist() == lse.isnan().nonzero().tolist() == [[0, 7]]
    assert columns.isnan().nonzero().tolist() == [[0, 11]]
    assert mass.isnan().all()
    assert inputs.panel(NATIVE).isnan().nonzero().tolist() == [[0, 7, 11]]


def test_outliers_with_small_penalties():
    """Rows with tiny masses beside ordinary ones: damping near 0, log-sums in the hundreds, columns that are weak."""
    inputs = Inputs(1, 200, 160, torch.float32, reg=1e-3)
    inputs.cost[:, ::4] += 0.4
    inputs.damping[:] = 0.01 / (0.01 + inputs.reg)
    check(inputs.aim_shift())
    assert inputs.sweep(REFERENCE)[0].min() < -300


@pytest.mark.parametrize("shift", [-150.0, -60.0, 40.0])
def test_shift_far_from_the_plan(shift):
    """Entries far beyond float32 in units of exp(shift) raise the unit of their slab instead of overflowing."""
    inputs = Inputs(1, 150, 90, torch.float32)
    inputs.aim_shift().shift += shift
    inputs.col_mass.zero_()
    torch.testing.assert_close(inputs.sweep(NATIVE)[1], inputs.sweep(REFERENCE)[1], rtol=1e-5, atol=0)


def test_sweep_fills_every_output_and_accumulates(monkeypatch):
    inputs = Inputs(3, 77, 131, torch.float32).aim_shift()
    poisoned = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: poisoned(*size, **options).fill_(math.nan))
    outputs = (inputs.row_lse(NATIVE), inputs.col_lse(NATIVE), inputs.panel(NATIVE), *inputs.sweep(NATIVE))
    assert all(output.isfinite().all() for output in outputs)
    whole = inputs.sweep(NATIVE)[1]
    parts = inputs.col_mass.clone().repeat(1, 2)[:, :131]  # not contiguous: written back all the same
    for rows in (slice(0, 40), slice(40, 77)):
        NATIVE.sweep(inputs.cost[:, rows], inputs.log_v, inputs.offset[:, rows], inputs.damping, inputs.reg,
                     inputs.shift, parts)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def all_outputs(inputs: Inputs) -> list[Tensor]:
    return [inputs.row_lse(NATIVE), inputs.col_lse(NATIVE), inputs.panel(NATIVE), *inputs.sweep(NATIVE)]


@pytest.mark.parametrize("shape", [(1, 700, 900), (9, 130, 150)])
def test_results_do_not_depend_on_threads(shape, threads):
    inputs = Inputs(*shape, torch.float32).aim_shift()
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(all_outputs(inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_several_threads(threads):
    threads(2)
    inputs = Inputs(1, 300, 400, torch.float32).aim_shift()
    expected = all_outputs(inputs)
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(10):
            if not all(torch.equal(a, b) for a, b in zip(all_outputs(inputs), expected, strict=True)):
                wrong.append(index)

    callers = [threading.Thread(target=call, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=60)
        assert not caller.is_alive()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_works_after_fork(threads):
    """The child has none of the pool's threads: it must make its own, not wait for them."""
    threads(2)
    inputs = Inputs(1, 300, 400, torch.float32)
    expected = inputs.row_lse(NATIVE)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if torch.equal(inputs.row_lse(NATIVE), expected) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_floating_point_state_is_left_alone():
    inputs = Inputs(1, 200, 200, torch.float32)
    inputs.row_lse(NATIVE)
    assert (torch.full((64,), 1e-39) * 0.5 > 0).all()


@pytest.mark.parametrize(("dtype", "lowest", "tolerance"),
                         [(torch.float32, -126, 2.0**-23), (torch.float64, -1022, 1e-15)])
def test_exponential(dtype, lowest, tolerance):
    """The polynomial itself: 2 units in the last place, exact at integers, zero under the range, NaN kept."""
    x = torch.cat([torch.linspace(lowest, 1, 200_003, dtype=torch.float64), torch.linspace(-1, 1, 100_001,
                   dtype=torch.float64), torch.arange(lowest, 3, dtype=torch.float64)]).to(dtype)
    y = torch.full_like(x, math.nan)
    extension.exp2(dtype == torch.float64, x.data_ptr(), y.data_ptr(), x.numel())
    exact = torch.exp2(x.double())
    assert ((y.double() - exact) / exact).abs().max() <= 2 * tolerance
    whole = x == x.round()
    assert torch.equal(y[whole], exact[whole].to(dtype))
    edge = torch.tensor([lowest - 1, lowest - 50, -1e30, -math.inf, math.nan], dtype=dtype)
    y = torch.empty_like(edge)
    extension.exp2(dtype == torch.float64, edge.data_ptr(), y.data_ptr(), edge.numel())
    assert y[:4].tolist() == [0, 0, 0, 0]
    assert y[4].isnan()


def test_lower_instruction_sets():
    passes_at_lower_levels(__file__, "operations or exponential or forbidden or reached or nan or twice")


def test_refusals_name_the_reason(monkeypatch):
    assert NATIVE.why_not(torch.device("cpu"), torch.float32) is None
    assert NATIVE.why_not(torch.device("cuda:0"), torch.float32) == (
        "the native backend runs on the CPU, the cost is on cuda:0")
    assert "not float16" in NATIVE.why_not(torch.device("cpu"), torch.float16)
    monkeypatch.setattr("uotlib.backends.native.missing", "no extension, because")
    assert NATIVE.why_not(torch.device("cpu"), torch.float32) == "no extension, because"


def arguments(operation: str) -> dict[str, Tensor]:
    inputs = Inputs(2, 5, 7, torch.float32)
    names = {"row_lse": ["log_v"], "col_lse": ["log_u"], "panel": ["log_u", "log_v"],
             "sweep": ["log_v", "offset", "damping", "shift", "col_mass"]}[operation]
    return {name: getattr(inputs, name) for name in ("cost", "reg", *names)} | {"items": torch.tensor([1, 0])}


@pytest.mark.parametrize("operation", ["row_lse", "col_lse", "panel", "sweep"])
def test_every_array_is_checked(operation):
    """The kernels get addresses: whatever is not as it should be is refused by name, not read out of bounds."""
    run, right = getattr(NATIVE, operation), arguments(operation)
    run(**right)
    for name in right.keys() - {"cost", "items"}:
        shape = tuple(right[name].shape)
        for wrong in (right[name][:1], right[name][..., :-1], right[name][None], right[name].to("meta")):
            with pytest.raises(ValueError, match=rf"^{name} must be of shape {re.escape(str(shape))} on the CPU, got "):
                run(**right | {name: wrong})
    with pytest.raises(ValueError, match=r"must be of shape \(3,"):
        run(**right | {"items": torch.tensor([1, 0, 1])})
    cost = right["cost"]
    for wrong in (cost[0], cost[None], cost.to("meta")):
        with pytest.raises(ValueError, match=r"^cost must be of shape \(B, n, m\) on the CPU, got "):
            run(**right | {"cost": wrong})
    for wrong in (cost.half(), cost.long()):
        with pytest.raises(TypeError, match=r"^cost must be float32 or float64, got (float16|int64)$"):
            run(**right | {"cost": wrong})
    with pytest.raises(TypeError, match=r"^items must be int64, got int32$"):
        run(**right | {"items": torch.tensor([1, 0], dtype=torch.int32)})
    for items in (torch.tensor(1), torch.tensor([[1, 0]]), torch.tensor([1, 0, 0])[::2],
                  torch.tensor([1, 0]).to("meta")):
        with pytest.raises(ValueError, match=r"^items must be contiguous, of shape "):
            run(**right | {"items": items})
    for items, got in (([0, 2], "0 to 2"), ([-1, 1], "-1 to 1")):
        with pytest.raises(ValueError, match=rf"^items must be in \[0, 2\), the cost's batch, got {got}$"):
            run(**right | {"items": torch.tensor(items)})


def test_column_masses_are_float64():
    right = arguments("sweep")
    with pytest.raises(TypeError, match=r"^col_mass is added to in place: it must be float64, got float32$"):
        NATIVE.sweep(**right | {"col_mass": right["col_mass"].float()})


def test_short_vector_of_a_wide_cost():
    with pytest.raises(ValueError, match=r"^log_v must be of shape \(1, 100000\) on the CPU, got \(1, 10\) on cpu$"):
        NATIVE.row_lse(torch.rand(1, 4, 100000), torch.zeros(1, 10), torch.ones(1))


def test_unknown_instruction_set_is_a_sentence():
    """The backend that cannot run says so, in the report and where it is asked for; nothing else stops."""
    program = ("import torch; from uotlib.info import report; from uotlib.backends import BACKENDS; print(report());"
               "print(BACKENDS['native'].why_not(torch.device('cpu'), torch.float32))")
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "UOTLIB_SIMD": "sse9"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *report, reason = done.stdout.splitlines()
    assert "UOTLIB_SIMD must be baseline, avx2 or avx512" in reason
    assert "got 'sse9'" in reason
    for name in ("extension", "native on cpu"):
        assert any(line.startswith(name) and line.endswith(reason) for line in report)
    assert any(line.startswith("reference on cpu") and line.endswith("available") for line in report)
