"""What a step should take is counted on tensors that are not there, and is what it takes on those that are."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from unite_networks import small

from examples.unite import estimate
from examples.unite.discriminator import Discriminator
from examples.unite.model import Unite


@pytest.mark.slow
def test_a_step_is_counted_without_being_made(monkeypatch):
    config = small(norm="spade", attention=False, discriminator_attention=False, discriminators=1)
    config = config.replace("train", batch=2).replace("match", passes=4)
    network = estimate.PerceptualNetwork([[(torch.zeros(8, before if first else 8, 3, 3), torch.zeros(8))
                                           for first in (True, False)] for before in (3, 8, 8, 8, 8)], "", caffe=False)
    monkeypatch.setattr(estimate, "vgg", lambda: network)
    found = estimate.count(config)
    model, judge, kept = Unite(config.model, config.match), Discriminator(config.model), estimate.Kept()
    with kept.counted(), FlopCounterMode(display=False) as flops:
        estimate.step(config, model, judge, network)
    assert found.kept == pytest.approx(kept.bytes, rel=1e-2)  # what is real may be padded
    assert (found.model, found.discriminator) == tuple(
        sum(parameter.numel() for parameter in module.parameters()) for module in (model, judge))
    assert found.flops == flops.get_total_flops()


def test_the_judge_is_of_vggs_size():
    judge = 20_024_384 - 2 * (512 * 512 * 9 + 512)  # VGG-19's convolutions, without the last two
    assert sum(parameter.numel() for parameter in estimate.vgg().parameters()) == judge


def test_a_table_by_gpus(monkeypatch, capsys):
    monkeypatch.setattr(estimate, "count", lambda config: estimate.Step(
        10**9 - 10**7, 10**7, 0, 18 * 10**12, 2 * 10**12, 3 * 2**30))
    assert estimate.main(["--set", "train.batch=2", "--gpus", "1", "4", "--tflops", "10", "--link", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "batch 2 in each process" in lines[0]
    assert "20.0 TFLOP, 10.0 % of them matching" in lines[3]
    # 20 TFLOP at 10 a second; each of four sends and takes 3/4 of 4 GB twice.
    assert [line.split() for line in lines[-2:]] == [["1", "2", "2.000", "0.000", "1.0"],
                                                     ["4", "8", "3.000", "1.000", "2.7"]]
