"""What a training says: a file of metrics, TensorBoard's events, a bar or plain lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .checkpoint import write_whole

#: Seconds between two lines where there is no terminal.
SECONDS = 15.0


class Metrics:
    """``metrics.jsonl``, one object a line, each with its step, and the same as TensorBoard events.

    The file holds nothing that differs between two runs of the same steps (times go to TensorBoard alone), and is
    cut back to the step that a run resumes from: at step 0 nothing is kept, since everything is to come.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / "metrics.jsonl"
        first = step + 1 if step else 0
        kept = [line for line in read_lines(self.path) if json.loads(line)["step"] < first]
        write_whole(self.path, lambda file: file.write("".join(line + "\n" for line in kept).encode()))
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, step: int, values: dict[str, float], notes: dict[str, str] | None = None) -> None:
        """Append a line and the events of a step; a value that JSON has no word for, NaN or infinity, is left out."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **(notes or {}), **values}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        for name, text in (notes or {}).items():
            self._board.add_text(name, text, step)

    def speed(self, step: int, images_per_second: float) -> None:
        self._board.add_scalar("images_per_second", images_per_second, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """An event with a picture of (H, W, 3) bytes."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def sync(self) -> None:
        """See to it that all lines are on the disk, as a checkpoint that follows them is."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file of metrics; a last one that was cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [line for line in text[:text.rfind("\n") + 1].split("\n") if line]


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of metrics."""
    return [json.loads(line) for line in read_lines(path)]


class Progress:
    """A bar with losses and images a second on a terminal, a line every few seconds elsewhere.

    Args:
        start: Steps that are done already.
        steps: Of the whole training.
        images: In one step.
        stream: Where it is written; None writes nothing.
        say: What plain lines are given to.
    """

    def __init__(self, start: int, steps: int, images: int, stream: TextIO | None,
                 say: Callable[[str], None] | None) -> None:
        self._say = say
        self._steps, self._images = steps, images
        self._first = self._shown = time.perf_counter()
        self._start = self._shown_step = start
        terminal = stream is not None and stream.isatty()
        self._bar = tqdm(total=steps, initial=start, file=stream, unit="step", dynamic_ncols=True) if terminal else None
        self.rate = 0.0

    def step(self, step: int, values: dict[str, float]) -> None:
        """Show a step that is done; ``values`` are its losses."""
        now = time.perf_counter()
        text = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
        if step == self._start + 1 or now - self._shown >= SECONDS or step == self._steps:
            self.rate = self._images * (step - self._shown_step) / max(now - self._shown, 1e-9)
            left = (self._steps - step) * (now - self._first) / (step - self._start)
            if self._bar is None and self._say is not None:
                self._say(f"step {step}/{self._steps}  {text}  {self.rate:.2f} images/s, {left:.0f} s left")
            self._shown, self._shown_step = now, step
        if self._bar is not None:
            self._bar.set_postfix_str(f"{text}, {self.rate:.2f} images/s", refresh=False)
            self._bar.update(1)

    def say(self, text: str) -> None:
        """A line beside the bar."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._say is not None:
            self._say(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
