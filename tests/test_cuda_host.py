"""The resident CUDA kernel's own code, compiled for the processor: its answers, its phases, its memory.

Blocks and threads run one after the other, in an order that each run chooses, over memory that starts as NaN: what is
read before it was written, or not waited for, shows as a difference or as NaN.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_harness import (
    COMPILER,
    INF,
    PANELS,
    ROOT,
    agrees,
    build,
    deviation,
    division,
    needs_compiler,
    problem,
    run,
    vectors,
)

import uotlib
from uotlib.options import SolverOptions

pytestmark = needs_compiler

SIZES = (1, 2, 5, 31, 32, 33, 64, 65, 127, 128, 129, 200)
PENALTIES = ((0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF), (INF, INF))


@pytest.mark.parametrize("chapter", range(4))
def test_fixed_numbers_of_passes_agree_with_float64(harness, chapter):
    """After the same passes the potentials differ by a few roundings of float32, whatever the cut of the problem."""
    rng = random.Random(chapter)
    for _ in range(60):
        n, m, penalties = rng.choice(SIZES), rng.choice(SIZES), rng.choice(PENALTIES)
        exact = penalties == (INF, INF)
        holes = not exact and rng.random() < 0.3
        cost, a, b = problem(rng, n, m, exact, holes)
        reg, kind = rng.choice((1.0, 0.1, 0.02)), rng.choice(("kl", "entropy"))
        method, passes = rng.choice((("sinkhorn", 6), ("auto", 3)))
        cut = {"blocks": rng.choice((1, 2, 3, 8, 40)), "room": rng.choice((0, 2000, 9000, 1 << 17)),
               "seed": rng.randrange(9)}
        got = run(harness, cost, a, b, reg, penalties, kind, method, passes, 0.0, **cut)
        wanted = uotlib.unbalanced_sinkhorn(cost.double(), a, b, reg=reg, reg_m=penalties, reg_type=kind,
                                            method=method, max_iter=passes, tol=0, backend="native")
        said = f"{n} x {m}, reg {reg}, reg_m {penalties}, {kind}, {method}, holes {holes}, {cut}"
        assert deviation(got.pair.f, wanted.f) <= 1e-5 * reg, said
        assert deviation(got.pair.g, wanted.g) <= 1e-5 * reg, said
        assert int(got.n_iter) == int(wanted.n_iter) == passes, said
        torch.testing.assert_close(got.violation, wanted.violation, rtol=1e-4, atol=1e-5, msg=said)
        torch.testing.assert_close(got.gap, wanted.gap, rtol=1e-3, atol=1e-5, msg=said)
        torch.testing.assert_close(got.pair.row_mass, wanted.row_mass.double(), rtol=1e-4, atol=1e-7, msg=said)
        torch.testing.assert_close(got.pair.col_mass, wanted.col_mass.double(), rtol=1e-4, atol=1e-7, msg=said)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("reg", [0.1, 3e-3])
def test_the_stop_rule_is_met_in_as_many_passes(harness, penalties, reg):
    """Annealing, translation and acceleration take the road of the other backends, and certify what they find."""
    cost, a, b = problem(random.Random(7), 70, 90, penalties == (INF, INF), holes=False)
    for method in ("auto", "sinkhorn"):
        got = run(harness, cost, a, b, reg, penalties, method=method, max_iter=3000, tol=1e-3)
        wanted = uotlib.unbalanced_sinkhorn(cost, a, b, reg=reg, reg_m=penalties, method=method, max_iter=3000,
                                            tol=1e-3, backend="native")
        assert bool(got.converged) == bool(wanted.converged)
        assert float(got.violation) <= 1e-3 or not bool(wanted.converged)
        assert abs(int(got.n_iter) - int(wanted.n_iter)) <= 2 + int(wanted.n_iter) // 8
        found = uotlib.unbalanced_sinkhorn(cost.double(), a, b, reg=reg, reg_m=penalties, max_iter=3000, tol=1e-7,
                                           backend="native")
        row_mass = found.row_mass.double()
        assert float((got.pair.row_mass - row_mass).abs().sum() / row_mass.sum()) <= 2e-2 * max(1, 0.1 / reg)


def test_the_order_of_blocks_and_threads_changes_no_bit(harness):
    """What blocks hand to each other passes a barrier first; so does what threads do."""
    rng = random.Random(3)
    for n, m, blocks, room, method, reach in ((90, 70, 4, 6000, "auto", 10.0), (33, 130, 6, 6000, "auto", 0.02),
                                              (40, 70, 3, 6000, "sinkhorn", 10.0), (190, 200, 1, 80_000, "auto", 10.0)):
        cost, a, b = problem(rng, n, m, both_exact=False, holes=True)
        runs = [run(harness, cost, a, b, 0.01, (0.4, INF), "entropy", method, 300, 1e-4, blocks=blocks, room=room,
                    seed=seed, options=SolverOptions(trust_region=reach)) for seed in (0, 1, 5, 6)]
        for other in runs[1:]:
            for first, again in zip(vectors(runs[0]), vectors(other), strict=True):
                assert torch.equal(first, again)
            assert torch.equal(runs[0].violation, other.violation)
            assert torch.equal(runs[0].n_iter, other.n_iter)


@pytest.mark.parametrize("options", [SolverOptions(trust_region=0.05), SolverOptions(anderson_depth=2),
                                     SolverOptions(anderson_depth=0, anneal_order=0), SolverOptions(safeguard=1.0)])
def test_every_setting_of_the_loop(harness, options):
    """The trust region, a short history, none, steps back: the same passes as the other backends' loop."""
    cost, a, b = problem(random.Random(2), 60, 80, both_exact=False, holes=True)
    got = run(harness, cost, a, b, 0.02, (0.5, 1.0), max_iter=14, tol=0.0, options=options, blocks=6, seed=3)
    wanted = uotlib.unbalanced_sinkhorn(cost.double(), a, b, reg=0.02, reg_m=(0.5, 1.0), max_iter=14, tol=0,
                                        options=options, backend="native")
    assert deviation(got.pair.f, wanted.f) <= 2e-6
    assert deviation(got.pair.g, wanted.g) <= 2e-6


@pytest.mark.parametrize(("n", "m"), [(5, 2047), (6, 2048), (5, 2049), (9, 4096), (9, 4100), (4, 8191), (3, 8192)])
def test_every_width_of_a_thread(harness, n, m):
    agrees(harness, n, m, blocks=2, room=2 * 4 * m, seed=4)


@pytest.mark.parametrize("m", [1, 127, 128, 129, 256, 257, 512, 513, 1024, 1025])
def test_narrow_rows_share_a_block(harness, m):
    """From one team of warps to sixteen, with rows of other teams left over."""
    for n, blocks in ((1, 1), (67, 1), (130, 3)):
        agrees(harness, n, m, holes=m > 2 and n > 4, blocks=blocks, room=40 * 4 * m, seed=3)


@pytest.mark.parametrize(("n", "m"), [(3, 8193), (70, 8196), (9, 12_289), (2, 16_384), (5, 16_387), (1, 40_000)])
def test_wide_rows_go_panel_by_panel(harness, n, m):
    """Whatever of the columns' sums and of the ring there is room for."""
    row, stage = 4 * (m + -m % 4), 4 * 512 * 16
    for room, stages in ((0, 0), (3 * stage, 3), (2 * stage + row, 2), (9 * stage + row, 4)):
        cut = division(harness, 1, n, m, 2, (2, room, 1000))
        assert (cut["way"], cut["stages"]) == (PANELS, stages)
        assert cut["used"] == stages * stage + (row if room >= 2 * stage + row else 0) <= room
        agrees(harness, n, m, holes=n > 4, blocks=2, room=room, seed=2, method="sinkhorn" if m > 9000 else "auto")


def test_a_solve_of_wide_rows_converges(harness):
    """Through rows whose anchors were wrong, and columns that underflow."""
    cost, a, b = problem(random.Random(1), 20, 8200, both_exact=False, holes=True)
    runs = [run(harness, cost, a, b, 5e-3, (0.5, INF), tol=1e-4, blocks=3, room=room, seed=seed, max_iter=300)
            for room, seed in ((70_000, 0), (70_000, 5), (0, 1), (200_000, 4))]
    wanted = uotlib.unbalanced_sinkhorn(cost, a, b, reg=5e-3, reg_m=(0.5, INF), tol=1e-4, backend="native")
    assert bool(wanted.converged)
    assert abs(int(runs[0].n_iter) - int(wanted.n_iter)) <= 2
    for other in runs:
        assert bool(other.converged)
        for first, again in zip(vectors(runs[0]), vectors(other), strict=True):
            assert torch.equal(first, again)


def test_outliers_keep_their_potentials(harness):
    """At eps 1e-4 outlying columns carry less mass than float32 can hold; their potentials are finite and matter."""
    draw = torch.Generator().manual_seed(1)
    x, z = torch.rand(60, 2, generator=draw), torch.rand(80, 2, generator=draw)
    z[60:] += 3
    cost = torch.cdist(x.double(), z.double()).square().float()[None]
    a, b = torch.full((60,), 1 / 60, dtype=torch.float64), torch.full((80,), 1 / 80, dtype=torch.float64)
    for method, passes, tol in (("sinkhorn", 40, 0.0), ("auto", 3000, 1e-4)):
        got = run(harness, cost, a, b, 1e-4, (0.01, 0.01), method=method, max_iter=passes, tol=tol, blocks=6, seed=2)
        wanted = uotlib.unbalanced_sinkhorn(cost.double(), a, b, reg=1e-4, reg_m=0.01, method=method, max_iter=passes,
                                            tol=min(tol, 1e-9), backend="native")
        assert deviation(got.pair.f, wanted.f) <= 1e-5
        assert deviation(got.pair.g, wanted.g) <= 1e-5


@pytest.mark.parametrize(("blocks", "groups"), [(5, 1), (2, 3), (1, 4), (1, 9)])
def test_batches_start_points_and_strides(harness, blocks, groups):
    """A queue of problems in one launch: each gets the answer that it gets alone, from where it is told to start."""
    draw = torch.Generator().manual_seed(5)
    padded = torch.rand(3, 41, 60, generator=draw)
    cost = padded[:, :, 3:54]  # unaligned rows, gaps between them
    a, b = torch.rand(41, generator=draw) + 0.1, torch.rand(51, generator=draw) + 0.1
    items = torch.tensor([2, 0, 2, 1, 1, 0, 2, 0])
    start = 0.1 * torch.randn(len(items), 51, generator=draw, dtype=torch.float64)
    together = run(harness, cost, a, b, 0.02, (0.3, 1.0), tol=1e-5, items=items, start=start, blocks=blocks,
                   groups=groups, seed=3)
    for k, item in enumerate(items.tolist()):
        alone = run(harness, cost[item : item + 1], a, b, 0.02, (0.3, 1.0), tol=1e-5, start=start[k : k + 1].clone(),
                    blocks=blocks)
        for one, many in zip(vectors(alone), vectors(together), strict=True):
            assert torch.equal(one[0], many[k])
        wanted = uotlib.unbalanced_sinkhorn(cost[item].double(), a, b, reg=0.02, reg_m=(0.3, 1.0), tol=1e-9)
        assert deviation(together.pair.g[k], wanted.g) <= 1e-5
        assert bool(together.converged[k])


def test_the_planner_divides_a_batch(harness):
    """As resident.cu launches it: problems of many lengths beside each other, whoever is free takes the next."""
    draw = torch.Generator().manual_seed(4)
    cost = torch.rand(23, 90, 77, generator=draw) * torch.linspace(0.1, 9, 23)[:, None, None]
    mass_a, mass_b = torch.full((90,), 1 / 90), torch.full((77,), 1 / 77)
    assert division(harness, 23, 90, 77, chip=(6, 40_000, 1 << 20))["groups"] == 6
    first, again = (run(harness, cost, mass_a, mass_b, 0.02, (0.5, 2.0), tol=1e-4, blocks=0, groups=6, room=40_000,
                        cache=1 << 20, seed=seed) for seed in (0, 6))
    assert bool(first.converged.all())
    assert len(first.n_iter.unique()) > 3
    for one, other in zip(vectors(first), vectors(again), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::uotlib.ConvergenceWarning")
@pytest.mark.parametrize(("tau", "expected"), [(0.5, True), (INF, False)])
def test_columns_that_nothing_reaches(harness, tau, expected):
    """They take no part; where their mass must be met, the solve does not claim that it was."""
    cost = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
    cost[0, :, 4] = INF
    a, b = torch.full((20,), 0.05), torch.full((30,), 1 / 30)
    got = run(harness, cost, a, b, 0.1, (0.5, tau), max_iter=60, tol=1e-5)
    wanted = uotlib.unbalanced_sinkhorn(cost[0], a, b, reg=0.1, reg_m=(0.5, tau), max_iter=60, tol=1e-5,
                                        backend="native")
    assert bool(got.converged) is bool(wanted.converged) is expected
    torch.testing.assert_close(got.pair.g[0], wanted.g.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.violation[0], wanted.violation.double(), rtol=1e-3, atol=1e-5)


def test_a_nan_is_never_certified(harness):
    cost = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
    cost[0, 3, 4] = math.nan
    got = run(harness, cost, torch.full((20,), 0.05), torch.full((30,), 1 / 30), 0.1, (0.5, 0.5), max_iter=60)
    assert not bool(got.converged)
    assert bool(got.pair.f.isnan().any())


@pytest.mark.slow
def test_passes_of_the_largest_size(harness):
    """4096 x 4096 as 132 blocks with 12 resident rows each would cut it."""
    draw = torch.Generator().manual_seed(2)
    cost = torch.rand(1, 4096, 4096, generator=draw)
    mass = torch.full((4096,), 1 / 4096, dtype=torch.float64)
    got = run(harness, cost, mass, mass, 0.01, (1.0, 1.0), method="sinkhorn", max_iter=2, tol=0.0, blocks=132,
              room=204_000, seed=8)
    wanted = uotlib.unbalanced_sinkhorn(cost, mass, mass, reg=0.01, reg_m=1.0, method="sinkhorn", max_iter=2, tol=0,
                                        backend="native")
    assert deviation(got.pair.f, wanted.f.double()) <= 2e-7
    assert deviation(got.pair.g, wanted.g.double()) <= 2e-7


SANITIZED = """
import random, sys
import ctypes, torch
sys.path.insert(0, {tests!r})
from cuda_harness import INF, problem, run
harness = ctypes.CDLL({library!r})
rng = random.Random(11)
for n, m, blocks, room, method in ((1, 1, 1, 0, "auto"), (33, 129, 5, 9000, "auto"), (3, 2049, 2, 9000, "auto"),
                                   (2, 5000, 1, 0, "sinkhorn"), (131, 64, 2, 2000, "auto"), (150, 64, 1, 70000, "auto"),
                                   (30, 2047, 1, 150000, "auto"), (5, 8197, 2, 70000, "sinkhorn"),
                                   (2, 8192, 1, 70000, "sinkhorn"), (2, 20001, 1, 160000, "sinkhorn"),
                                   (5, 12292, 1, 70000, "sinkhorn")):
    cost, a, b = problem(rng, n, m, False, True)
    cut = {{"blocks": blocks, "room": room, "cache": 0, "seed": 5, "bulk": m % 4 == 0}}
    run(harness, cost, a, b, 0.02, (0.5, INF), "entropy", method, 40 if m < 2000 else 3, 1e-4, **cut)
cost, a, b = (torch.rand(9, *shape) for shape in ((20, 30), (20,), (30,)))
run(harness, cost, a, b, 0.02, (0.5, INF), max_iter=40, blocks=2, groups=3, seed=5)
"""


@pytest.mark.slow
def test_memory_and_arithmetic_are_clean(tmp_path):
    """Under the sanitizers of addresses and undefined behaviour; workspace and shared memory have their exact size."""
    # Before everything else: the sanitizer, and the C++ library whose exceptions it passes on.
    runtime = [subprocess.run([*COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
               for name in ("libasan.so", "libstdc++.so")]
    if not all(Path(name).is_absolute() for name in runtime):
        pytest.skip(f"{COMPILER[0]} has no libasan.so")
    library = build(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    script = SANITIZED.format(tests=str(ROOT / "tests"), library=str(library))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0"})
    assert done.returncode == 0, done.stderr[-4000:]
