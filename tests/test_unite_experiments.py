"""UNITE's experiments: what they compare with is what it says, and their programs run."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from examples.unite import share, toy
from examples.unite.config import MatchConfig, ModelConfig, preset
from examples.unite.dense import GeomLossMatcher, LogSumExpMatcher
from examples.unite.matching import Matcher

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


def maps(seed: int) -> torch.Tensor:
    random = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return functional.normalize(random + 0.5, dim=1)


@pytest.mark.parametrize("match", [{}, {"masses": "softmax"}, {"matcher": "ot"}])
def test_log_sum_exp_and_the_library_agree(match):
    # At convergence a dense iteration under autograd has the implicit gradient.
    config = MatchConfig(eta_train=0.1, passes=150, **match)
    values = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = []
    for kind in (Matcher, LogSumExpMatcher):
        torch.manual_seed(0)
        x, z = (functional.normalize(maps(seed), dim=1).requires_grad_() for seed in (1, 2))
        # The library divides by the length, which the dense one takes to be 1: compare along the sphere.
        unit = [functional.normalize(side, dim=1) for side in (x, z)]
        made = kind(ModelConfig(descriptor_dim=6, base=1, mask="none", coordinates=True), config).double()
        plan = made.plan(*unit, [torch.cat([side, side[:, :1]], 1) for side in unit])  # shared features of 7 channels
        there = plan.warp_all([values[:, :2], values[:, 2:]])
        back = plan.warp_back(torch.cat(there, 1))
        loss = sum(part.square().sum() for part in there) + back.sin().sum() + plan.kept.sum() + plan.kept_back.sum()
        found.append([*torch.autograd.grad(loss, (x, z)), *there, back, plan.kept, plan.kept_back, plan.a, plan.b])
    for place, (one, other) in enumerate(zip(*found, strict=True)):
        error = 1e-4 if place < 2 else 1e-8  # the adjoint is solved to 1e-6 of its right-hand side
        assert torch.allclose(one, other, rtol=0, atol=error * float(other.detach().abs().max()))


@pytest.mark.parametrize("kind", [LogSumExpMatcher, GeomLossMatcher])
def test_a_dense_matcher_stands_in_the_place_of_the_librarys(kind):
    if kind is GeomLossMatcher:
        pytest.importorskip("geomloss", reason="needs geomloss: the extra test")
    match = MatchConfig(matcher="ot" if kind is GeomLossMatcher else "uot", passes=5)
    made = kind(ModelConfig(descriptor_dim=6, levels=("rgb",)), match)
    x, z = (maps(seed).float()[..., :3].requires_grad_() for seed in (1, 2))
    carried = made(x, z, torch.rand(2, 3, 12, 12), {}, torch.rand(2, 4, 12, 12))
    assert carried.warped.shape == (2, 3, 12, 12)
    assert carried.violation is None
    carried.cycle.sum().backward()
    assert float(x.grad.norm()) > 0


def test_geomloss_finds_a_permutation():
    pytest.importorskip("geomloss", reason="needs geomloss: the extra test")
    z = torch.eye(12, dtype=torch.float64).reshape(1, 12, 3, 4)
    made = GeomLossMatcher(ModelConfig(descriptor_dim=12), MatchConfig(matcher="ot")).double()
    plan = made.plan(z.roll(1, 2), z)
    values = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    assert torch.allclose(plan.warp(values), values.roll(1, 2), atol=1e-3)
    assert torch.allclose(plan.warp_back(values.roll(1, 2)), values, atol=1e-3)


@pytest.mark.slow
def test_a_cut_step_has_the_gradients_of_a_whole_one():
    config = preset("tiny").replace("model", base=4, hidden=8, descriptor_dim=8)
    step = share.Step(config, "native", "cpu", batch=2)
    whole = copy.deepcopy(step)
    spent = step()
    assert set(spent) == set(share.STAGES)
    assert 0 < share.matching_share(spent) < 1
    batch = whole.batch
    output = whole.unite(batch.condition, batch.exemplar, batch.exemplar_condition, batch.image)
    fake = whole.discriminator(batch.condition, output.image)
    with torch.no_grad():
        real = whole.discriminator(batch.condition, batch.image)
    sum(whole.losses.generator(output, batch, fake, real).values()).backward()
    compared = 0
    for cut, uncut in zip(step.unite.parameters(), whole.unite.parameters(), strict=True):
        assert (cut.grad is None) == (uncut.grad is None)
        if cut.grad is not None:
            assert torch.allclose(cut.grad, uncut.grad, rtol=1e-3, atol=1e-4 * float(uncut.grad.abs().max()) + 1e-7)
            compared += 1
    assert compared > 50


@pytest.mark.slow
def test_share_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(share, "methods", lambda device: {"native": (Matcher, "native")})  # a process each
    assert share.main(["--presets", "--side", "8", "--passes", "2", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "share.json").read_text())
    (row,) = found["memory"]
    assert row["method"] == "native"
    assert row["seconds"] > 0
    assert f"{row['seconds']:.2f}" in printed


def test_the_passes_that_are_asked_for_reach_the_steps(tmp_path, capsys, monkeypatch):
    asked = []

    def measured(config, method, device, batch, repeats):
        asked.append((config.preset, config.match.passes))
        return dict.fromkeys(share.STAGES, 1.0)

    monkeypatch.setattr(share, "measure", measured)
    monkeypatch.setattr(share, "methods", lambda device: {"native": (Matcher, "native")})
    words = ["--presets", "tiny", "paper_literal", "--side", "0", "--device", "cpu", "--out", str(tmp_path)]
    assert share.main([*words, "--passes", "7"]) == 0
    assert "7 passes, eta 0.025" in capsys.readouterr().out
    assert [row["passes"] for row in json.loads((tmp_path / "share.json").read_text())["steps"]] == [7, 7]
    assert share.main(words) == 0
    assert asked == [("tiny", 7), ("paper_literal", 7),
                     *((name, preset(name).match.passes) for name in ("tiny", "paper_literal"))]


@pytest.mark.parametrize("there", [True, False])
def test_geomloss_is_there_or_said_to_be_missing(there, tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: there or None if name == "geomloss" else find(name))
    assert (share.GEOMLOSS in share.methods("cpu")) == there
    assert share.main(["--presets", "--side", "0", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert ("the package geomloss is not installed" in capsys.readouterr().out) != there


def test_the_extra_has_what_the_programs_import():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    named = {re.match(r"[\w-]+", wanted)[0] for wanted in project["optional-dependencies"]["unite"]}
    assert {"accelerate", "tensorboard", "tqdm", "safetensors", "pillow", "scikit-image", "matplotlib"} <= named


def test_methods_of_this_machine():
    assert list(share.methods("cpu"))[:2] == ["native", "torch log-sum-exp"]
    assert list(share.methods("cuda"))[:3] == ["triton", "cuda", "torch log-sum-exp"]


def test_what_would_not_fit_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(share, "_available", lambda: 1024.0)
    assert "torch log-sum-exp" not in list(share._that_fit(4096, 40, 1, "cpu"))
    assert "left out: it would keep 5.4 GiB" in capsys.readouterr().out
    assert "torch log-sum-exp" in list(share._that_fit(256, 40, 1, "cpu"))


@needs_matplotlib
def test_toy_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy, "ETAS", (0.05, (0.05, 1e-4)))
    monkeypatch.setattr(toy, "SHARP_PASSES", 20)
    assert toy.main(["--steps", "2", "--seeds", "1", "--passes", "4", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "| 0.05 -> 0.0001 |" in printed
    runs = json.loads((tmp_path / "toy_uniform.json").read_text())["runs"]
    assert len(runs) == 2 * len(toy.ETAS)
    assert (tmp_path / "toy_uniform.png").stat().st_size > 0


def test_the_toy_learns():
    before, after = (toy.train(0.05, "implicit", 0, steps=steps, passes=30, tau=0.5, masses="uniform")
                     for steps in (1, 40))
    assert before.share < 0.4
    assert after.share > 0.8
    assert after.curve[-1] > 0.8
