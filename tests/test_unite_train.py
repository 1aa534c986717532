"""UNITE's training: stops with a diagnosis, means over batches, what is validated and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

from unite_training import SMALL, Blocks, blocks, finish, launch, small, start, stop_after, wait_for_lines  # noqa: F401

from examples.unite import checkpoint, logs, trainer
from examples.unite.config import Config, preset
from examples.unite.diagnosis import Diverged, OutOfMemory
from examples.unite.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:images are judged by random")


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
    config = small()
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
    """A short piece of `examples.unite.overfit`, which aims at 30 dB: 40 steps on 2 pairs gain more than 3 dB."""
    from examples.unite import data, overfit

    pairs = overfit.ByHeart(data.make("avatars", root=tmp_path, split="train", pseudo_share=0.0, count=2), 2)
    config = overfit.settings(2, 40).replace("model", stride=4).replace("train", sample_every=40)
    run = start(config, tmp_path / "run", examples=(pairs, pairs.samples))
    run.run()
    lines = logs.read(tmp_path / "run/metrics.jsonl")
    scores = [line["validation/psnr"] for line in lines if "validation/psnr" in line]
    assert scores[-1] > scores[0] + 3
