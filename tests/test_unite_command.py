"""UNITE's training as a command: what it writes, refuses and leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

from unite_training import SMALL, Blocks, blocks, finish, launch, small, start, stop_after, wait_for_lines  # noqa: F401

from examples.unite import checkpoint, train
from examples.unite.config import Config
from examples.unite.data.check import Unreadable, load_picture
from examples.unite.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore:images are judged by random")


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
    assert "source must be one of avatars, folder, ade20k, coco, celebahq, deepfashion, got 'faces'" in says(
        "--data", "faces")
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
    monkeypatch.setattr(train, "configure", lambda *_: small())
    monkeypatch.setattr(Trainer, "run", refuse)
    assert train.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith("ValueError: no trainer here\n")


@pytest.mark.parametrize(("error", "line"), [
    (PermissionError(13, "Permission denied", "a.jpg"), "PermissionError: [Errno 13] Permission denied: 'a.jpg'\n"),
    (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device\n"),
    (Unreadable("Caught Unreadable in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                "  File \"a.py\", line 1\nexamples.Unreadable: a.jpg cannot be read: cut short\n"),
     "Unreadable: a.jpg cannot be read: cut short\n"),
])
def test_a_file_that_cannot_be_read_while_training_is_one_line(
        error: Exception, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(train, "configure", lambda *_: small())
    monkeypatch.setattr(Trainer, "run", run)
    assert train.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == line


def test_an_error_of_a_loaders_process_is_one_line(tmp_path: Path) -> None:
    """What PyTorch makes of an error there, with its traceback, ends in the error's own words."""
    (tmp_path / "a.png").write_text("no picture")
    files = DataLoader([tmp_path / "a.png"], num_workers=1, collate_fn=lambda each: load_picture(each[0]))
    with pytest.raises(Unreadable, match="Original Traceback") as error:
        next(iter(files))
    assert train._message(error.value) == f"{tmp_path / 'a.png'} cannot be read: cannot identify image file"


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
