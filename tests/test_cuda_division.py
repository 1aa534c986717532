"""How the resident kernel's planner divides a batch over a device."""

from __future__ import annotations

import pytest
from cuda_harness import H100, PANELS, division, needs_compiler

pytestmark = needs_compiler


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
