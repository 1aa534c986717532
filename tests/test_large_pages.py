"""Large results lie in large pages where the system has enough of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from uotlib import unbalanced_sinkhorn
from uotlib._extension import extension, missing

pytestmark = pytest.mark.skipif(extension is None, reason=str(missing))

#: Blocks of 2^order pages of 4 KiB, order 0 to 10, in two zones; 9 and 10 hold large pages.
BUDDYINFO = """\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3
Node 0, zone   Normal  22411  12040   5469   5637   2432   1060    551    159     78    173   3937
"""
MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BUDDIES = Path("/proc/buddyinfo")


def test_free_large_pages_are_those_of_two_mebibytes_and_of_four() -> None:
    assert extension is not None
    assert extension.free_large_pages(BUDDYINFO) == (1 + 2 * 3) + (173 + 2 * 3937)


@pytest.mark.parametrize("text", ["", "no such file", "Node 0, zone", "Node 0, zone Normal 5 5 5"])
def test_a_system_that_says_nothing_of_them_has_none(text: str) -> None:
    assert extension is not None
    assert extension.free_large_pages(text) == 0


def large_kib(address: int) -> int:
    """KiB in large pages of the mapping that holds this address."""
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M)[1:]:
        begin, end = (int(part, 16) for part in mapping.split(" ", 1)[0].split("-"))
        if begin <= address < end:
            return int(re.search(r"AnonHugePages:\s+(\d+)", mapping)[1])  # type: ignore[index]
    raise AssertionError(f"no mapping holds {address:#x}")


def test_a_dense_gradient_lies_in_large_pages() -> None:
    if not MODE.exists() or "[madvise]" not in MODE.read_text() or not BUDDIES.exists():
        pytest.skip("needs Linux that gives large pages to those who ask (transparent_hugepage: madvise)")
    n = 3072  # 36 MiB
    needed = 4 * 4 * n * n >> 21
    assert extension is not None
    if extension.free_large_pages(BUDDIES.read_text()) < 2 * needed:
        pytest.skip(f"needs {2 * needed} free pages of 2 MiB")
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(n, n, generator=generator).requires_grad_()
    solution = unbalanced_sinkhorn(cost, reg=0.1, reg_m=1.0, backend="native")
    (gradient,) = torch.autograd.grad(solution.apply(torch.ones(n, 1)).square().sum(), cost)
    assert large_kib(gradient.data_ptr() + (4 << 20)) >= 24 << 10
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().amax()) > 0
