"""Ctrl-C at a program that is busy in compiled code."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

#: A shell's background processes ignore Ctrl-C, and so do theirs.
HEEDED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def interrupted(code: str, busy_for: float = 0.0) -> str:
    """Standard error of a program that is interrupted after it has said "ready" and gone on for so many seconds."""
    command = [sys.executable, "-c", HEEDED + textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            if busy_for:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout=busy_for)
            process.send_signal(signal.SIGINT)
            return process.communicate(timeout=20)[1]
        finally:
            process.kill()
