"""A setting of the whole process that several threads change for a while and put back."""

from __future__ import annotations

import threading
from typing import Any


class ProcessSetting:
    """What to put back: the value before the first of those who are changing it, once the last of them leaves.

    Each putting back what it found would leave behind what another had set meanwhile.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def enter(self, found: Any) -> Any:
        """Before a change; the result is for `leave`."""
        with self._lock:
            if self._inside == 0:
                self._before = found
            self._inside += 1
        return found

    def leave(self, found: Any) -> Any:
        """The value to put back."""
        with self._lock:
            self._inside -= 1
            return found if self._inside else self._before
