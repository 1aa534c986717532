"""The backend "cuda" as Python sees it: what it refuses, and solves for which the kernel runs on the processor."""

from __future__ import annotations

import ctypes
import math
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_harness import COMPILER, OPTIONS, build

import uotlib
from uotlib.backends import BACKENDS, choose, cuda
from uotlib.exceptions import BackendUnavailable
from uotlib.options import SolverOptions

CUDA = BACKENDS["cuda"]
GPU = torch.device("cuda", 0)


@pytest.fixture
def available(monkeypatch) -> None:
    """As on a machine whose device runs the kernel."""
    monkeypatch.setattr(cuda.CudaBackend, "why_not", lambda self, device, dtype: None)


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Any:
    if not shutil.which(COMPILER[0]):
        pytest.skip("needs a C++ compiler: c++, g++, clang++ or CXX")
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("harness"), "-O1", "-fno-math-errno")))


@pytest.fixture
def refused() -> list[bool]:
    """Whether the next launches are refused clusters, the first one last."""
    return []


@pytest.fixture
def on_the_processor(available, harness, refused, monkeypatch) -> list[tuple[int, int]]:
    """The extension with a device that is the processor, of 10 blocks; its launches, as (device, stream)."""
    if cuda.extension is None:
        pytest.skip(str(cuda.missing))
    compiled, launches = cuda.extension, []

    class Resident:
        def __init__(self, *arguments):
            compiled.Resident(*arguments)  # takes them as they are
            (cost, rows, cols, reg, start, out, entropy, textbook, max_iter, tol, synchronous, options) = arguments
            numbers = torch.tensor([float(options[name]) for name in OPTIONS], dtype=torch.float64)
            self.keep, size, at = numbers, ctypes.c_int64, ctypes.c_void_p
            data, batch_stride, row_stride, items, count, n, m = cost
            self.arguments = (
                at(data), size(batch_stride), size(row_stride), at(items), size(count), size(n), size(m), at(rows[0]),
                at(rows[1]), at(cols[0]), at(cols[1]), at(reg), at(start), at(out), int(entropy), int(textbook),
                size(max_iter), ctypes.c_double(tol), int(synchronous), at(numbers.data_ptr()),
                (size * 5)(10, 9000, 1 << 20, 0, 0), size(0), ctypes.c_uint64(2))

        def workspace(self, device):
            return 64

        def launch(self, device, stream, memory):
            launches.append((device, stream))
            assert harness.resident_solve(*self.arguments) > 0
            return refused.pop() if refused else False

        def division(self, device):
            return device, self.arguments[1].value, self.arguments[2].value

    limits = {name: value for name, value in vars(compiled).items() if name.startswith("RESIDENT_")}
    monkeypatch.setattr(cuda, "extension", SimpleNamespace(Resident=Resident, **limits))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=1234))
    return launches


@pytest.mark.parametrize("reg_type", ["kl", "entropy"])
@pytest.mark.parametrize(("method", "tol"), [("sinkhorn", 1e-4), ("auto", None), ("auto", 0)])
def test_a_solve_is_one_launch(on_the_processor, reg_type, method, tol):
    """Whatever the batch, the broadcasting and the strides: the other backends' answers, on the caller's stream."""
    draw = torch.Generator().manual_seed(1)
    cost = torch.rand(3, 30, 24, generator=draw).mT  # the solve gets a copy whose columns are contiguous
    a = 0.1 + torch.rand(2, 1, 24, generator=draw)
    b = 0.1 + torch.rand(30, generator=draw)
    reg_m = (torch.tensor([[0.3], [2.0]]), math.inf)
    settings = {"reg": 0.05, "reg_m": reg_m, "reg_type": reg_type, "method": method, "tol": tol,
                "max_iter": 8 if tol == 0 else 900}
    got = uotlib.unbalanced_sinkhorn(cost, a, b, backend="cuda", **settings)
    assert on_the_processor == [(3, 1234)]
    wanted = uotlib.unbalanced_sinkhorn(cost, a, b, backend="native", **settings)
    assert got.f.shape == (2, 3, 24)
    torch.testing.assert_close(got.f, wanted.f, atol=2e-6, rtol=0)
    torch.testing.assert_close(got.g, wanted.g, atol=2e-6, rtol=0)
    assert torch.equal(got.converged, wanted.converged)
    assert torch.equal(got.n_iter, wanted.n_iter)
    torch.testing.assert_close(got.violation, wanted.violation, atol=1e-6, rtol=1e-2)


def test_a_start_is_taken(on_the_processor):
    draw = torch.Generator().manual_seed(2)
    cost = torch.rand(20, 25, generator=draw)
    first = uotlib.unbalanced_sinkhorn(cost, reg=0.02, reg_m=1.0, tol=1e-5, backend="cuda")
    again = uotlib.unbalanced_sinkhorn(cost, reg=0.02, reg_m=1.0, tol=1e-5, backend="cuda", init=(first.f, first.g))
    assert int(again.n_iter) <= 2 < int(first.n_iter)


def test_refused_clusters_are_told_of(on_the_processor, refused):
    refused.extend((False, True))
    with pytest.warns(RuntimeWarning, match="device 3 refused a launch of clusters"):
        uotlib.unbalanced_sinkhorn(torch.rand(5, 6), reg=0.1, reg_m=1.0, backend="cuda")
    uotlib.unbalanced_sinkhorn(torch.rand(5, 6), reg=0.1, reg_m=1.0, backend="cuda")


def test_a_division_can_be_asked_for(on_the_processor):
    """Of contiguous costs, on the device that is meant; what a solve refuses has none."""
    assert CUDA.division((7, 5, 6), torch.device("cuda", 1)) == (1, 30, 6)
    with pytest.raises(BackendUnavailable, match="up to 16777216 columns"):
        CUDA.division((1, 1, (1 << 24) + 1), GPU)


def test_no_division_without_a_device():
    with pytest.raises(BackendUnavailable, match="the cost is on cpu"):
        CUDA.division((1, 5, 6), torch.device("cpu"))


@pytest.mark.parametrize(("shape", "settings", "words"), [
    ((1, (1 << 24) + 1), {}, "up to 16777216 columns, got 16777217"),
    ((3, 4), {"options": SolverOptions(anderson_depth=17)}, "anderson_depth up to 16, got 17"),
    ((3, 4), {"options": SolverOptions(anneal_order=9)}, "anneal_order up to 8, got 9"),
    ((3, 4), {"options": SolverOptions(progress=True)}, "progress=True"),
    ((3, 4), {"max_iter": (1 << 20) + 1}, "max_iter up to 1048576, got 1048577"),
])
def test_what_the_kernel_does_not_take_is_an_error(on_the_processor, shape, settings, words):
    """No other method steps in silently."""
    with pytest.raises(BackendUnavailable, match=words):
        uotlib.unbalanced_sinkhorn(torch.rand(shape), reg=0.1, reg_m=1.0, backend="cuda", **settings)
    assert on_the_processor == []


def test_why_not(monkeypatch):
    assert str(CUDA.why_not(torch.device("cpu"), torch.float32)).endswith("needs an NVIDIA GPU; the cost is on cpu")
    assert CUDA.why_not(GPU, torch.float64) == "the cuda backend takes float32 costs, not float64"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert str(CUDA.why_not(GPU, torch.float32)).endswith("the cost is on a ROCm device")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(cuda.TritonBackend, "why_not", lambda self, device, dtype: None)
    for reason, said in (("too old", "the cuda backend cannot run on device 0: too old"), ("", None)):
        cuda._device_reason.cache_clear()
        monkeypatch.setattr(cuda, "extension", SimpleNamespace(resident_why_not=lambda device, text=reason: text))
        assert CUDA.why_not(GPU, torch.float32) == said
    cuda._device_reason.cache_clear()
    monkeypatch.setattr(cuda, "missing", "no extension, because")
    assert CUDA.why_not(GPU, torch.float32) == "no extension, because"


@pytest.mark.usefixtures("available")
def test_auto_does_not_choose_it(monkeypatch):
    monkeypatch.setattr(cuda.TritonBackend, "why_not", lambda self, device, dtype: "not today")
    assert choose("auto", GPU, torch.float32).name == "reference"
    assert choose("cuda", GPU, torch.float32).name == "cuda"
