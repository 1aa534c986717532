"""The smallest trainings of UNITE, and its command in a process of its own, for the tests of both."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from examples.unite import trainer
from examples.unite.config import Config, preset
from examples.unite.structures import Sample
from examples.unite.trainer import Trainer

ROOT = Path(__file__).parent.parent
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


def command(out: Path, *flags: str) -> list[str]:
    settings = [f"{section}.{name}={value}" for section, values in SMALL.items() for name, value in values.items()]
    return [sys.executable, "-W", "ignore", "-m", "examples.unite.train", "--device", "cpu", "--out", str(out),
            "--set", "data.count=6", *(word for text in settings for word in ("--set", text)), *flags]


def launch(out: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(out, *flags), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err
