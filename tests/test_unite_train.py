"""UNITE's training: an exact resume, a kill at any moment, stops with a diagnosis, means over batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("tensorboard")

from accelerate.state import AcceleratorState

from examples.unite import checkpoint, logs, train, trainer
from examples.unite.checkpoint import CheckpointError
from examples.unite.config import Config, preset
from examples.unite.diagnosis import Diverged, OutOfMemory
from examples.unite.structures import Sample
from examples.unite.trainer import Trainer

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:images are judged by random")
#: The smallest networks, and a matching of 16 x 16 positions.
SMALL = {"model": {"base": 4, "hidden": 8, "descriptor_dim": 16, "stride": 4, "residual_layers": 1,
                   "discriminators": 1},
         "match": {"passes": 6},
         "train": {"batch": 2, "steps": 4, "checkpoint_every": 2, "sample_every": 100, "validation": 2}}


def small(**changes: dict[str, object]) -> Config:
    config = preset("tiny")
    for section in {*SMALL, *changes}:
        config = config.replace(section, **{**SMALL.get(section, {}), **changes.get(section, {})})
    return config


class Blocks:
    """Pairs of coloured blocks: cheap, and a function of epoch and index as real ones are."""

    condition_channels, class_names = 3, ("red", "green", "blue")

    def __init__(self, count: int, broken: int | None = None) -> None:
        self.count, self.broken, self.epoch = count, broken, 0

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Sample:
        drawn = torch.Generator().manual_seed(100 * self.epoch + index)
        labels = torch.randint(0, 3, (4, 4), generator=drawn).repeat_interleave(16, 0).repeat_interleave(16, 1)
        condition = torch.nn.functional.one_hot(labels, 3).permute(2, 0, 1).float()
        image = (torch.rand(3, 3, generator=drawn) * 2 - 1)[labels].permute(2, 0, 1).contiguous()
        if index == self.broken:
            image[0, 0, 0] = torch.nan
        return Sample(condition, image, image.flip(-1), condition.flip(-1), index % 2 == 0, f"blocks {index}")


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on `Blocks`, and a state of accelerate of its own for each test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(trainer, "make_data", lambda config: (Blocks(7), [Blocks(2)[index] for index in range(2)]))
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: BaseException) -> None:
    """Let the step after so many raise."""
    whole = Trainer.step

    def step(self: Trainer, group: list) -> dict[str, float]:
        if self.done == steps:
            raise error
        return whole(self, group)
    monkeypatch.setattr(Trainer, "step", step)


def start(config: Config, out: Path, **options: object) -> Trainer:
    return Trainer(config, out, device="cpu", **options)


def equal(one: object, other: object) -> bool:
    """Of trees of tensors, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


# Resuming

@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"train": {"accumulate": 2, "batch": 1}, "model": {"mask": "noise"}},
    {"train": {"ema": 0.0}, "match": {"eta_start": 0.1}},
], ids=["noise-accumulated", "annealed-no-average"])
def test_a_resumed_run_is_the_run_that_never_stopped(changes: dict, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(**changes)
    start(config, tmp_path / "whole").run()
    with monkeypatch.context() as patch:
        stop_after(patch, 3, RuntimeError("killed"))
        with pytest.raises(RuntimeError, match="killed"):
            start(config, tmp_path / "stopped").run()
    resumed = start(config, tmp_path / "stopped", resume=True)
    assert resumed.done == 2
    resumed.run()
    one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "stopped"))
    assert one == other
    assert [json.loads(line)["step"] for line in one.splitlines()] == [0, 1, 2, 2, 3, 4, 4]
    states = [checkpoint.load(checkpoint.latest(tmp_path / name / "checkpoints")) for name in ("whole", "stopped")]
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        assert equal(states[0][key], states[1][key]), key
    names = [sorted(path.name for path in (tmp_path / name / "checkpoints").iterdir()) for name in ("whole", "stopped")]
    assert names[0] == names[1] == ["best.pt", "step-0000002.pt", "step-0000004.pt"]


@pytest.mark.slow
def test_another_model_is_refused_by_its_setting(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        start(small(), tmp_path, resume=True)
    start(small(train={"steps": 1}), tmp_path).run()
    with pytest.raises(CheckpointError, match=r"another model: model\.hidden: 8 -> 12"):
        start(small(model={"hidden": 12}), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"perceptual network random-vgg\(0\), not with none"):
        start(small(loss={"pseudo": 0.0, "contextual": 0.0, "perceptual_weight": 0.0}), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"train\.ema"):
        start(small(train={"ema": 0.0}), tmp_path, resume=True)
    for match, words in (({"masses": "softmax"}, r"match\.masses: 'eq3' -> 'softmax'"),
                         ({"matcher": "ot", "masses": "softmax"}, r"match\.matcher: 'uot' -> 'ot'; match\.masses")):
        with pytest.raises(CheckpointError, match=f"other parameters: {words}"):
            start(small(match=match), tmp_path, resume=True)
    start(small(match={"matcher": "cos"}), tmp_path, resume=True)  # which has the same
    longer = start(small(train={"steps": 3}), tmp_path, resume=True)
    longer.run()
    assert longer.done == 3


def test_the_best_gets_its_name_after_a_kill_between_the_two(tmp_path: Path) -> None:
    start(small(train={"steps": 1}), tmp_path).run()
    (tmp_path / "checkpoints/best.pt").unlink()
    (tmp_path / "checkpoints/.best.pt.5.unfinished").write_bytes(b"half")
    start(small(train={"steps": 1}), tmp_path, resume=True)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "best.pt", "step-0000000.pt", "step-0000001.pt"]


def command(out: Path, *flags: str) -> list[str]:
    settings = [f"{section}.{name}={value}" for section, values in SMALL.items() for name, value in values.items()]
    return [sys.executable, "-W", "ignore", "-m", "examples.unite.train", "--device", "cpu", "--out", str(out),
            "--set", "data.count=6", *(word for text in settings for word in ("--set", text)), *flags]


def launch(out: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(out, *flags), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_gives_the_same_losses(tmp_path: Path) -> None:
    """SIGKILL of real processes: at the first line, after some step, and while the resumed one is at work."""
    flags = ("--set", "train.steps=6", "--set", "train.checkpoint_every=2")
    whole = launch(tmp_path / "whole", *flags)
    killed = tmp_path / "killed"
    for attempt, lines in enumerate((1, 5, 8)):
        process = launch(killed, *flags, *(["--resume"] if attempt else []))
        wait_for_lines(process, killed / "metrics.jsonl", lines)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert list((killed / "checkpoints").glob("step-*.pt"))
    assert finish(launch(killed, *flags, "--resume"))[0] == 0
    assert finish(whole)[0] == 0
    one, other = ((out / "metrics.jsonl").read_text() for out in (tmp_path / "whole", killed))
    assert one == other
    assert [json.loads(line)["step"] for line in one.splitlines()] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]


def wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


# The command

@pytest.mark.slow
def test_the_command_trains_and_writes_a_run(tmp_path: Path) -> None:
    status, out, err = finish(launch(tmp_path, "--set", "train.steps=2", "--set", "train.sample_every=1"))
    assert status == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.jsonl", "samples", "tensorboard",
                                                          "checkpoints"}
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"{step:07d}.png" for step in range(3)]
    assert any((tmp_path / "tensorboard").iterdir())
    config = Config.from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert (config.train.steps, config.model.condition_channels) == (2, 9)
    assert Config.from_dict(checkpoint.load(tmp_path / "checkpoints/best.pt")["config"]) == config
    for words in ("random-vgg(0)", "images/s", "mass kept", "held-out PSNR"):
        assert words in out


def refuse(*_: object, **__: object) -> None:
    raise ValueError("no trainer here")


def test_the_command_refuses_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def says(*words: str) -> str:
        assert train.main(["--device", "cpu", "--out", str(tmp_path), *words]) == 1
        return capsys.readouterr().err
    assert f"no checkpoint in {tmp_path}" in says("--resume")
    assert "unknown setting train.bach" in says("--set", "train.bach=3")
    assert "train.steps must be a whole number, got 'many'" in says("--steps", "many")
    assert "source must be one of avatars, folder, got 'faces'" in says("--data", "faces")
    assert "fp16 needs a GPU" in says("--precision", "fp16")
    if not torch.cuda.is_available():
        assert "torch sees no GPU" in says("--device", "cuda")
    for device in ("gpu", "cuda:x", "cuda:", "cpu:1"):
        assert f"device must be auto, cpu, cuda, cuda:N or mps, got '{device}'" in says("--device", device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "device cuda:9 was asked for, and torch sees 2 GPUs" in says("--device", "cuda:9")
    monkeypatch.undo()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/.step-0000001.pt.7.unfinished").write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(train, "Trainer", refuse)
        assert "no trainer here" in says()  # a file that was never finished is no run
    (tmp_path / "checkpoints/step-0000001.pt").write_bytes(b"words")
    assert "holds a run already: --resume" in says()
    assert "step-0000001.pt is cut short or no checkpoint" in says("--resume")


def test_an_error_of_a_value_while_training_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "configure", lambda options: small())
    monkeypatch.setattr(Trainer, "run", refuse)
    assert train.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("ValueError: no trainer here\n")


def test_demo_and_overfit_leave_what_they_did_not_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.unite import data, demo, overfit

    mine = [tmp_path / name / "mine.txt" for name in (
        ".", "unite", "unite-run", "unite-run/samples", "overfit-run", "overfit-run/checkpoints")]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("words")
    monkeypatch.setattr(data, "make", lambda *_, **__: Blocks(2))
    for module, name in ((demo, "unite-run"), (overfit, "overfit-run")):
        monkeypatch.setattr(module, "Trainer", refuse)
        (tmp_path / name / "metrics.jsonl").write_text("old")
        words = ["--pairs", "1"] if module is overfit else []
        assert module.main(["--out", str(tmp_path), "--device", "cpu", *words]) == 1
        assert not (tmp_path / name / "metrics.jsonl").exists()
    assert all(path.read_text() == "words" for path in mine)


def test_settings_of_a_resumed_run_are_the_checkpoints(tmp_path: Path) -> None:
    start(small(train={"steps": 1}), tmp_path).run()
    words = ["--resume", "--out", str(tmp_path)]
    config = train.configure(train._parse([*words, "--steps", "4"]))
    assert config == small(train={"steps": 4}, model={"condition_channels": 3})
    assert train._changes(tmp_path, config) == ["train.steps: 1 -> 4"]


# Stopping

def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_checkpoint(tmp_path: Path,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(train={"checkpoint_every": 1, "batch": 1, "steps": 7})
    monkeypatch.setattr(trainer, "make_data", lambda config: (Blocks(7, broken=3), [Blocks(2)[0]]))
    run = start(config, tmp_path)
    with pytest.raises(Diverged) as caught:
        run.run()
    newest = checkpoint.latest(tmp_path / "checkpoints")
    assert newest.name == f"step-{run.done:07d}.pt"
    assert 0 < run.done < 7
    for words in (f"step {run.done + 1}: matching was given no numbers", "truth: (1, 3, 64, 64)",
                  "1 of 12288 not finite", "blocks 3", "generator.generator", str(newest)):
        assert words in str(caught.value)
    state = checkpoint.load(newest)
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


def test_a_loss_and_a_gradient_without_numbers_stop_before_the_update(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(small(loss={"adversarial": 0.0, "discriminator_features": 0.0}), tmp_path)
    before = [parameter.detach().clone() for parameter in run.learner.unite.parameters()]
    group = [next(trainer.batches(run.pairs, 0, 2, 0))]
    whole = run.learner.losses.generator
    for broken, words in ((lambda loss: loss / 0, "generator/consistency is inf; beside it"),
                          (lambda loss: 0 * torch.sqrt(loss - loss), r"gradient of generator\.extractor_x is nan")):
        monkeypatch.setattr(run.learner.losses, "generator", lambda *given, broken=broken: {
            **(terms := whole(*given)), "consistency": broken(terms["consistency"])})
        with pytest.raises(Diverged, match=words):
            run.step(group)
        assert all(map(torch.equal, before, run.learner.unite.parameters()))
        assert run.done == 0


def test_weights_that_are_no_numbers_are_never_saved(tmp_path: Path) -> None:
    run = start(small(), tmp_path)
    with torch.no_grad():
        next(run.learner.discriminator.parameters()).fill_(torch.inf)
    with pytest.raises(Diverged, match=r"discriminator\.scales"):
        run.save(1.0)
    assert not (tmp_path / "checkpoints").exists()


def test_memory_that_runs_out_keeps_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 2, torch.cuda.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(OutOfMemory, match="--batch below 2"):
        start(small(), tmp_path).run()
    assert checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"))["step"] == 2


def test_memory_that_runs_out_while_networks_are_built_has_the_advice(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(trainer, "Learner", full)
    with pytest.raises(OutOfMemory, match="--batch below 2"):
        start(small(), tmp_path)


def test_a_gradient_that_no_scale_mends_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.optimizer import AcceleratedOptimizer

    run = start(small(loss={"adversarial": 0.0, "discriminator_features": 0.0}, train={"steps": 50}), tmp_path)
    scaler = run.accelerator.scaler = torch.amp.GradScaler("cpu")
    run.learner._adam = AcceleratedOptimizer(run.learner._adam.optimizer, scaler=scaler)
    whole, calls = run.learner.losses.generator, []

    def broken(*given: object) -> dict[str, torch.Tensor]:
        terms = whole(*given)
        calls.append(1)
        if len(calls) != 2:  # one good step begins the count anew
            terms["consistency"] = terms["consistency"] + 0 * torch.sqrt(terms["consistency"] - terms["consistency"])
        return terms
    monkeypatch.setattr(run.learner.losses, "generator", broken)
    with pytest.raises(Diverged, match=r"generator\.extractor_x.* is no number in 20 steps in a row"):
        run.run()
    assert run.done == 21

    def strict(word: str) -> None:
        raise AssertionError(word)
    steps = [json.loads(line, parse_constant=strict) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in steps if "generator/total" in line]
    assert [line["step"] for line in steps if "gradient/generator" in line] == [2]
    assert [line["step"] for line in steps if "skipped/generator" not in line] == [2]


# One step

def gradients(run: Trainer) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": parameter.grad.clone()
            for part, module in (("generator", run.learner.unite), ("discriminator", run.learner.discriminator))
            for name, parameter in module.named_parameters()}


def first_step(config: Config, out: Path, group: list[list[int]]) -> Trainer:
    from torch.nn.utils.parametrizations import _SpectralNorm

    from examples.unite.structures import collate

    run = start(config, out)
    for network in (run.learner.unite, run.learner.discriminator):
        for module in network.modules():
            if isinstance(module, _SpectralNorm):  # its vectors move with every forward, of however many samples
                module.n_power_iterations = 0
    run.values = run.step([collate([Blocks(7)[index] for index in batch]) for batch in group])
    return run


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path) -> None:
    # The pseudo pairs' loss is a share of the batch's flags, not a mean; all others are means.
    config = small(loss={"pseudo": 0.0})
    whole = first_step(config, tmp_path, [[0, 1, 2, 3]])
    parts = first_step(config.replace("train", accumulate=2), tmp_path, [[0, 1], [2, 3]])
    assert parts.position == 2 * whole.position  # of a configured batch of 2
    for name, value in whole.values.items():
        assert parts.values[name] == pytest.approx(value, rel=2e-4), name
    ours, theirs = gradients(whole), gradients(parts)
    for name, gradient in ours.items():
        assert (theirs[name] - gradient).norm() <= 2e-3 * gradient.norm() + 1e-6, name


def test_each_network_learns_from_its_own_losses_alone(tmp_path: Path) -> None:
    from examples.unite.structures import collate

    run = start(small(), tmp_path)
    group = [collate([Blocks(7)[index] for index in (0, 1)])]
    before = [parameter.detach().clone() for parameter in run.learner.discriminator.parameters()]
    _, images = run.learner.update_generator(group)
    assert all(parameter.grad is None for parameter in run.learner.discriminator.parameters())
    assert all(map(torch.equal, before, run.learner.discriminator.parameters()))
    assert not images[0].requires_grad
    kept = [parameter.detach().clone() for parameter in run.learner.unite.parameters()]
    slopes = [parameter.grad.clone() for parameter in run.learner.unite.parameters()]
    run.learner.update_discriminator(group, images)
    assert all(map(torch.equal, kept, run.learner.unite.parameters()))
    assert all(map(torch.equal, slopes, (parameter.grad for parameter in run.learner.unite.parameters())))
    assert not all(map(torch.equal, before, run.learner.discriminator.parameters()))


def test_without_adversary_the_discriminator_rests(tmp_path: Path) -> None:
    run = start(small(loss={"adversarial": 0.0, "discriminator_features": 0.0}, train={"steps": 2}), tmp_path)
    before = [parameter.detach().clone() for parameter in run.learner.discriminator.parameters()]
    run.run()
    assert all(map(torch.equal, before, run.learner.discriminator.parameters()))
    assert not any(name.startswith("discriminator/") for line in
                   (tmp_path / "metrics.jsonl").read_text().splitlines() for name in json.loads(line))


@pytest.mark.parametrize("gradients", ["implicit", "one_step", "unrolled"])
def test_evaluation_has_passes_of_its_own_and_says_what_they_leave(gradients: str, tmp_path: Path) -> None:
    made = {}
    for passes in (None, 200):
        run = start(small(match={"passes_eval": passes, "eta_eval": 0.005, "gradients": gradients}), tmp_path)
        made[passes] = run.judge().values["violation"]
    assert made[200] < 1e-4 < made[None]
    training = [matcher.train().passes for matcher in (run.learner.unite.matcher,)]
    assert training == [6]
    batch = next(trainer.batches(run.pairs, 0, 2, 0))
    violation = run.learner.unite(batch.condition, batch.exemplar, batch.exemplar_condition).transported.violation
    assert violation.shape == (2,)
    assert not violation.requires_grad
    assert "violation" not in start(small(match={"matcher": "cos"}), tmp_path).judge().values


def test_lines_of_validation_name_the_judge_and_the_worst_plan(tmp_path: Path) -> None:
    said: list[str] = []
    start(small(train={"steps": 1}), tmp_path).run(say=said.append)
    lines = [line for line in logs.read(tmp_path / "metrics.jsonl") if "validation/psnr" in line]
    assert [line["judge"] for line in lines] == ["random-vgg(0)"] * 2
    held = [text for text in said if "held-out" in text]
    assert [f"violation {line['validation/violation']:.1e}" in text
            for line, text in zip(lines, held, strict=True)] == [True, True]


def test_the_papers_eta_has_the_passes_that_it_needs() -> None:
    literal, released = preset("paper_literal").match, preset("released").match
    assert (literal.eta_eval, literal.passes_eval) == (1e-4, 400)
    assert released.gradients == "one_step"


def test_what_was_never_finished_is_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    left = [tmp_path / ".metrics.jsonl.7.unfinished", tmp_path / "samples/.0000000.png.7.unfinished"]
    for path in left:
        path.write_bytes(b"half")
    start(small(), tmp_path)
    assert not any(path.exists() for path in left)


def test_bfloat16_trains_and_the_solver_stays_in_float32(tmp_path: Path) -> None:
    run = start(small(train={"precision": "bf16", "steps": 2}), tmp_path)
    run.run()
    seen = {}
    run.learner.judged.matcher.register_forward_hook(lambda module, given, made: seen.update(kept=made.kept.dtype))
    judged = run.judge()
    assert seen == {"kept": torch.float32}
    assert judged.values["psnr"] > 0
    assert all(parameter.dtype == torch.float32 for parameter in run.learner.unite.parameters())


# Learning

@pytest.mark.slow
def test_two_pairs_come_nearer_to_their_truth(tmp_path: Path) -> None:
    """A short piece of `examples.unite.overfit`, which aims at 30 dB: 20 steps on 2 pairs gain more than 3 dB."""
    from examples.unite import data, overfit

    pairs = overfit.ByHeart(data.make("avatars", root=tmp_path, split="train", pseudo_share=0.0, count=2), 2)
    config = overfit.settings(2, 20).replace("model", stride=4).replace("train", sample_every=20)
    run = start(config, tmp_path / "run", examples=(pairs, pairs.samples))
    run.run()
    lines = logs.read(tmp_path / "run/metrics.jsonl")
    scores = [line["validation/psnr"] for line in lines if "validation/psnr" in line]
    assert scores[-1] > scores[0] + 3
