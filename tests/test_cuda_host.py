"""The resident CUDA kernel's own code, compiled for the processor: its answers, its phases, its memory.

Blocks and threads run one after the other, in an order that each run chooses, over memory that starts as NaN: what is
read before it was written, or not waited for, shows as a difference or as NaN.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import uotlib
from uotlib.options import SolverOptions
from uotlib.outcome import StoredOutcome

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/cuda/host_harness.cpp"
COMPILER = shlex.split(os.environ.get("CXX", "")) or [next(filter(shutil.which, ("c++", "g++", "clang++")), "")]
INF = math.inf
FAULTS = {-1: "the blocks did not come to the same decisions", -2: "a wait for a phase that never completes",
          -3: "a copy to a stage that is still read", -4: "an arrival too many", -5: "a read that was not waited for"}
#: Numbers of SolverOptions in the order in which the harness takes them.
OPTIONS = ("anneal_start", "anneal_factor", "anneal_violation", "anneal_accuracy", "anneal_order", "anneal_passes",
           "anderson_depth", "anderson_start", "safeguard", "backtrack", "trust_region", "check_every")

pytestmark = pytest.mark.skipif(not shutil.which(COMPILER[0]), reason="needs a C++ compiler: c++, g++, clang++ or CXX")


def build(place: Path, *flags: str, source: Path = SOURCE) -> Path:
    library = place / "resident.so"
    command = [*COMPILER, "-std=c++17", "-shared", "-fPIC", "-pthread", *flags, str(source), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Any:
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("harness"), "-O2", "-fno-math-errno", "-Wall", "-Wextra",
                             "-Werror")))


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def run(harness: Any, cost: Tensor, a: Tensor, b: Tensor, reg: float, reg_m: tuple[float, float], reg_type: str = "kl",
        method: str = "auto", max_iter: int = 500, tol: float | None = None, *, start: Tensor | None = None,
        items: Tensor | None = None, blocks: int = 4, groups: int = 1, room: int = 1 << 16, cache: int = 1 << 40,
        seed: int = 0, bulk: bool = False,
        options: SolverOptions | None = None) -> StoredOutcome:
    """Problems of a batch (B, n, m) by the kernel: so many groups of so many blocks, with ``room`` bytes each for rows.

    ``bulk``: the device has bulk copies.  A cache of fewer bytes than the cost makes rows come from memory.
    ``blocks=0``: the planner divides ``groups`` blocks.
    """
    options = options or SolverOptions()
    count, n, m = (cost.shape[0] if items is None else len(items)), *cost.shape[1:]
    a, b = (mass.double().expand(count, -1).contiguous() for mass in (a, b))
    reg64, tau_a, tau_b = (torch.full((count,), value, dtype=torch.float64) for value in (reg, *reg_m))
    known = {**vars(options), "check_every": options.looks_every(asynchronous=False)}
    numbers = torch.tensor([float(known[name]) for name in OPTIONS], dtype=torch.float64)
    out = torch.full((count * (3 * n + 3 * m + 5),), math.nan, dtype=torch.float64)
    size = ctypes.c_int64
    solve = harness.resident_solve
    solve.restype = size
    phases = solve(address(cost), size(cost.stride(0)), size(cost.stride(1)), address(items), size(count), size(n),
                   size(m), address(a), address(tau_a), address(b), address(tau_b), address(reg64), address(start),
                   address(out), int(reg_type == "entropy"), int(method == "sinkhorn"), size(max_iter),
                   ctypes.c_double(tol or 0.0), int(tol != 0), address(numbers),
                   (size * 5)(max(blocks, 1) * groups, room, cache, int(bulk), 0), size(blocks), ctypes.c_uint64(seed))
    assert phases > 0, FAULTS[int(phases)]
    return StoredOutcome(out, count, n, m, all_converged=False)


def vectors(outcome: StoredOutcome) -> list[Tensor]:
    pair = outcome.pair
    return [pair.f, pair.g, pair.log_u, pair.log_v, pair.row_lse, pair.col_lse]


def problem(rng: random.Random, n: int, m: int, both_exact: bool, holes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A cost (1, n, m) and masses; with holes, some masses are zero and some pairs forbidden."""
    draw = torch.Generator().manual_seed(rng.randrange(1 << 30))
    cost = torch.rand(1, n, m, generator=draw)
    a, b = (0.2 + torch.rand(size, generator=draw, dtype=torch.float64) for size in (n, m))
    if holes and min(n, m) > 4:
        a[3], b[1], b[m - 1] = 0, 0, 0
        cost[0, 1:, 2:][torch.rand(n - 1, m - 2, generator=draw) < 0.3] = INF
    if both_exact:
        b *= a.sum() / b.sum()
    return cost, a, b


SIZES = (1, 2, 5, 31, 32, 33, 64, 65, 127, 128, 129, 200)
PENALTIES = ((0.5, 0.5), (0.2, 3.0), (INF, 0.7), (0.4, INF), (INF, INF))


def deviation(got: Tensor, wanted: Tensor) -> float:
    """Largest difference; infinite entries must be the same."""
    same = got == wanted
    return float(torch.where(same, 0.0, (got - wanted).abs()).max())


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


def agrees(harness: Any, n: int, m: int, *, holes: bool = False, passes: int = 3, atol: float = 5e-7, **cut) -> None:
    """A few passes of one problem, which uotlib's own loop does in float64."""
    cost, a, b = problem(random.Random(n + m), n, m, both_exact=False, holes=holes)
    how = {"method": cut.pop("method", "auto"), "max_iter": passes}
    got = run(harness, cost, a, b, 0.05, (0.5, 2.0), tol=0.0, **how, **cut)
    wanted = uotlib.unbalanced_sinkhorn(cost.double(), a, b, reg=0.05, reg_m=(0.5, 2.0), tol=0, backend="native", **how)
    assert deviation(got.pair.f, wanted.f) <= atol
    assert deviation(got.pair.g, wanted.g) <= atol


@pytest.mark.parametrize(("n", "m"), [(5, 2047), (6, 2048), (5, 2049), (9, 4096), (9, 4100), (4, 8191), (3, 8192)])
def test_every_width_of_a_thread(harness, n, m):
    agrees(harness, n, m, blocks=2, room=2 * 4 * m, seed=4)


@pytest.mark.parametrize("m", [1, 127, 128, 129, 256, 257, 512, 513, 1024, 1025])
def test_narrow_rows_share_a_block(harness, m):
    """From one team of warps to sixteen, with rows of other teams left over."""
    for n, blocks in ((1, 1), (67, 1), (130, 3)):
        agrees(harness, n, m, holes=m > 2 and n > 4, blocks=blocks, room=40 * 4 * m, seed=3)


def division(harness: Any, count: int, n: int, m: int, blocks: int = 0,
             chip: tuple[int, int, int] | None = None, bulk: bool = False,
             clusters: int = 0) -> dict[str, int]:
    """How a batch is divided on a device: by default the H100, of which so many blocks fit clusters of any size."""
    out = (ctypes.c_int64 * 9)()
    size = ctypes.c_int64
    harness.resident_division(size(count), size(n), size(m), (size * 5)(*(chip or H100), int(bulk), clusters),
                              size(blocks), out)
    names = ("groups", "blocks", "way", "resident", "stages", "together", "used", "bulk", "cluster")
    return dict(zip(names, out, strict=True))


#: Multiprocessors, bytes of shared memory for rows, bytes of cache.
H100 = (132, 200_000, 50 << 20)
AHEAD, RING, PANELS = range(3)


@pytest.mark.parametrize("m", [60, 127, 600, 2044, 2047, 3000, 4096, 4097, 8192])
def test_rows_come_through_a_ring(harness, m):
    """From memory, or where they cannot be read 16 bytes at a time: what has not come yet is NaN here."""
    row, stage = 4 * (m + -m % 4), 4 * 512 * 4 * (8 if 2048 < m <= 4096 else 4)
    for stages in (2, 3, 4):
        room = stages * stage + (stage // 2 if stages < 4 else 33 * row)
        n = 2 * (room // row) + 7
        if 1024 < m <= 4096 and m % 4 == 0:  # where registers could hold the next rows, the ring must take few places
            n += 2 * 11 * (stages + 1) * (stage // row + 1)
        cut = division(harness, 1, n, m, 2, (2, room, 1000))
        assert (cut["way"], cut["stages"]) == (RING, stages)
        assert cut["resident"] == (room - stages * stage) // row // cut["together"] * cut["together"]
        agrees(harness, n, m, holes=stages == 2, blocks=2, room=room, cache=1000, seed=stages, method="sinkhorn")


@pytest.mark.parametrize("m", [60, 128, 600, 2044, 3000, 4096, 4100, 8192])
def test_bulk_copies_fill_the_ring(harness, m):
    """The bits of the other ring, whatever the stages, the passes and the gaps between rows."""
    row, stage = 4 * m, 4 * 512 * 4 * (8 if 2048 < m <= 4096 else 4)
    for stages in (2, 3, 4):
        room = stages * stage + (stage // 2 if stages < 4 else 33 * row)
        n = 2 * (room // row) + 7 + (2 * 11 * (stages + 1) * (stage // row + 1) if 1024 < m <= 4096 else 0)
        cut = division(harness, 1, n, m, 2, (2, room, 1000), bulk=True)
        assert (cut["way"], cut["stages"], cut["bulk"]) == (RING, stages, 1)
        cost, a, b = problem(random.Random(m), n, m + 4 * (stages % 2), both_exact=False, holes=stages == 2)
        case = cost[..., :m], a, b[..., :m]
        how = {"max_iter": 3, "tol": 0.0, "method": "sinkhorn", "blocks": 2, "room": room, "cache": 1000}
        bulk, other = (run(harness, *case, 0.05, (0.5, 2.0), bulk=on, seed=stages + on, **how) for on in (True, False))
        for one, wanted in zip(vectors(bulk), vectors(other), strict=True):
            assert torch.equal(one, wanted)


#: What the ring of bulk copies needs, what stands there instead, and the fault that it is.
MUTATIONS = [
    ("ring.h", "  block.wait_empty(at.stage, at.parity ^ 1u);\n", "", -3),
    ("ring.h", "wait_empty(at.stage, at.parity ^ 1u)", "wait_empty(at.stage, at.parity)", -2),
    ("ring.h", "expect(at.stage, bytes)", "expect(at.stage, bytes + 16)", -2),
    ("ring.h", "expect(at.stage, bytes)", "expect(at.stage, row_bytes)", -2),
    ("ring.h", "Place{at.stage - 1, at.parity ^ 1u}", "Place{at.stage - 1, at.parity}", -2),
    ("rows.h", "wait_full(t, place.stage, place.parity)", "wait_full(t, place.stage, place.parity ^ 1u)", -5),
    ("rows.h", "            block.wait_full(t, place.stage, place.parity);\n", "", -5),
    ("rows.h", "            block.release(t, place.stage);\n", "", -2),
    ("rows.h", "block.release(t, place.stage);", "block.release(t, place.stage), block.release(t, place.stage);", -4),
    ("rows.h", "if (t == 0) shared.place = place;", "(void)t;", -2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "text", "instead", "fault"), MUTATIONS)
def test_a_broken_ring_is_noticed(tmp_path, file, text, instead, fault):
    """Each of what would hang a device, or read what has not come, is told of here."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    broken = tmp_path / "csrc/cuda" / file
    whole = broken.read_text()
    assert whole.count(text) == 1
    broken.write_text(whole.replace(text, instead))
    library = build(tmp_path, "-O0", source=tmp_path / "csrc/cuda/host_harness.cpp")
    cost, a, b = problem(random.Random(1), 300, 600, both_exact=False, holes=False)
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        run(ctypes.CDLL(str(library)), cost, a, b, 0.05, (0.5, 2.0), max_iter=2, tol=0.0, blocks=2, bulk=True,
            room=70_000, cache=1000, method="sinkhorn")


def test_bulk_copies_are_for_aligned_rows(harness):
    for m, way, bulk in ((1000, RING, 1), (1001, RING, 0), (20_000, PANELS, 0), (4096, AHEAD, 0)):
        cut = division(harness, 1, 5000, m, chip=(132, 100_000, 50 << 20), bulk=True)
        assert (cut["way"], cut["bulk"]) == (way, bulk)
        assert division(harness, 1, 5000, m, chip=(132, 100_000, 50 << 20))["bulk"] == 0


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


@pytest.mark.parametrize(("count", "n", "m", "groups", "blocks"), [
    (1, 4096, 4096, 1, (128, 132)), (1, 2048, 2048, 1, (64, 132)), (8, 4096, 4096, 1, (128, 132)),
    (64, 512, 512, (32, 66), (2, 4)),
    (1000, 200, 200, 132, 1), (1000, 100, 100, 132, 1), (132, 200, 200, 132, 1), (40, 128, 128, 40, (1, 3)),
    (3, 1, 1, 3, 1), (1, 30_000, 8192, 1, 132), (1, 20_000, 20_000, 1, 132), (1 << 40, 5, 7, 132, 1)])
def test_how_a_batch_is_divided(harness, count, n, m, groups, blocks):
    """Many small problems beside each other, a large one on all of the device, and none beyond its memory."""
    cut = division(harness, count, n, m)
    for got, least_most in ((cut["groups"], groups), (cut["blocks"], blocks)):
        least, most = least_most if isinstance(least_most, tuple) else (least_most, least_most)
        assert least <= got <= most, cut
    assert cut["groups"] * cut["blocks"] <= H100[0]
    assert cut["used"] <= H100[1]


def test_medium_groups_are_clusters(harness):
    """Where the device has them, and enough: else groups meet in global memory, as large ones and blocks alone do."""
    for count, n, clusters, expected in ((64, 512, 128, 1), (64, 512, 0, 0), (64, 512, 8, 0), (1, 4096, 128, 0),
                                         (1000, 100, 128, 0)):
        cut = division(harness, count, n, n, clusters=clusters)
        assert cut["cluster"] == expected, cut
        assert not cut["cluster"] or (2 <= cut["blocks"] <= 8 and cut["groups"] * cut["blocks"] <= clusters), cut


@pytest.mark.parametrize("chip", [(108, 138_000, 40 << 20), H100, (148, 200_000, 126 << 20), (170, 74_000, 96 << 20)])
def test_every_division_fits_its_device(harness, chip):
    """For costs around every limit of the layout, in groups of one block, some, and the planner's choice."""
    for n in (1, 63, 64, 65, 200, 511, 4096, 100_000):
        for m in (1, 128, 129, 1024, 1028, 2048, 2052, 4096, 4100, 8192, 8196, 60_000, 1 << 20):
            for count in (1, 5, 300):
                for blocks in (0, 1, 7, chip[0]):
                    cut = division(harness, count, n, m, blocks, chip)
                    assert 1 <= cut["groups"] * cut["blocks"] <= chip[0]
                    assert 0 <= cut["used"] <= chip[1]
                    assert cut["groups"] <= count
                    assert cut["stages"] in (0, 2, 3, 4)
                    share = -(-n // cut["blocks"])
                    assert cut["resident"] <= share
                    if cut["way"] != PANELS and 4 * (m + -m % 4) * share <= chip[1]:
                        assert cut["resident"] == share
                    far = cut["way"] != PANELS and 4 * m * n * cut["groups"] > 4 * (chip[2] + chip[0] * chip[1])
                    if far and chip[1] > 140_000:
                        assert cut["stages"] > 0, "costs beyond the cache come through the ring"


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
from test_cuda_host import INF, problem, run
harness = ctypes.CDLL({library!r})
rng = random.Random(11)
for n, m, blocks, room, method in ((1, 1, 1, 0, "auto"), (33, 129, 5, 9000, "auto"), (3, 2049, 2, 9000, "auto"),
                                   (2, 5000, 1, 0, "sinkhorn"), (131, 64, 2, 2000, "auto"), (150, 64, 1, 70000, "auto"),
                                   (30, 2047, 1, 150000, "auto"), (5, 8197, 2, 70000, "sinkhorn"),
                                   (2, 8192, 1, 70000, "sinkhorn"), (2, 20001, 1, 160000, "sinkhorn")):
    cost, a, b = problem(rng, n, m, False, True)
    cut = {{"blocks": blocks, "room": room, "cache": 0, "seed": 5}}
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
