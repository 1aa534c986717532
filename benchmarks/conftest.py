"""One run of the suite: its settings, its threads, and what it leaves behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from benchmarks.cpu import figure, machine, record, report
from benchmarks.cpu.bench import BUDGET, SIZES, Bench

RUN = pytest.StashKey[Bench]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUN] = _bench(config)


def _bench(config: pytest.Config) -> Bench:
    if not config.getoption("--benchmark"):
        return Bench.tiny(say=lambda _: None)
    sizes = config.getoption("--benchmark-sizes")
    try:
        chosen = tuple(int(word) for word in sizes.split(",")) if sizes else SIZES
    except ValueError:
        chosen = ()
    if not chosen or min(chosen) < 4:
        raise pytest.UsageError(f"--benchmark-sizes must be numbers of points with commas between, got {sizes!r}")
    budget = config.getoption("--benchmark-budget")
    if budget is not None and not budget > 0:
        raise pytest.UsageError(f"--benchmark-budget must be positive, got {budget:g}")

    def say(line: str) -> None:
        """Now, not with the captured output of a test that fails."""
        plugins = config.pluginmanager
        capture, reporter = plugins.get_plugin("capturemanager"), plugins.get_plugin("terminalreporter")
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            (reporter.write_line if reporter is not None else print)(line)

    return Bench(True, chosen, BUDGET if budget is None else budget, config.getoption("--benchmark-out"), say)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A case takes as long as it takes, and what checks the suite comes before what measures."""
    if config.stash[RUN].measuring:
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
        items.sort(key=lambda item: "test_cpu_cases" in item.nodeid)


@pytest.fixture(scope="session")
def run(pytestconfig: pytest.Config) -> Bench:
    """The settings; before the first case, a look at what else the machine does."""
    run = pytestconfig.stash[RUN]
    if run.measuring:
        run.busy = machine.others_busy()
        if run.busy is not None and run.busy > machine.BUSY:
            run.say(f"    other processes keep {run.busy:.1f} cores busy: these figures will show it")
    return run


@pytest.fixture(autouse=True)
def threads(run: Bench) -> Iterator[None]:
    """All cores where it measures, whatever another conftest.py chose; one where it only runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(run.threads)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tables, the CSV and the picture of what was measured, even of a run that was interrupted."""
    run = config.stash[RUN]
    rows = run.recorder.rows
    if not run.measuring or not rows:
        return
    torch.set_num_threads(run.threads)
    busy = [part for part in (run.busy, machine.others_busy()) if part is not None]
    where = machine.machine(max(busy, default=None))
    terminalreporter.section("benchmarks")
    for line in report.tables(rows):
        terminalreporter.write_line(line)
    terminalreporter.write_line("")
    terminalreporter.write_line(", ".join(f"{name}: {text}" for name, text in where.items()))
    record.write(rows, run.csv, where)
    terminalreporter.write_line(f"wrote {run.csv.name}, {len(rows)} rows")
    if busy and max(busy) > machine.BUSY:
        terminalreporter.write_line(f"WARNING: other processes kept {max(busy):.1f} cores busy before or after; "
                                    "threads that wait for each other in each iteration suffer most", yellow=True)
    try:
        figure.draw(rows, run.png)
        terminalreporter.write_line(f"wrote {run.png.name}")
    except (ImportError, ValueError) as reason:
        terminalreporter.write_line(f"no picture: {reason}")
