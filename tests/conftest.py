"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from uotlib.backends import BACKENDS

settings.register_profile("uotlib", deadline=None, max_examples=12, derandomize=True)
settings.load_profile("uotlib")

# Without a GPU the Triton kernels are tested under the interpreter, by test_triton_interpreter.py.
on_triton = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore = [] if on_triton else ["test_triton.py", "test_triton_features.py", "test_triton_gradients.py",
                                       "test_triton_skip.py", "test_triton_small.py", "test_triton_step.py"]

# The problems are small: a second thread would only wait, and beside other test processes it waits long.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def grad_mode() -> Iterator[None]:
    """Gradients are on in every test, and a test that finds them off afterwards has found a leak."""
    assert torch.is_grad_enabled()
    yield
    enabled = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert enabled, "the grad mode of the process was changed"


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend of the CPU; a test that uses it states something that does not depend on the backend."""
    reason = BACKENDS[request.param].why_not(torch.device("cpu"), torch.float64)
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    """The resident kernel's code, compiled for the processor."""
    from cuda_harness import built

    return built(tmp_path_factory.mktemp("harness"))
