"""What UNITE's trainer is made of: settings, rates, averages, orders of examples, checkpoints, metrics, diagnoses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")
pytest.importorskip("PIL", reason="needs pillow: the extra unite")

from examples.unite import checkpoint, grids, logs, stream
from examples.unite.checkpoint import CheckpointError
from examples.unite.config import TrainConfig, preset
from examples.unite.diagnosis import (
    Diverged,
    OutOfMemory,
    check_losses,
    check_parameters,
    gradient_norms,
    memory_advice,
)
from examples.unite.ema import Average
from examples.unite.optimisation import optimisers, rate_factor
from examples.unite.settings import assign, differences
from examples.unite.structures import Sample
from examples.unite.validation import evaluating, psnr


class Numbered:
    """Examples that say which epoch and item they are."""

    condition_channels = 1

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        image = torch.zeros(3, 2, 2)
        return Sample(image[:1], image, image, image[:1], False, f"{self.epoch}.{index}")


# Settings

@pytest.mark.parametrize(("text", "section", "name", "value"), [
    ("train.batch=7", "train", "batch", 7), ("match.tau_eval=0.25", "match", "tau_eval", 0.25),
    ("model.unfold=true", "model", "unfold", True), ("model.levels=rgb,f4", "model", "levels", ("rgb", "f4")),
    ("match.eta_start=none", "match", "eta_start", None), ("match.eta_start=0.05", "match", "eta_start", 0.05),
    ("data.root=some folder", "data", "root", "some folder"), ("data.count=12", "data", "count", 12)])
def test_settings_are_read_as_their_types(text: str, section: str, name: str, value: object) -> None:
    old = preset("tiny").replace("match", eta_start=0.1)
    new = assign(old, text)
    before, read = (getattr(getattr(config, section), name) for config in (old, new))
    assert read == value
    assert type(read) is type(value)
    assert differences(old, new, section) == [f"{section}.{name}: {before!r} -> {value!r}"]
    assert dataclasses.replace(new, **{section: getattr(old, section)}) == old


@pytest.mark.parametrize(("text", "message"), [
    ("batch=7", "section.name=value"), ("train.batch", "section.name=value"), ("trian.batch=7", "unknown section"),
    ("train.bach=7", "unknown setting train.bach"), ("train.batch=many", "train.batch must be a whole number"),
    ("train.batch=2.5", "train.batch must be a whole number"), ("model.unfold=1", "model.unfold must be true or false"),
    ("train.batch=0", "batch must be positive"), ("model.norm=batch", "norm must be one of"),
    ("loss.perceptual_layer=relu9_9", "perceptual_layer must be one of relu1_2"),
    ("match.eta_start=0", "eta_start must be positive"), ("match.eta_start=-1", "eta_start must be positive"),
    ("match.passes_eval=0", "passes_eval must be positive"), ("match.eta_train=nan", "eta_train must be positive"),
    ("match.backend=gpu", "backend must be one of auto, native, triton, cuda, reference"),
    ("train.seed=-1", "seed must be"), ("train.decay_share=1.5", "decay_share must be between 0 and 1"),
    ("train.decay_share=-0.1", "decay_share must be between 0 and 1"), ("loss.cycle=-1", "cycle must be a finite"),
    ("loss.cycle=nan", "cycle must be a finite"), ("loss.adversarial=inf", "adversarial must be a finite")])
def test_settings_that_do_not_exist_or_fit_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assign(preset("tiny"), text)


# Rates and averages

def test_rates_are_constant_then_linear_to_nothing() -> None:
    config = TrainConfig(steps=10, decay_share=0.4)
    assert [rate_factor(step, config) for step in range(11)] == pytest.approx([1] * 7 + [0.75, 0.5, 0.25, 0])
    assert rate_factor(9, TrainConfig(steps=10, decay_share=0.0)) == 1
    assert rate_factor(0, TrainConfig(steps=10, decay_share=1.0)) == 1


def test_adam_has_the_papers_settings_as_floats() -> None:
    one, two = optimisers(nn.Linear(2, 2), nn.Linear(2, 2), TrainConfig(beta1=0))  # an integer, as a file may say
    assert [adam.defaults["lr"] for adam in (one, two)] == [1e-4, 4e-4]
    for adam in (one, two):
        assert adam.defaults["betas"] == (0.0, 0.999)
        assert all(type(beta) is float for beta in adam.defaults["betas"])


def test_average_is_the_weighted_sum_of_all_weights() -> None:
    model = nn.BatchNorm1d(1)
    average = Average(model, decay=0.25)
    weights, shares = [1.0], [1.0]
    for step, weight in enumerate((3.0, -2.0, 5.0), start=1):
        kept = min(0.25, (1 + step) / (10 + step))
        shares = [share * kept for share in shares] + [1 - kept]
        weights.append(weight)
        with torch.no_grad():
            model.weight.fill_(weight)
            model.running_mean.fill_(weight)
        average.update(model)
    expected = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    assert sum(shares) == pytest.approx(1)
    assert float(average.model.weight) == pytest.approx(expected, rel=1e-6)
    assert float(average.model.running_mean) == 5  # a buffer is the newest
    assert not average.model.weight.requires_grad
    assert not average.model.training


def test_average_goes_on_from_its_state() -> None:
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    average = Average(model, 0.9)
    average.update(other)
    again = Average(nn.Linear(1, 1), 0.9)
    again.load_state_dict(average.state_dict())
    for each in (average, again):
        each.update(model)
    assert torch.equal(average.model.weight, again.model.weight)
    assert again.updates == 2


# Examples

def test_every_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    source = stream.batches(Numbered(6), seed=1, batch=4, start=0)
    names = [name for _ in range(3) for name in next(source).names]
    assert sorted(names[:6]) == [f"0.{index}" for index in range(6)]
    assert sorted(names[6:]) == [f"1.{index}" for index in range(6)]
    assert [name[2:] for name in names[:6]] != [name[2:] for name in names[6:]]


@pytest.mark.parametrize("workers", [0, 2])
def test_examples_go_on_anywhere(workers: int) -> None:
    whole = stream.batches(Numbered(5), seed=3, batch=2, start=0)
    names = [next(whole).names for _ in range(8)]
    later = stream.batches(Numbered(5), seed=3, batch=2, start=6, workers=workers)
    assert [next(later).names for _ in range(5)] == names[3:]


def test_processes_share_the_examples_of_one() -> None:
    whole = stream.batches(Numbered(7), seed=3, batch=2, start=4)
    shares = [stream.batches(Numbered(7), seed=3, batch=2, start=4, rank=rank, processes=2) for rank in range(2)]
    for _ in range(4):
        assert [next(share).names for share in shares] == [next(whole).names for _ in range(2)]


def test_examples_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    next(stream.batches(Numbered(5), seed=3, batch=2, start=0))
    assert torch.equal(torch.get_rng_state(), before)


# Checkpoints

def test_the_last_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step, best in enumerate((True, False, True, False, False, False)):
        checkpoint.save({"step": step}, tmp_path, step, best)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-0000004.pt", "step-0000005.pt"]
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 2
    assert checkpoint.load(checkpoint.latest(tmp_path))["step"] == 5


def test_the_best_is_kept_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save({"step": 1}, tmp_path, 1, best=True)
    (tmp_path / "step-0000001.pt").unlink()
    assert checkpoint.load(tmp_path / "best.pt")["step"] == 1


@pytest.mark.parametrize("place", ["torch.save", "os.fsync", "os.replace"])
def test_a_checkpoint_is_whole_or_absent(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save({"step": 1}, tmp_path, 1, best=True)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def die(*_: object) -> None:
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr({"torch": torch, "os": os}[place.split(".")[0]], place.split(".")[1], die)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"step": 2}, tmp_path, 2, best=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-0000002.pt.77.unfinished").write_bytes(b"half")
    checkpoint.save({"step": 1}, tmp_path, 1, best=False)
    assert checkpoint.latest(tmp_path).name == "step-0000001.pt"
    checkpoint.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001.pt"]


def test_a_runs_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    made = ["metrics.jsonl", "config.json", "checkpoints/step-0000002.pt", "checkpoints/best.pt", "samples/0000002.png",
            "tensorboard/events.out.tfevents.1", ".config.json.7.unfinished"]
    others = ["notes.txt", "samples/0000002.txt", "checkpoints-of-mine/step-0000001.pt", "samples/face.png"]
    for name in made + others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    checkpoint.remove_run(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == sorted(
        [*others, "samples", "checkpoints-of-mine"])
    checkpoint.remove_run(tmp_path / "absent")


def test_broken_and_foreign_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        checkpoint.latest(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*absent\.pt"):
        checkpoint.load(tmp_path / "absent.pt")
    for step in (1, 2):
        checkpoint.save({"step": step, "numbers": torch.zeros(1000)}, tmp_path, step, best=False)
    newest = checkpoint.latest(tmp_path)
    newest.write_bytes(newest.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"step-0000002\.pt is cut short .* leaves step-0000001\.pt"):
        checkpoint.load(newest)
    for content in ({"state_dict": torch.zeros(2)}, torch.zeros(3)):
        torch.save(content, tmp_path / "foreign.pt")
        with pytest.raises(CheckpointError, match=r"foreign\.pt is no checkpoint of examples\.unite"):
            checkpoint.load(tmp_path / "foreign.pt")
    (tmp_path / "text.pt").write_text("words")
    with pytest.raises(CheckpointError, match=r"text\.pt is cut short or no checkpoint"):
        checkpoint.load(tmp_path / "text.pt")
    torch.save({"format": checkpoint.FORMAT, "version": 99}, tmp_path / "late.pt")
    with pytest.raises(CheckpointError, match="version 99"):
        checkpoint.load(tmp_path / "late.pt")


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)
    torch.save({"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "step": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002
    kept = checkpoint.random_state()
    np.random.standard_normal()  # noqa: NPY002  a half of a pair is part of the state
    checkpoint.save({"random": checkpoint.random_state()}, tmp_path, 1, best=False)
    expected = [draw(), float(np.random.standard_normal())]  # noqa: NPY002
    checkpoint.set_random_state(checkpoint.load(checkpoint.latest(tmp_path))["random"])
    assert [draw(), float(np.random.standard_normal())] == expected  # noqa: NPY002
    checkpoint.set_random_state(kept)


# Metrics

def test_metrics_are_cut_back_to_the_step_of_a_checkpoint(tmp_path: Path) -> None:
    metrics = logs.Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        metrics.write(step, {"loss": 1 / step})
    metrics.close()
    lines = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # where a kill came in between
    metrics = logs.Metrics(tmp_path, 2)
    metrics.write(3, {"loss": 1 / 3})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    assert [line["loss"] for line in logs.read(tmp_path / "metrics.jsonl")] == [1, 1 / 2, 1 / 3]


def test_progress_without_a_terminal_is_lines_with_losses_and_speed() -> None:
    lines: list[str] = []
    progress = logs.Progress(10, 12, images=4, stream=None, say=lines.append)
    for step in (11, 12):
        progress.step(step, {"generator": 2.5})
    assert [line.split("  ")[:2] for line in lines] == [[f"step {step}/12", "generator 2.5"] for step in (11, 12)]
    assert all("images/s" in line for line in lines)
    assert progress.rate > 0


def test_a_new_run_keeps_no_line_of_an_old_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        metrics = logs.Metrics(tmp_path, 0)
        metrics.write(0, {"loss": value}, {"judge": "somebody"})
        metrics.close()
    assert logs.read(tmp_path / "metrics.jsonl") == [{"step": 0, "judge": "somebody", "loss": 2.0}]


def test_metrics_are_json_whatever_the_values(tmp_path: Path) -> None:
    metrics = logs.Metrics(tmp_path, 0)
    metrics.write(1, {"norm": math.inf, "loss": 1.5, "other": math.nan})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 1.5}\n'


# Diagnoses

def test_a_loss_that_is_no_number_is_diagnosed() -> None:
    inputs = {"truth": torch.tensor([[0.5, math.nan, -2.0]]), "output": torch.full((1, 2), math.inf)}
    check_losses({"cycle": 1.0}, 7, inputs, ["a"], {}, None)
    with pytest.raises(Diverged) as caught:
        check_losses({"cycle": math.nan, "adversarial": 0.25}, 7, inputs, ["a", "b"], {"generator.matcher": 3.0},
                     Path("run/step-5.pt"))
    for words in ("step 7: cycle is nan", "beside it adversarial 0.25", "truth: (1, 3) in [-2, 0.5], 1 of 3 not finite",
                  "output: (1, 2), no finite value", "examples: a, b", "generator.matcher 3", "run/step-5.pt"):
        assert words in str(caught.value)


def test_parameters_that_are_no_numbers_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    check_parameters({"model": model}, 3, None)
    model[1].running_var.fill_(math.inf)
    with pytest.raises(Diverged, match=r"step 3: model\.1\.running_var is not finite"):
        check_parameters({"model": model}, 3, None)


def test_gradient_norms_of_parts() -> None:
    model = nn.ModuleDict({"one": nn.Linear(2, 1, bias=False), "two": nn.Linear(1, 1, bias=False), "none": nn.ReLU()})
    assert gradient_norms(model) == {}
    model["one"].weight.grad = torch.tensor([[3.0, -4.0]])
    model["two"].weight.grad = torch.tensor([[2.0]])
    assert gradient_norms(model) == {"one": 5.0, "two": 2.0}


def test_memory_that_runs_out_says_what_to_lower() -> None:
    config = preset("tiny")
    with pytest.raises(OutOfMemory, match=r"--batch below 4.*train\.accumulate=2.*checkpointing.*stride=4.*base"), \
            memory_advice(config):
        torch.empty(1 << 52)
    with pytest.raises(OutOfMemory, match="--batch below 4"), memory_advice(config):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(OutOfMemory) as caught, memory_advice(config.replace("train", batch=1)):
        raise MemoryError
    assert "--batch" not in str(caught.value)
    with pytest.raises(RuntimeError, match="other") as other, memory_advice(config):
        raise RuntimeError("other")
    assert not isinstance(other.value, OutOfMemory)


# Measures and pictures

def test_psnr_of_known_errors() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    image = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    assert psnr(image, truth).tolist() == pytest.approx([20.0, 0.0], abs=1e-4)  # errors 0.1 and 1 of the peak


def test_evaluating_puts_modes_back() -> None:
    model = nn.Linear(1, 1).train()
    states = []
    for inner in ({"known": 1}, {}):
        with contextlib.suppress(KeyError), evaluating(model):
            states.append((model.training, torch.is_grad_enabled()))
            inner["known"]
        assert model.training
        assert torch.is_grad_enabled()
    assert states == [(False, False), (False, False)]


def test_colours_of_conditions_and_shares() -> None:
    labels = torch.tensor([[[0, 1], [2, 3]]])
    shown = grids.colour(nn.functional.one_hot(labels, 4).permute(0, 3, 1, 2).float())
    assert torch.allclose(shown[0].flatten(1).T, 2 * grids.palette(4) - 1)
    both = grids.colour(torch.ones(1, 4, 1, 1))
    assert torch.allclose(both.flatten(), 2 * grids.palette(4).mean(0) - 1)  # overlapping boxes: the mean colour
    assert torch.equal(grids.colour(torch.full((1, 3, 1, 1), 0.25)), torch.full((1, 3, 1, 1), -0.5))
    ends = grids.heat(torch.tensor([[[0.0, 1.0]]]))
    assert ends[0, :, 0, 0].tolist() == [-1, -1, -1]
    assert ends[0, :, 0, 1].tolist() == [1, 1, 1]


def test_a_grid_holds_its_tiles(tmp_path: Path) -> None:
    from PIL import Image
    tiles = {name: torch.rand(2, 3, 8, 8) * 2 - 1 for name in ("exemplar", "truth")}
    picture = grids.grid(tiles)
    grids.write_png(tmp_path / "grid.png", picture)
    again = np.asarray(Image.open(tmp_path / "grid.png"))
    assert np.array_equal(again, picture)
    left, top = 2 * grids.GAP + 8, grids.HEAD + 8 + grids.GAP
    assert np.array_equal(again[top:top + 8, left:left + 8], grids.to_bytes(tiles["truth"][1]))
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["grid.png"]'
