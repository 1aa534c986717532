"""The instruction sets below the one that a test process runs: in processes of their own, since it is chosen once."""

from __future__ import annotations

import os
import subprocess
import sys

from uotlib._extension import extension

LEVELS = ["baseline", "avx2", "avx512"]


def passes_at_lower_levels(file: str, chosen: str) -> None:
    """Run the tests of a file that ``-k`` chooses at every lower level; on a machine with no other there is none."""
    for level in LEVELS[:LEVELS.index(extension.simd_level())]:
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file,
                               "-k", f"({chosen}) and not lower_instruction_sets"],
                              env={**os.environ, "UOTLIB_SIMD": level}, capture_output=True, text=True)
        assert done.returncode == 0, f"{level}: {done.stdout}"
