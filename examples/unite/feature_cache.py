"""Features of images on the disk: rows of float16 that are added as they are made, and found again by file."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from .checkpoint import write_whole

#: 2: of grey images of 16 bits as they look; 1 had them white.
FORMAT = "uotlib-unite-features-2"


class CacheError(ValueError):
    """A cache that cannot be used now."""


def file_key(file: Path) -> str:
    """What an image's row is found by: its real path, size and time of change."""
    state = file.stat()
    text = f"{os.path.realpath(file)}\0{state.st_size}\0{state.st_mtime_ns}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class FeatureCache:
    """Rows of one kind of feature, in a folder of their own: ``rows.f16`` and ``index.txt``.

    A row is written and synced before the line of the index that counts it, so that a process may be killed at any
    moment: lines without a row, rows without a line and a line cut short are cut off when it is opened again.  A line
    holds the image's `file_key` and the row's CRC-32, by which `verify` knows damage.  One process at a time has it
    open.

    Args:
        root: Folder of all caches.
        settings: What the features follow from, beside the images; each set of them has a cache of its own.
        width: Numbers in a row.
        say: Told what had to be thrown away.

    Raises:
        CacheError: Another process has it open.
    """

    def __init__(self, root: Path, settings: dict[str, object], width: int, say: Callable[[str], None]) -> None:
        self.width, self._say = width, say
        head = json.dumps({"format": FORMAT, "width": width, **settings}, sort_keys=True)
        self.folder = root / hashlib.sha256(head.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._head = head.encode() + b"\n"
        self._lock = (self.folder / "lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise CacheError(f"{self.folder} is in use by another process: wait for it, or give another --cache") \
                from error
        self._rows_path, self._index_path = self.folder / "rows.f16", self.folder / "index.txt"
        self._places: dict[str, int] = {}   # key -> row; of a key that was made again, the last
        self._sums: list[int] = []
        self._open()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for file in (self._rows, self._index, self._lock):
            file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, keys: Sequence[str], rows: np.ndarray) -> None:
        """Append rows (n, width) of float16; they are on the disk when this returns."""
        if rows.dtype != np.float16 or rows.shape != (len(keys), self.width):
            raise ValueError(f"rows must be ({len(keys)}, {self.width}) of float16, got {rows.shape} of {rows.dtype}")
        rows = np.ascontiguousarray(rows)
        sums = [zlib.crc32(row) for row in rows]
        _append(self._rows, rows.tobytes())
        _append(self._index, "".join(f"{key} {total:08x}\n" for key, total in zip(keys, sums, strict=True)).encode())
        for key, total in zip(keys, sums, strict=True):
            self._places[key] = len(self._sums)
            self._sums.append(total)

    def verify(self, keys: Sequence[str]) -> list[str]:
        """Compare the rows of these keys with their sums; those that differ are forgotten, told of, and returned."""
        rows, places = self.rows(), {key: self._places[key] for key in keys}
        damaged = [key for key, place in places.items() if zlib.crc32(rows[place].copy()) != self._sums[place]]
        for key in damaged:
            del self._places[key]
        if damaged:
            self._say(f"{self._rows_path}: {len(damaged)} of {len(places)} rows are damaged and made again")
        return damaged

    def places(self, keys: Sequence[str]) -> np.ndarray:
        """Numbers of the rows of these keys, for `rows`."""
        return np.array([self._places[key] for key in keys], dtype=np.int64)

    def rows(self) -> np.ndarray:
        """All rows, (count, width) of float16, mapped from the disk."""
        shape = (len(self._sums), self.width)
        return np.memmap(self._rows_path, np.float16, "r", shape=shape) if self._sums else np.empty(shape, np.float16)

    def _open(self) -> None:
        """Read the index, and cut both files to the rows that both have whole."""
        text = self._index_path.read_bytes() if self._index_path.exists() else b""
        if text and not text.startswith(self._head):
            self._say(f"{self._index_path} is no index of these features: all of them are made again")
            text = b""
        entries = _entries(text[len(self._head):]) if text else []
        size = self._rows_path.stat().st_size if self._rows_path.exists() else 0
        whole = min(len(entries), size // (2 * self.width))
        if whole < len(entries):
            self._say(f"{self._rows_path} is shorter than its index: {len(entries) - whole} rows are made again")
        lines = "".join(f"{key} {total:08x}\n" for key, total in entries[:whole]).encode()
        if text != self._head + lines:
            write_whole(self._index_path, lambda file: file.write(self._head + lines))
        self._rows, self._index = self._rows_path.open("ab"), self._index_path.open("ab")
        self._rows.truncate(whole * 2 * self.width)
        self._sums = [total for _, total in entries[:whole]]
        self._places = {key: place for place, (key, _) in enumerate(entries[:whole])}


def _entries(text: bytes) -> list[tuple[str, int]]:
    """The lines of an index, up to the first that is not whole."""
    found = []
    for line in text.split(b"\n")[:-1]:
        key, _, total = line.partition(b" ")
        if len(key) != 32 or len(total) != 8 or not line.replace(b" ", b"").isalnum():
            break
        try:
            found.append((key.decode(), int(total, 16)))
        except ValueError:
            break
    return found


def _append(file: BinaryIO, data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
