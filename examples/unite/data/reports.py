"""The report of any source, by name."""

from __future__ import annotations

import os

from . import module_of
from .report import Report


def report_of(name: str, root: str | os.PathLike[str] | None, decode: bool = False) -> Report:
    """What there is of a source.

    Args:
        name: One of `NAMES`.
        root: Its folder; of avatars that of the cache, None for the usual one.
        decode: Read every picture too; those of one's own folder are read in any case.

    Raises:
        ValueError: There is no such source, or no folder for one that needs it.
    """
    return module_of(name, root).report(root, decode)
