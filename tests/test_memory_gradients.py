"""Memory that gradients take beside the cost, as the system counts it, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from uotlib._extension import extension, missing

pytestmark = [pytest.mark.skipif(extension is None, reason=str(missing)),
              pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which can reset a process's peak")]

N = 4096
#: Peak resident bytes from `watch()` to `extra()`; what the allocator has kept of the warm-up is given back first.
COUNTING = f"""
    import ctypes, re
    from pathlib import Path
    import torch, uotlib

    N = {N}
    torch.set_num_threads(1)

    def status(field):
        return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

    def watch():
        global before
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")

    def extra():
        return (status("VmHWM") - before) / (4 * N * N)
"""


def measured(code: str) -> float:
    """What the code prints: bytes over those of a cost of N x N in float32."""
    command = [sys.executable, "-c", textwrap.dedent(COUNTING) + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    if "clear_refs" in done.stderr:
        pytest.skip("needs a system that lets a process reset its peak of resident memory")
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_adjoint_solve_takes_vectors_only():
    """No block of the plan: three column sums of 32 slabs, of the elimination, are 2.3 % of the cost."""
    share = measured("""
        from uotlib.gradients import potentials
        solve_adjoint = potentials.solve_adjoint

        def watched(*arguments):
            watch()
            answer = solve_adjoint(*arguments)
            print(extra())
            return answer

        cost = torch.rand(N, N)
        for size in (300, N):
            part, a = cost[:size, :size], torch.full((size,), 1 / size, requires_grad=True)
            if size == N:
                potentials.solve_adjoint = watched
            solution = uotlib.unbalanced_sinkhorn(part, a, a.detach(), reg=0.05, reg_m=1.0, tol=1e-3, backend="native")
            solution.f.sin().sum().backward()
    """)
    assert 0 < share < 0.045


def test_forward_and_backward_take_the_cost_once():
    """Features in, barycentric projection out: the cost, and a tenth for features, their gradients and vectors.

    From run to run, the allocator keeps a hundredth more or less.
    """
    share = measured("""
        draw = torch.Generator().manual_seed(0)

        def run(size):
            x, z = (torch.randn(size, 64, generator=draw).requires_grad_() for _ in range(2))
            v = torch.randn(size, 3, generator=draw)
            if size == N:
                watch()
            solution = uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), reg=0.05, reg_m=1.0, tol=1e-4,
                                                  backend="native")
            solution.barycentric(v).square().sum().backward()

        run(300)
        run(N)
        print(extra())
    """)
    assert 0.9 < share <= 1.11
