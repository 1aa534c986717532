"""Tile tables that were tuned on a GPU, kept between processes: one JSON file a device and version of Triton.

The folder is ``UOTLIB_CACHE``, by default ``~/.cache/uotlib``.  Without a file the default table is used, which depends
on nothing; a file that cannot be right is named in a warning and not used.  `uotlib.kernels.tune` writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from .tiles import Tile, TileTable

#: What a table holds beside tiles is no matter of tuning.
TUNABLE = tuple(part.name for part in fields(TileTable) if part.type in ("Tile", "tuple[Tile, ...]"))
MOST_WARPS = 32


def table_path(device: str, triton_version: str) -> Path:
    """Where the table of a device lies, whether it exists or not."""
    folder = Path(os.environ.get("UOTLIB_CACHE") or "~/.cache/uotlib").expanduser()
    name = "-".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-") for part in (device, "triton", triton_version))
    return folder / f"tiles-{name}.json"


def save(table: TileTable, device: str, triton_version: str) -> Path:
    """Keep a table; a process that reads at the same time sees the old file or the new one."""
    path = table_path(device, triton_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"device": device, "triton": triton_version, "defaults": _defaults(),
              "tiles": {name: asdict(table)[name] for name in TUNABLE}}
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(record, indent=1) + "\n")
    part.replace(path)
    return path


def _defaults() -> str:
    """Digest of the default table: tiles that were tuned beside other defaults may be those that a later one mended."""
    return hashlib.sha256(repr(TileTable()).encode()).hexdigest()[:16]


def load(path: Path, device: str, triton_version: str) -> TileTable:
    """The table of a file; what it does not name is the default's.

    Raises:
        ValueError: naming the file, if it is not such a table, or another device's, Triton's or uotlib's.
    """
    try:
        record = json.loads(path.read_text())
        for name, wanted in (("device", device), ("triton", triton_version), ("defaults", _defaults())):
            if record[name] != wanted:
                raise ValueError(f"{name} is {record[name]!r}, not {wanted!r}")
        unknown = record["tiles"].keys() - set(TUNABLE)
        if unknown:
            raise ValueError(f"no such tiles: {', '.join(sorted(unknown))}")
        found: dict[str, Any] = {name: _tiles(name, value) for name, value in record["tiles"].items()}
        return replace(TileTable(), **found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a table of tiles for {device} and Triton {triton_version} "
                         f"({type(error).__name__}: {error})") from error


def table_for(device: str, triton_version: str) -> tuple[TileTable, str]:
    """(the table to use on a device, where it comes from in words)."""
    path = table_path(device, triton_version)
    if not path.exists():
        return TileTable(), f"default ({path} does not exist)"
    try:
        return load(path, device, triton_version), f"tuned ({path})"
    except ValueError as error:
        warnings.warn(f"{error}; the default tiles are used. Delete the file, or run python -m uotlib.kernels.tune",
                      RuntimeWarning, stacklevel=2)
        return TileTable(), f"default ({path} is not valid)"


def _tiles(name: str, value: Any) -> Tile | tuple[Tile, ...]:
    several = isinstance(getattr(TileTable(), name), tuple)
    if isinstance(value, list) != several:
        raise ValueError(f"{name} must be {'a list of tiles' if several else 'one tile'}, got {value!r}")
    return tuple(_tile(name, entry) for entry in value) if several else _tile(name, value)


def _tile(name: str, value: dict[str, int]) -> Tile:
    for part, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1 << 16:
            raise ValueError(f"{part} of {name} must be a positive integer, got {number!r}")
    tile = Tile(**value)
    for part in ("rows", "cols", "warps"):
        number = getattr(tile, part)
        if number & (number - 1):
            raise ValueError(f"{part} of {name} must be a power of two, got {number}")
    if tile.warps > MOST_WARPS:
        raise ValueError(f"warps of {name} must be at most {MOST_WARPS}, got {tile.warps}")
    return tile
