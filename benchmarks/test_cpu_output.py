"""What a run leaves behind: rows, targets, the README's table and the picture."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.cpu import figure, record, report, table
from benchmarks.cpu.backward import WRONG
from benchmarks.cpu.case import TARGETS
from benchmarks.cpu.machine import ROOT, machine
from benchmarks.cpu.measure import Sample, alternate, per_iteration
from benchmarks.cpu.record import Row
from benchmarks.cpu.targets import findings
from benchmarks.problems import ORDERS, clustered, draw

WHERE = {"cpu": "some processor", "cores": "2", "simd": "avx2", "date": "2026-01-01", "commit": "abc"}


def synthetic() -> list[Row]:
    """A run in which POT takes 30 times the library's time, is slow at the third target and wrong at the fourth."""
    rows = [Row("iteration", 4096, "C.sum()", eps=0.05, tau=1.0, seconds=1e-3, of_floor=1.0, of_ours=0.4),
            Row("iteration", 4096, "uotlib", eps=0.05, tau=1.0, setting="textbook", seconds=2.5e-3, of_floor=2.5,
                of_ours=1.0),
            Row("iteration", 4096, "GeomLoss", eps=0.05, tau=1.0, seconds=0.2, of_floor=200.0, of_ours=80.0)]
    endings = [("reached", 30.0), ("reached", 30.0), ("slow", 400.0), ("zero plan", 3.0)]
    for target, (status, ratio) in zip(TARGETS, endings, strict=True):
        mine = Row("arrival", 4096, "uotlib", eps=target.reg, tau=target.reg_m, target=target.violation,
                   setting="auto", seconds=0.1, of_floor=100.0, of_ours=1.0, iterations=25, status="reached",
                   violation=target.violation / 2, plan_error=1e-3)
        theirs = replace(mine, method="POT", setting="numpy", seconds=ratio / 10, of_ours=ratio, status=status,
                         violation=target.violation / 2 if status == "reached" else 0.3, plan_error=1.0)
        rows += [mine, theirs]
        rows += [replace(row, case="curve", seconds=seconds, violation=violation)
                 for row in (mine, theirs) for seconds, violation in ((ratio / 100, 0.5), (ratio / 10, 0.01))]
    rows.append(Row("memory", 4096, "uotlib", eps=1e-3, tau=0.1, of_floor=0.04, status="reached"))
    for case in ("gradient", "gradient memory"):
        mine = Row(case, 4096, "uotlib", eps=1e-2, tau=1.0, target=1e-4, loss="plan to C", of_floor=1.2, of_ours=1.0)
        rows += [mine, replace(mine, method="torch, two logsumexp", of_floor=60.0, of_ours=50.0),
                 replace(mine, method="POT", of_floor=3.6, of_ours=3.0)]
    for row, backward, error in zip(rows[-6:-3], (0.4, 15.0, 2.0), (1e-3, 0.4, 1e-4), strict=True):
        row.seconds, row.backward, row.gradient_error = row.of_ours, backward, error
        row.status = "wrong" if error > WRONG else "reached"
    return rows


def test_cpu_csv_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "cpu.csv"
    rows = synthetic()
    record.write(rows, path, machine(0.0))
    again, where = record.read(path)
    assert again == rows
    assert set(where) == set(machine())
    with path.open(newline="") as file:
        line = next(csv.DictReader(file))
    assert all(line[name] for name in ("cpu", "cores", "threads", "simd", "versions", "commit", "date"))
    assert str(ROOT) not in path.read_text()


def test_cpu_csv_from_before_a_column_was_there_is_read(tmp_path):
    path = tmp_path / "cpu.csv"
    record.write(synthetic()[:1], path, WHERE)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    place = lines[0].index("gradient_error")
    path.write_text("\n".join(",".join(line[:place] + line[place + 1:]) for line in lines) + "\n")
    assert record.read(path) == (synthetic()[:1], WHERE)


def test_cpu_targets_are_judged():
    found = {item.subject: item for item in findings(synthetic())}
    assert found["iteration, eps 0.05, shuffled"].reached is False  # 2.5 > 1.8
    assert found["iteration of GeomLoss"].reached is True
    assert found["iteration of OTT-JAX"].reached is None
    assert found[str(TARGETS[1])].reached is True  # 30 >= 20
    assert found[str(TARGETS[2])].reached is True  # not there after 400 times our time, and 50 are asked for
    assert found[str(TARGETS[3])].found == "no peer arrives: every plan is wrong"
    assert found["extra memory of a solve"].reached is True
    assert found["backward, plan to C"].found == "0.67"  # 0.4 s of 1 s
    assert found["backward, plan to C"].reached is True
    assert found["backward, plan to x"].reached is None
    assert found["forward and backward"].found == "50.0"
    assert found["memory of forward and backward"].reached is True


def test_cpu_targets_of_the_backward_want_the_gradient_right():
    rows = [replace(row, status="wrong") if row.method == "uotlib" else row for row in synthetic()]
    assert {item.subject: item.reached for item in findings(rows)}["backward, plan to C"] is False


def test_cpu_targets_are_undecided_where_a_peer_was_cut_short():
    rows = [replace(row, of_ours=10.0) if row.status == "slow" else row for row in synthetic()]
    assert {item.subject: item.reached for item in findings(rows)}[str(TARGETS[2])] is None
    ours = [replace(row, status="slow") if row.method == "uotlib" and row.case == "arrival" else row for row in rows]
    assert {item.subject: item.reached for item in findings(ours)}[str(TARGETS[2])] is False


def test_cpu_terminal_shows_what_is_wrong():
    lines = list(report.tables(synthetic()))
    text = "\n".join(lines)
    assert "30.0 x" in text
    assert "> 400.0 x" in text
    assert "WRONG: zero plan, plan error 1" in text
    assert "NOT reached" in text
    assert "forward and backward, plan to C, to violation 0.0001: 4096 x 4096, eps 0.01, tau 1" in text
    assert "WRONG gradient, off by 0.4 of it" in text
    assert "memory of forward and backward, plan to C, of C: 4096 x 4096, eps 0.01, tau 1" in text
    widths = {len(line) for line in report.aligned([["a", "1"], ["bbb", "22"]])}
    assert widths == {7}


def test_cpu_table_is_written_between_the_markers(tmp_path, capsys):
    path, readme = tmp_path / "cpu.csv", tmp_path / "README.md"
    record.write(synthetic(), path, WHERE)
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    arguments = ["--csv", str(path), "--readme", str(readme)]
    assert table.main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()
    assert table.main(arguments) == 0
    assert table.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    (pot,) = [line for line in text.splitlines() if line.startswith("| POT")]
    assert [cell.strip() for cell in pot.strip("|").split("|")] == [
        "POT", "", "30", "30", "> 400 (is at 0.3)", "zero plan", "3.0"]
    assert "| 1 (2.5 × `C.sum()`) | 1 (25 passes) |" in text
    assert "ε 1e-2, τ 1, and the plan's gradient to C |" in text
    assert "| 1 (backward 0.7 × forward) |" in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        table.main(arguments)


def test_cpu_table_of_the_readme_is_that_of_the_results():
    """One command writes it: python -m benchmarks.cpu.table."""
    assert table.main(["--check"]) == 0


def test_cpu_picture_is_drawn_and_small(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install matplotlib")
    path = tmp_path / "pictures" / "benchmark.png"
    figure.draw(synthetic(), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 10_000 < len(content) < 200_000
    with pytest.raises(ValueError, match="no curves"):
        figure.draw([], path)


def test_cpu_times_take_turns():
    seen = []
    samples = alternate({name: lambda name=name: seen.append(name) for name in "ab"}, 3)
    assert seen == list("ab") * 4  # the first round is not counted
    assert [len(samples[name].times) for name in "ab"] == [3, 3]
    assert Sample((3.0, 1.0, 2.0)).median == 2.0
    assert Sample((1.0, 2.0, 3.0)).quartiles == (1.5, 2.5)


def test_cpu_iterations_are_timed_without_what_a_call_does_once(monkeypatch):
    """A call that takes 5 s and 2 s an iteration costs 2 s an iteration."""
    clock = [0.0]
    monkeypatch.setattr("benchmarks.cpu.search.time.perf_counter", lambda: clock[0])

    def run(count: int) -> None:
        clock[0] += 5 + 2 * count

    def floor() -> None:
        clock[0] += 0.5

    samples, floors = per_iteration({"run": run}, floor, 3, seconds=0.2)
    assert samples["run"].times == (2.0, 2.0, 2.0)
    assert floors.median == 0.5


@pytest.mark.parametrize("order", ORDERS)
def test_cpu_orders_are_problems_alike(order):
    cost, a, b = draw(order, 50, 70, seed=3)
    assert cost.shape == (50, 70)
    assert 0 <= float(cost.min()) <= float(cost.max()) <= 2
    assert float(a.sum()) == pytest.approx(1)
    assert float(b.sum()) == pytest.approx(1)
    assert bool((draw(order, 50, 70, seed=4)[0] != cost).any())


def test_cpu_orders_differ_in_what_lies_together():
    """Clustered is a permutation of shuffled; there and in raster order, neighbouring rows are alike."""
    costs = {order: draw(order, 256, seed=1)[0] for order in ORDERS}
    torch.testing.assert_close(costs["clustered"].flatten().sort().values, costs["shuffled"].flatten().sort().values)
    step = {order: float((cost[1:] - cost[:-1]).abs().mean()) for order, cost in costs.items()}
    assert max(step["clustered"], step["raster"]) < 0.7 * step["shuffled"]
    with pytest.raises(ValueError, match="order"):
        clustered(8, order="sorted")


def test_cpu_not_a_number_is_never_an_arrival():
    rows = [replace(row, status="not finite", violation=math.nan) if row.method == "POT" else row
            for row in synthetic()]
    assert "not finite" in "\n".join(report.tables(rows))
