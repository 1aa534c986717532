"""Every check and figure that needs a GPU, in one command: `python -m benchmarks.gpu`.

Each section runs in a process of its own for a limited time, most worth first, and the record is written after each.
`--resume` completes a record that a first call had no time for; `--rehearse` goes through all of it without a GPU.
Exit status: 0 all correct, 1 something wrong, 2 it could not begin.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .sections import Section

#: Seconds that are left for the end of a call.
RESERVE = 10.0


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes three quarters of the device
    if arguments.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported

    import torch

    if arguments.rehearse:
        import torch._dynamo  # forks share what is there, and most sections would import it
    if not arguments.rehearse and not torch.cuda.is_available():
        print("benchmarks.gpu needs a GPU, and torch sees none here; --rehearse goes through all of it without one.",
              file=sys.stderr)
        return 2

    from . import environment, record

    device = torch.device("cpu" if arguments.rehearse else "cuda")
    current = record.begin(environment.describe(device, arguments.commit), arguments.rehearse)
    target = record.path(arguments.out or record.folder(arguments.rehearse), current)
    if arguments.resume:
        try:
            current = record.resume(target, current)
        except ValueError as reason:
            print(reason, file=sys.stderr)
            return 2
    print(record.line(current["environment"]), flush=True)
    _measure(current, target, arguments)
    wrong = [text for name, section in current["sections"].items() for text in record.wrong(name, section)]
    for text in wrong:
        print(f"WRONG {text}")
    open_ones = [name for name in arguments.sections
                 if current["sections"].get(name, {}).get("status") not in ("done", "failed")]
    if open_ones:
        print(f"not finished: {', '.join(open_ones)}: --resume goes on")
    print(f"{len(wrong) or 'nothing'} wrong; {target.name} written")
    return 1 if wrong else 0


def _measure(current: dict[str, Any], target: Path, arguments: argparse.Namespace) -> None:
    """The sections that are asked for and not done, while there is time."""
    from .sections import SECTIONS

    deadline = time.monotonic() + 60 * arguments.minutes - RESERVE
    for section in SECTIONS:
        known = current["sections"].get(section.name, {"status": "", "rows": [], "seconds": 0.0})
        left = deadline - time.monotonic()
        if section.name in arguments.sections and known["status"] != "done" and left > 0:
            print(f"\n{section.name}: {section.purpose}", flush=True)
            _run(section, current, known, target, min(section.limit, left), arguments.rehearse)


def _run(section: Section, current: dict[str, Any], known: dict[str, Any], target: Path, limit: float,
         rehearse: bool) -> None:
    """One section; the record is written after each of its rows."""
    from . import isolated, record

    begin = time.monotonic()

    def write(ending: isolated.Ending) -> None:
        record.add(current, section.name, ending, known["seconds"] + time.monotonic() - begin)
        record.write(current, target)

    def keep(rows: list[dict[str, Any]]) -> None:
        print(f"  {record.line(rows[-1])}", flush=True)
        write(isolated.Ending("running", rows))

    ending = isolated.run(
        isolated.Task(section.module, rehearse, current["environment"], record.ceilings(current), known["rows"],
                      "fork" if rehearse else "spawn"), limit, keep)
    write(ending)
    print(f"  {ending.status}, {time.monotonic() - begin:.0f} s {ending.note[-1500:]}", flush=True)


def _parser() -> argparse.ArgumentParser:
    from .sections import SECTIONS

    names = [section.name for section in SECTIONS]

    def chosen(text: str) -> list[str]:
        words = text.split(",")
        unknown = [word for word in words if word not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"no section {unknown[0]!r}: there are {', '.join(names)}")
        return words

    def positive(text: str) -> float:
        value = float(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="sections:\n" + "\n".join(f"  {section.name:14}{section.purpose}" for section in SECTIONS))
    parser.add_argument("--sections", type=chosen, default=names, metavar="A,B", help="only these (default: all)")
    parser.add_argument("--minutes", type=positive, default=7.5, help="no longer than this (default: 7.5)")
    parser.add_argument("--out", type=Path, help="folder of the record (default: benchmarks/results; rehearsed: out)")
    parser.add_argument("--resume", action="store_true",
                        help="keep what a record of the same sources and device has, and measure the rest")
    parser.add_argument("--commit", help="what to call the commit where git does not say")
    parser.add_argument("--rehearse", action="store_true",
                        help="no GPU: every section at tiny sizes under Triton's interpreter, times without meaning")
    return parser


if __name__ == "__main__":
    sys.exit(main())
