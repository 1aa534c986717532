"""`python -m examples.unite.check --data NAME --root DIR`: is the data there, and can training read it?

Says what there is beside the published counts, what is missing and where to get it, and what is wrong, with names of
files.  The exit status is 0 where training can start and 1 where it cannot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .data import NAMES
from .data.report import EXAMPLES
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
    print("training can start" if found.right else "training cannot start")
    return 0 if found.right else 1


if __name__ == "__main__":
    raise SystemExit(main())
