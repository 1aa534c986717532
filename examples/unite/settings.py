"""Settings by name: `section.name=value` as text, and what differs between two configurations."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from .config import Config


def assign(config: Config, text: str) -> Config:
    """The configuration with one setting changed, ``text`` being ``section.name=value``.

    The value is read as the setting's type; ``none`` is None where that is allowed, tuples are separated by commas.

    Raises:
        ValueError: naming the setting that does not exist or the value that does not fit.
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not equals or not dot:
        raise ValueError(f"a setting is written section.name=value, got {text!r}")
    sections = [item.name for item in dataclasses.fields(config) if item.name != "preset"]
    if section not in sections:
        raise ValueError(f"unknown section {section!r} in {text!r}, known are {', '.join(sections)}")
    part = getattr(config, section)
    kinds = typing.get_type_hints(type(part))
    if key not in kinds:
        raise ValueError(f"unknown setting {section}.{key}, known are {', '.join(sorted(kinds))}")
    try:
        read = _read(value.strip(), kinds[key])
    except ValueError:
        raise ValueError(f"{section}.{key} must be {_words(kinds[key])}, got {value.strip()!r}") from None
    return config.replace(section, **{key: read})


def differences(old: Config, new: Config, section: str) -> list[str]:
    """Lines ``section.name: old -> new`` for the settings of one section that differ."""
    before, after = getattr(old, section), getattr(new, section)
    return [f"{section}.{item.name}: {getattr(before, item.name)!r} -> {getattr(after, item.name)!r}"
            for item in dataclasses.fields(before)
            if getattr(before, item.name) != getattr(after, item.name)]


def _read(text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        if text.lower() == "none" and type(None) in kind.__args__:
            return None
        (kind,) = (each for each in kind.__args__ if each is not type(None))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return kind(text)


def _words(kind: Any) -> str:
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    if isinstance(kind, types.UnionType):
        return " or ".join("none" if each is type(None) else words.get(each, str(each)) for each in kind.__args__)
    return words.get(kind, str(kind))
