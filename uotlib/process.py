"""Settings of the whole process that several threads change for a while and put back.

Each putting back what it found would leave behind what another had set meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch


class SharedSetting:
    """One that all threads see: changed while any of them wants it, put back by the last."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], None]) -> None:
        self._read, self._write = read, write
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    @contextlib.contextmanager
    def set_to(self, value: Any) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._before = self._read()
            self._inside += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._write(self._before)


class _Threads(threading.local):
    """How many `on_threads` a thread is inside of."""

    depth = 0


_HERE, _LOCK = _Threads(), threading.Lock()
#: Threads of Python that are inside, and torch's count before the first of them was.
_STATE = {"inside": 0, "before": 0}


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch's operations of this thread on so many of its own.

    The solver's own vectors take microseconds on one; on two, each operation may wait for a busy core, and OpenMP's
    idle thread goes on spinning on the core that the backend's threads need.

    Torch keeps a count for each thread, and the last one set is what new threads begin with.  So every thread ends with
    the count from before the first of those that are inside now.
    """
    outermost = _HERE.depth == 0
    with _LOCK:
        found = torch.get_num_threads()
        if outermost:
            if _STATE["inside"] == 0:
                _STATE["before"] = found
            _STATE["inside"] += 1
            found = _STATE["before"]
        torch.set_num_threads(count)
    _HERE.depth += 1
    try:
        yield
    finally:
        _HERE.depth -= 1
        with _LOCK:
            _STATE["inside"] -= outermost
            torch.set_num_threads(found)
