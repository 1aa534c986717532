"""`python -m examples.unite.check --data NAME --root DIR`: is the data there, and can training read it?

Says what there is beside the published counts, what is missing and where to get it, and what is wrong, with names of
files, and with which settings training can start.  The exit status is 0 where it can with those of the source's task,
and 1 where it cannot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import task
from .config import preset
from .data import NAMES
from .data.report import EXAMPLES, Report
from .data.reports import report_of


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report of a source; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.unite.check", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--data", choices=NAMES, required=True)
    parser.add_argument("--root", help="the folder of the data, or the avatars' cache")
    parser.add_argument("--decode", action="store_true", help="read every picture too, which takes minutes")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N",
                        help="messages of each kind of problem (%(default)s)")
    options = parser.parse_args(argv)
    if options.examples < 1:
        parser.error(f"--examples must be 1 or more, got {options.examples}")
    try:
        found = report_of(options.data, options.root, options.decode)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for line in found.lines(options.examples):
        print(line)
    starts, words = verdict(found)
    print(words)
    return 0 if starts else 1


def verdict(found: Report) -> tuple[bool, str]:
    """Whether training starts with the settings of the source's task, and the words for it."""
    if not found.right_for_pseudo_pairs:
        return False, "training cannot start"
    if found.right and not found.unlisted:
        return True, "training can start"
    alone = "pseudo pairs alone (train.pseudo_share=1)"
    if found.name in task.names() and task.apply(preset("default"), found.name).train.pseudo_share == 1:
        return True, f"training can start with --task {found.name}, which has {alone}"
    return False, f"training can start with {alone}, and not with other settings"


if __name__ == "__main__":
    raise SystemExit(main())
