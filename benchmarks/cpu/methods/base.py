"""What a peer is to the suite."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from ..case import Problem


class Missing(ImportError):
    """A peer's package is not installed; the message names the package and the extra that has it."""


@dataclass(frozen=True)
class Answer:
    """Potentials of a method in the convention of its problem, and the mass of the plan that it returned, if any."""

    f: Tensor
    g: Tensor
    returned_mass: float | None = None


@dataclass(frozen=True)
class Runner:
    """A method set on a problem.

    Args:
        run: The timed call: this many iterations, convergence checks off or as rare as the interface allows.
        answer: Its potentials from what ``run`` returned after this many iterations, untimed.
    """

    run: Callable[[int], Any]
    answer: Callable[[Any, int], Answer]


@dataclass(frozen=True)
class Method:
    """A peer with one setting.

    Args:
        name: Of the method, in tables.
        setting: What was chosen for it.
        prepare: Sets it on a problem; compiling and converting the input happens here, untimed.
        convention: Of the entropic term it solves for.
        package: What must be installed.
    """

    name: str
    setting: str
    prepare: Callable[[Problem], Runner]
    convention: str = "kl"
    package: str = "torch"

    @property
    def label(self) -> str:
        return f"{self.name} ({self.setting})" if self.setting else self.name


def need(module: str, package: str) -> ModuleType:
    """The module, or `Missing` with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"{package} is not installed: pip install {package} (extra: bench)") from error
