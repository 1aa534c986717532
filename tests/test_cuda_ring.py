"""The resident kernel's rings of rows, by each thread's copies and by bulk copies, on the processor."""

from __future__ import annotations

import ctypes
import random
import shutil

import cuda_harness as host
import pytest
import torch

pytestmark = host.needs_compiler


@pytest.mark.parametrize("m", [60, 127, 600, 2044, 2047, 3000, 4096, 4097, 8192])
def test_rows_come_through_a_ring(harness, m):
    """From memory, or where they cannot be read 16 bytes at a time: what has not come yet is NaN here."""
    row, stage = 4 * (m + -m % 4), 4 * 512 * 4 * (8 if 2048 < m <= 4096 else 4)
    for stages in (2, 3, 4):
        room = stages * stage + (stage // 2 if stages < 4 else 33 * row)
        n = 2 * (room // row) + 7
        if 1024 < m <= 4096 and m % 4 == 0:  # where registers could hold the next rows, the ring must take few places
            n += 2 * 11 * (stages + 1) * (stage // row + 1)
        cut = host.division(harness, 1, n, m, 2, (2, room, 1000))
        assert (cut["way"], cut["stages"]) == (host.RING, stages)
        assert cut["resident"] == (room - stages * stage) // row // cut["together"] * cut["together"]
        host.agrees(harness, n, m, holes=stages == 2, blocks=2, room=room, cache=1000, seed=stages, method="sinkhorn")


@pytest.mark.parametrize("m", [60, 128, 600, 2044, 3000, 4096, 4100, 8192])
def test_bulk_copies_fill_the_ring(harness, m):
    """The bits of the other ring, whatever the stages, the passes and the gaps between rows."""
    row, stage = 4 * m, 4 * 512 * 4 * (8 if 2048 < m <= 4096 else 4)
    for stages in (2, 3, 4):
        room = stages * stage + (stage // 2 if stages < 4 else 33 * row)
        n = 2 * (room // row) + 7 + (2 * 11 * (stages + 1) * (stage // row + 1) if 1024 < m <= 4096 else 0)
        cut = host.division(harness, 1, n, m, 2, (2, room, 1000), bulk=True)
        assert (cut["way"], cut["stages"], cut["bulk"]) == (host.RING, stages, 1)
        cost, a, b = host.problem(random.Random(m), n, m + 4 * (stages % 2), both_exact=False, holes=stages == 2)
        case = cost[..., :m], a, b[..., :m]
        how = {"max_iter": 3, "tol": 0.0, "method": "sinkhorn", "blocks": 2, "room": room, "cache": 1000}
        bulk, other = (host.run(harness, *case, 0.05, (0.5, 2.0), bulk=on, seed=stages + on, **how)
                       for on in (True, False))
        for one, wanted in zip(host.vectors(bulk), host.vectors(other), strict=True):
            assert torch.equal(one, wanted)


@pytest.mark.parametrize(("n", "m"), [(3, 8196), (70, 10_240), (9, 12_292), (1, 40_000)])
def test_bulk_copies_bring_panels(harness, n, m):
    """The bits of the other ring: pairs of passes over every four rows, the last panel and rows partly full."""
    stage = 4 * 512 * 16
    cost, a, b = host.problem(random.Random(m), n, m + 4 * (n % 2), both_exact=False, holes=n > 4)
    case = cost[..., :m], a, b[..., :m]
    for stages, room in ((2, 2 * stage), (3, 3 * stage + 4 * m), (4, 9 * stage + 4 * m)):
        cut = host.division(harness, 1, n, m, 2, (2, room, 1000), bulk=True)
        assert (cut["way"], cut["stages"], cut["bulk"]) == (host.PANELS, stages, 1)
        how = {"max_iter": 3, "tol": 0.0, "method": "sinkhorn", "blocks": 2, "room": room, "cache": 1000}
        bulk, other = (host.run(harness, *case, 0.05, (0.5, 2.0), bulk=on, seed=stages + on, **how)
                       for on in (True, False))
        for one, wanted in zip(host.vectors(bulk), host.vectors(other), strict=True):
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
    ("panels.h", "    if constexpr (B) block.release(t, place.stage);\n", "", -2),
    ("panels.h", "wait_full(t, place.stage, place.parity)", "wait_full(t, place.stage, place.parity ^ 1u)", -5),
    ("panels.h", "if (t == 0) shared.place = place;", "(void)t;", -2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "text", "instead", "fault"), MUTATIONS)
def test_a_broken_ring_is_noticed(tmp_path, file, text, instead, fault):
    """Each of what would hang a device, or read what has not come, is told of here."""
    shutil.copytree(host.ROOT / "csrc", tmp_path / "csrc")
    broken = tmp_path / "csrc/cuda" / file
    whole = broken.read_text()
    assert whole.count(text) == 1
    broken.write_text(whole.replace(text, instead))
    library = host.build(tmp_path, "-O0", source=tmp_path / "csrc/cuda/host_harness.cpp")
    size = (20, 8196) if file == "panels.h" else (300, 600)
    cost, a, b = host.problem(random.Random(1), *size, both_exact=False, holes=False)
    with pytest.raises(AssertionError, match=host.FAULTS[fault]):
        host.run(ctypes.CDLL(str(library)), cost, a, b, 0.05, (0.5, 2.0), max_iter=2, tol=0.0, blocks=2, bulk=True,
                 room=70_000, cache=1000, method="sinkhorn")


def test_bulk_copies_are_for_aligned_rows(harness):
    ring, panels, ahead = host.RING, host.PANELS, host.AHEAD
    for m, way, bulk in ((1000, ring, 1), (1001, ring, 0), (20_000, panels, 1), (20_001, panels, 0), (4096, ahead, 0)):
        cut = host.division(harness, 1, 5000, m, chip=(132, 100_000, 50 << 20), bulk=True)
        assert (cut["way"], cut["bulk"]) == (way, bulk)
        assert host.division(harness, 1, 5000, m, chip=(132, 100_000, 50 << 20))["bulk"] == 0
