"""A section in a process of its own: one that hangs, dies or loses the device takes no other with it."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from .stage import UNSETTLED, Row, Stage

#: Seconds in which a row must end; one that does not is given up, and the section goes on with the next.
ROW_LIMIT = 100.0


@dataclass(frozen=True)
class Task:
    """What the process needs to know.

    Args:
        module: Has the section's ``measure(stage)``.
        rehearsing, hardware, ceilings, done: Of `Stage`.
        start: How the process begins.  A CUDA context does not outlive a fork; without one, a fork spares the imports.
    """

    module: str
    rehearsing: bool
    hardware: dict[str, Any]
    ceilings: dict[str, float]
    done: list[Row] = field(default_factory=list)
    start: str = "spawn"


@dataclass
class Ending:
    """How a section ended: "done", "out of time" or "failed", with the reason; "running" while it has not."""

    status: str
    rows: list[Row]
    note: str = ""


def run(task: Task, limit: float, keep: Callable[[list[Row]], None], row_limit: float = ROW_LIMIT) -> Ending:
    """Run a section to its end or for ``limit`` seconds, in as many processes as it takes past rows that kill one.

    ``keep`` is given all rows after each one, so that they count whatever comes after them.  Of ``task.done``, those
    that did not end are tried again.
    """
    rows, deadline = [row for row in task.done if row["status"] not in UNSETTLED], time.monotonic() + limit
    while True:
        before = len(rows)
        ending = _attempt(replace(task, done=rows), deadline, keep, row_limit)
        rows = ending.rows
        if ending.status != "failed" or len(rows) == before:
            return ending


def _attempt(task: Task, deadline: float, keep: Callable[[list[Row]], None], row_limit: float) -> Ending:
    context = multiprocessing.get_context(task.start)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(task, there))  # type: ignore[attr-defined]
    process.start()
    there.close()
    rows, begun, until = list(task.done), None, deadline

    def lost(status: str, note: str) -> Ending:
        """The end of a process in the middle of a row, if it was in one."""
        if begun is not None:
            rows.append({**begun, "status": status, "note": note})
            keep(rows)
        return Ending("failed", rows, note)

    try:
        while here.poll(max(0.0, until - time.monotonic())):
            kind, key, content = here.recv()
            if kind == "start":
                begun, until = key, min(deadline, time.monotonic() + row_limit)
            elif kind == "row":
                begun, until = None, deadline
                rows.append(content)
                keep(rows)
            else:
                return Ending(kind, rows, content.get("note", ""))
        if until < deadline:
            return lost("out of time", f"more than {row_limit:g} s")
        return Ending("out of time", rows, f"in {begun}" if begun else "")
    except EOFError:
        process.join(10)
        return lost("failed", f"the process ended with {process.exitcode}")
    finally:
        here.close()
        _end(process)


def _end(process: Any) -> None:
    """The process with all that it started, which are a group of their own."""
    process.join(1)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nobody is left, or it has not got as far as its own group
        process.kill()
    process.join()


def _child(task: Task, pipe: Connection) -> None:
    os.setsid()
    if task.rehearsing:
        torch.set_num_threads(1)
        torch.manual_seed(0)  # what is measured is drawn afresh each time
    device = torch.device("cpu" if task.rehearsing else "cuda")
    stage = Stage(device, task.rehearsing, task.hardware, task.ceilings, task.done, pipe.send)
    try:
        importlib.import_module(task.module).measure(stage)
        pipe.send(("done", {}, {}))
    except Exception:
        pipe.send(("failed", {}, {"note": traceback.format_exc()[-2500:]}))
