"""What a section is given: device, sizes, timers, and rows that are written down one by one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from benchmarks.cpu.methods.base import Missing

from .timing import RehearsalTimer, Timer

Row = dict[str, Any]
Size = TypeVar("Size")
#: Endings of a row after which a later run measures it again.
UNSETTLED = ("failed", "out of time")


@dataclass
class Stage:
    """One section of one run.

    Args:
        device: Where everything is measured.
        rehearsing: No GPU: tiny sizes, Triton's interpreter, times without meaning.
        hardware: `environment.describe`.
        ceilings: What the section of that name measured, by name; empty where it has not run.
        done: Rows of this section that are kept.
        send: Takes ("start", key, {}) before a row is measured and ("row", key, row) after it.
    """

    device: torch.device
    rehearsing: bool
    hardware: dict[str, Any]
    ceilings: dict[str, float]
    done: Sequence[Row]
    send: Callable[[tuple[str, Row, Row]], None]
    timer: Timer = field(init=False)

    def __post_init__(self) -> None:
        self.timer = (RehearsalTimer if self.rehearsing else Timer)(self.device)

    def choose(self, real: Size, rehearsed: Size) -> Size:
        return rehearsed if self.rehearsing else real

    def row(self, key: Row, measure: Callable[[], Row]) -> Row:
        """Measure what ``key`` names, unless it is known; whatever happens is the row's ending.

        ``measure`` returns columns.  One is "correct", where the row is judged: False is an error of the library if
        the method is its own, and is said of a peer as its status "wrong".
        """
        known = self.known(key)
        if known is not None:
            return known
        self.send(("start", key, {}))
        try:
            found = {"status": "ok"} | measure()
            if found.get("correct") is False:
                found["status"] = "wrong"
        except torch.OutOfMemoryError:
            found = {"status": "out of memory"}
        except Missing as absent:
            found = {"status": "missing", "note": str(absent)}
        except Exception as failure:  # the other rows are still worth having
            found = {"status": "failed", "note": f"{type(failure).__name__}: {failure}"[:400],
                     "trace": traceback.format_exc()[-2500:]}
        row = {**key, **found}
        self.send(("row", key, row))
        self.timer.wait()  # raises where the device is lost, and ends the section
        self.timer.release()
        return row

    def known(self, key: Row) -> Row | None:
        """The row of this key, if it is kept from before."""
        return next((row for row in self.done if all(row.get(name) == value for name, value in key.items())), None)

    def share_of_copy(self, byte_count: float, seconds: float) -> float | None:
        """Achieved bandwidth over the measured copy's."""
        copy = self.ceilings.get("copy_bytes_per_s")
        return None if copy is None or seconds <= 0 else byte_count / seconds / copy
