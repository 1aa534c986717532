"""Settings of the paper's four tasks: what ``tasks/NAME.json`` says over a preset, section -> setting -> value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .config import Config
from .settings import assign

FOLDER = Path(__file__).parent / "tasks"


def names() -> tuple[str, ...]:
    """The tasks that have a file here."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def apply(config: Config, task: str) -> Config:
    """The configuration with a task's settings.

    Args:
        config: What the task's file says nothing about.
        task: One of `names`, or a path to a JSON file of one's own, of the same form.

    Raises:
        ValueError: There is no such task, a file that is not of this form, an unknown setting or a value that does not
            fit; all but the first by the file's name.
    """
    file = FOLDER / f"{task}.json" if task in names() else Path(task)
    if not file.is_file():
        raise ValueError(f"task must be one of {', '.join(names())} or a JSON file, got {task!r}")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or not all(isinstance(settings, dict) for settings in tree.values()):
            raise ValueError('it must be {"section": {"setting": value, ...}, ...}')
        for section, settings in tree.items():
            for name, value in settings.items():
                config = assign(config, f"{section}.{name}={_text(value)}")
    except ValueError as error:
        raise ValueError(f"task {file}: {error}") from error
    return config


def _text(value: Any) -> str:
    """A value of JSON as ``--set`` would have it."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
