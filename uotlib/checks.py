"""Checks of single settings, and their words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ValueError(f"{name} must be {listed}, got {value!r}")


def check_positive(name: str, value: object, *, allow_inf: bool = False, other: str = "") -> None:
    """Raise TypeError or ValueError unless ``value`` is a positive number, finite unless ``allow_inf``.

    ``other`` says what else the argument might have been.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number{other}, got {type(value).__name__}")
    if not value > 0 or (value == math.inf and not allow_inf):
        raise ValueError(f"{name} must be positive{'' if allow_inf else ' and finite'}, got {value}")


def check_penalty(name: str, value: object) -> None:
    """Raise unless ``value`` is a tau or a pair of them, inf included."""
    if not isinstance(value, tuple | list):
        check_positive(name, value, allow_inf=True)
        return
    if len(value) != 2:
        raise ValueError(f"{name} must be a number or a pair of numbers, got {len(value)} values")
    for side, tau in enumerate(value):
        check_positive(f"{name}[{side}]", tau, allow_inf=True)


def check_flag(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_floating(name: str, value: object) -> Tensor:
    """The value, or TypeError unless it is a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {value.dtype}")
    return value
