"""UNITE's training goes on where it was: bit by bit, and after a kill at any moment."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

from unite_training import SMALL, Blocks, blocks, finish, launch, small, start, stop_after, wait_for_lines  # noqa: F401

from examples.unite import checkpoint, train
from examples.unite.checkpoint import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:images are judged by random")


def equal(one: object, other: object) -> bool:
    """Of trees of tensors, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


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


def test_settings_of_a_resumed_run_are_the_checkpoints(tmp_path: Path) -> None:
    start(small(train={"steps": 1}), tmp_path).run()
    options = train._parse(["--resume", "--out", str(tmp_path), "--steps", "4"])
    state = train._checkpoint(options)
    config = train.configure(options, state)
    assert config == small(train={"steps": 4}, model={"condition_channels": 3})
    assert train._changes(state, config) == ["train.steps: 1 -> 4"]


def test_a_task_beside_resume_says_the_folder_and_no_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `--out` as with it; what is given besides changes the checkpoint's settings."""
    monkeypatch.chdir(tmp_path)
    start(small(train={"steps": 1}), Path("out/unite/coco")).run()
    expected = small(train={"steps": 4}, model={"condition_channels": 3})
    for words in (["--task", "coco"], ["--task", "coco", "--out", "out/unite/coco"]):
        options = train._parse(["--resume", *words, "--steps", "4"])
        assert train.configure(options, train._checkpoint(options)) == expected
    with pytest.raises(CheckpointError, match="no checkpoint in out/unite/ade20k/checkpoints"):
        train._checkpoint(train._parse(["--resume", "--task", "ade20k"]))


