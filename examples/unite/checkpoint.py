"""Checkpoints: written whole or not at all, the last two and the best kept, foreign files refused."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT, VERSION = "uotlib-unite", 1
#: Checkpoints of steps that are kept beside the best.
KEPT = 2
BEST = "best.pt"


class CheckpointError(ValueError):
    """A checkpoint that is missing, broken, foreign, or of another model."""


def write_whole(path: Path, write: Any) -> None:
    """Call ``write`` with a binary file, and give it its name only when all of it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, whether a listing of a shared folder has it by now or not."""
    return folder / f"step-{step:07d}.pt"


def save(state: dict[str, Any], folder: Path, step: int, best: bool) -> Path:
    """Write the checkpoint of a step, name it the best too if it is, and remove the ones that are older than two."""
    path = place(folder, step)
    write_whole(path, lambda file: torch.save({"format": FORMAT, "version": VERSION, **state}, file))
    if best:
        keep_best(path)
    for old in saved(folder)[:-KEPT]:
        old.unlink()
    return path


def keep_best(path: Path) -> None:
    """Let the folder's best be this file: a second name of it, or a copy where the file system has no links."""
    name = path.with_name(BEST)
    if name.exists() and name.samefile(path):  # a rename between two names of one file would do nothing
        return
    unfinished = path.with_name(f".{BEST}.{os.getpid()}.unfinished")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(path, unfinished)
    except OSError:
        shutil.copyfile(path, unfinished)
    os.replace(unfinished, name)
    _sync_folder(path.parent)


def latest(folder: Path) -> Path:
    """The newest checkpoint of a folder.

    Raises:
        CheckpointError: There is none.
    """
    found = saved(folder)
    if not found:
        raise CheckpointError(f"no checkpoint in {folder}")
    return found[-1]


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """A checkpoint's state.

    Raises:
        CheckpointError: The file is missing, cut short, or not a checkpoint of this package.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        others = [other.name for other in [*saved(path.parent), path.with_name(BEST)]
                  if other.exists() and not other.samefile(path)]
        hint = f"; removed, it leaves {', '.join(others)}" if others else ""
        raise CheckpointError(f"{path} is cut short or no checkpoint ({reason}){hint}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of examples.unite")
    if state["version"] != VERSION:
        raise CheckpointError(f"{path} has version {state['version']!r}, this code reads {VERSION}")
    return state


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while writing left behind."""
    for path in folder.glob(".*.unfinished"):
        path.unlink(missing_ok=True)


def saved(folder: Path) -> list[Path]:
    """The checkpoints of steps in a folder, the oldest first."""
    return sorted(folder.glob("step-*.pt"), key=lambda path: (len(path.name), path.name))


def remove_run(run: Path) -> None:
    """Remove what a run wrote into its folder, and nothing else that may be there."""
    names = {run: ("metrics.jsonl", "config.json"), run / "checkpoints": ("step-*.pt", BEST),
             run / "samples": ("[0-9]" * 7 + ".png",), run / "tensorboard": ("events.out.tfevents.*",)}
    for folder, patterns in names.items():
        remove_unfinished(folder)
        for path in (path for pattern in patterns for path in folder.glob(pattern)):
            path.unlink()
    for folder in (*list(names)[1:], run):
        with contextlib.suppress(OSError):  # it is absent, or holds something else
            folder.rmdir()


def random_state() -> dict[str, Any]:
    """The states of the generators of python, numpy and torch, as tensors and plain values."""
    name, keys, place, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, second = random.getstate()
    return {
        "python": [version, list(words), second],
        "numpy": [str(name), torch.from_numpy(keys.astype(np.int64)), int(place), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`; a state of a GPU is used where there is one."""
    version, words, second = state["python"]
    random.setstate((version, tuple(words), second))
    name, keys, place, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), place, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def draw_random_state(seed: int, step: int, rank: int) -> None:
    """States that no checkpoint holds, of a process that was not there: a function of seed, step and rank."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002
    torch.manual_seed(words[2])


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
