"""`python -m benchmarks.gpu` where there is no GPU: what it says, its rehearsal, and what keeps rows apart."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import (
    build,
    correctness,
    environment,
    feature_problem,
    isolated,
    iteration,
    native_tests,
    ours,
    problems,
    record,
    timing,
)
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.stage import Stage
from uotlib import unbalanced_sinkhorn

pytest.importorskip("triton", reason="needs triton: pip install triton")

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def entry(*arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], cwd=ROOT, env=inherited,
                          capture_output=True, text=True, timeout=560, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_says_that_there_is_no_gpu(tmp_path):
    run = entry("--out", str(tmp_path))
    assert run.returncode == 2
    assert run.stdout == ""
    assert "needs a GPU" in run.stderr
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_unknown_sections_are_named():
    run = entry("--sections", "dense,sparse")
    assert run.returncode == 2
    assert "no section 'sparse': there are build, ceilings" in run.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rehearsal_goes_through_everything(tmp_path):
    """One test, because one rehearsal takes a while: every section, what is in the record, and that it is complete."""
    run = entry("--rehearse", "--out", str(tmp_path))
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-3000:]
    found = json.loads((tmp_path / "rehearsal.json").read_text())
    check_sections(found)
    check_methods(found["sections"])
    run = entry("--rehearse", "--resume", "--out", str(tmp_path))
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "rehearsal.json").read_text()) == found, "measured again"


def check_sections(found: record.Record) -> None:
    """Every section is done, and every row of the library's is right."""
    assert list(found["sections"]) == [section.name for section in SECTIONS]
    for name, section in found["sections"].items():
        assert section["status"] == "done", f"{name}: {section['note']}"
        assert section["rows"], f"{name} has no rows"
        for row in section["rows"]:
            assert row["status"] in ("ok", "wrong", "slow", "missing"), row
            asked_for_precision = "," in row.get("method", "")  # which a version of the library may not have
            assert asked_for_precision or not record.is_ours(row) or row["status"] == "ok", row
    assert found["wrong"] == 0
    where = found["environment"]
    assert where["rehearsal"] is True
    assert {"device", "driver", "torch", "triton", "python", "commit", "dirty", "date"} <= where.keys()
    assert (where["kernels"], where["sources"]) == (environment.digest(environment.KERNELS),
                                                    environment.digest(environment.SOURCES))


def check_methods(sections: dict[str, dict[str, Any]]) -> None:
    """What is timed was judged, and peers took part."""
    for name in ("dense", "features", "backward", "small", "arrival"):
        rows = sections[name]["rows"]
        assert all(row["seconds"] > 0 for row in rows if row["status"] == "ok")
        assert all(row["correct"] is True for row in rows if record.is_ours(row) and "," not in row["method"])
    methods = {name: {row["method"].partition(",")[0] for row in section["rows"] if row["status"] != "missing"}
               for name, section in sections.items() if "method" in section["rows"][0]}
    common = {"torch", "torch.compile", "GeomLoss"}
    assert methods["dense"] >= {"uotlib sinkhorn", "uotlib auto", "POT", "POT translation-invariant", *common}
    assert methods["features"] >= {"uotlib sinkhorn", "torch.compile", "GeomLoss"}
    assert methods["backward"] >= {"uotlib", *common}
    assert methods["small"] >= {"uotlib sinkhorn", "uotlib auto", *common}
    assert methods["arrival"] >= {"uotlib auto", "torch.compile", "GeomLoss", "POT"}
    assert {row["operation"] for row in sections["correctness"]["rows"]} == set(correctness.ERRORS)
    *trainings, stages = sections["unite"]["rows"]
    assert [training["precision"] for training in trainings] == ["no", "bf16"]
    for training in trainings:
        assert training["steps"] == 2
        assert training["images_per_s"] > 0
    assert trainings[0]["first_loss"] != trainings[1]["first_loss"]  # of one seed: the precision is the row's
    assert 0 < stages["matching_share"] < 1


def misbehave(stage: Stage) -> None:
    """Rows of which one ends its process and one never ends."""
    actions = {"fine": dict, "dies": lambda: os._exit(3), "fine again": dict, "hangs": lambda: time.sleep(60),
               "raises": lambda: 1 / 0, "last": dict}
    for name, action in actions.items():
        stage.row({"method": "uotlib", "name": name}, action)


def test_no_row_takes_the_others_with_it(monkeypatch):
    module = types.ModuleType("misbehaving")
    module.measure = misbehave  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "misbehaving", module)
    task = isolated.Task("misbehaving", True, {}, {}, start="fork")
    kept: list[list[str]] = []
    ending = isolated.run(task, 60.0, lambda rows: kept.append([row["name"] for row in rows]), row_limit=1.0)
    assert {row["name"]: row["status"] for row in ending.rows} == {
        "fine": "ok", "dies": "failed", "fine again": "ok", "hangs": "out of time", "raises": "failed", "last": "ok"}
    assert kept == [[row["name"] for row in ending.rows[:count]] for count in range(1, 7)]
    assert ending.status == "done"
    current = record.begin({}, rehearsal=True)
    record.add(current, "misbehaving", ending, 1.0)
    assert current["wrong"] == 3
    begin = time.monotonic()
    short = isolated.run(task, 2.0, lambda rows: None, row_limit=60.0)
    assert (short.status, [row["name"] for row in short.rows]) == ("out of time", ["fine", "dies", "fine again"])
    assert time.monotonic() - begin < 20


def test_a_section_runs_in_a_fresh_process():
    """As it does beside a GPU."""
    ending = isolated.run(isolated.Task("benchmarks.gpu.build", True, {}, {}), 120.0, lambda rows: None)
    assert (ending.status, [row["status"] for row in ending.rows]) == ("done", ["ok"]), ending.note
    assert "triton on cpu" in ending.rows[0]["output"]


@pytest.mark.parametrize(("said", "status", "correct"), [("3 passed, 1 skipped in 2.00s", 0, True),
                                                         ("4 skipped in 0.10s", 0, False),
                                                         ("1 failed, 3 passed in 2.00s", 1, False)])
def test_a_file_whose_tests_are_all_skipped_is_wrong(monkeypatch, said, status, correct):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, status, said, ""))
    row = native_tests._pytest(["tests/test_gpu.py"], rehearsing=False)
    assert row["correct"] is correct


def test_the_build_has_the_time_that_its_steps_may_take():
    limit = next(section.limit for section in SECTIONS if section.name == "build")
    assert limit >= build.LIMIT + build.INFO_LIMIT


def test_wrong_answers_are_not_timed(monkeypatch):
    """A solution of another problem certifies itself just as well: the judge finds it."""
    stage = Stage(CPU, True, {}, {}, [], lambda message: None)
    problem = problems.dense(1, 40, 0.05, 1.0, CPU)

    def solved(by: Any, **settings: Any) -> Any:
        return unbalanced_sinkhorn(by.cost, by.a, by.b, reg=by.reg, reg_m=by.reg_m, backend="native", **settings)

    for shift, correct in ((0.0, True), (1e-3, False)):
        monkeypatch.setattr(ours, "solve", lambda by, shift=shift, **how: solved(by.but(cost=by.cost + shift), **how))
        ours.near.cache_clear()
        for row in (iteration.our_solve(stage, problem, 1e-4), iteration.our_iteration(stage, problem, "auto", True),
                    iteration.our_iteration(stage, problem, "sinkhorn", True)):
            assert row["correct"] is correct, row
            assert ("seconds" in row) is correct


@pytest.mark.parametrize("kind", ["cosine", "squared Euclidean"])
def test_answers_on_features_are_judged(kind):
    problem = feature_problem.draw(kind, 50, 4, CPU)
    solution = unbalanced_sinkhorn(problem.cost(), problem.a, problem.b, reg=problem.reg, reg_m=problem.reg_m,
                                   method="sinkhorn", tol=0, max_iter=3)
    pair = solution._pair
    assert feature_problem.judged(problem, pair.f[0], pair.g[0])["error"] < 1e-3
    moved = feature_problem.judged(problem, pair.f[0] + 0.05 * problem.reg, pair.g[0])
    assert moved["error"] == pytest.approx(0.05 * problem.step / problem.reg, rel=0.05)
    assert moved["correct"] is False


class FakeDevice:
    """What of torch.cuda a timer uses, on a clock that calls move: the host adds to it, graphs replay work alone."""

    HOST = 5e-3

    def __init__(self) -> None:
        self.clock, self.recorded, self.capturing = 0.0, 0.0, False

    def work(self, seconds: float) -> None:
        if self.capturing:
            self.recorded += seconds
        else:
            self.clock += seconds + self.HOST

    def Stream(self) -> Any:
        return types.SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    @contextlib.contextmanager
    def stream(self, _: None):
        yield

    @contextlib.contextmanager
    def graph(self, graph: Any):
        self.capturing, self.recorded = True, 0.0
        yield
        graph.seconds, self.capturing = self.recorded, False

    def CUDAGraph(self) -> Any:
        graph = types.SimpleNamespace(seconds=0.0)
        graph.replay = lambda: setattr(self, "clock", self.clock + graph.seconds)
        return graph

    def Event(self, enable_timing: bool) -> Any:
        event = types.SimpleNamespace(at=0.0, synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock)
        event.elapsed_time = lambda other: 1e3 * (other.at - event.at)
        return event


@pytest.mark.parametrize("each", [1e-4, 2.0])
def test_times_leave_out_what_a_call_does_once(monkeypatch, each):
    """A call takes 0.02 s, each iteration of it ``each``, and what a graph leaves out on the host 5 ms a call."""
    device = FakeDevice()
    for name in ("current_stream", "Stream", "stream", "graph", "CUDAGraph", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(device, name))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: device.clock)
    timer = timing.Timer(torch.device("cuda"))
    monkeypatch.setattr(timer, "wait", lambda: None)

    def run(iterations: int) -> None:
        device.work(0.02 + iterations * each)

    for graph in (False, True):
        assert timer.per_iteration(run, graph) == pytest.approx(each)
    assert timer.host(lambda: device.work(0.1)) == pytest.approx(0.105)
    assert timer.graph([lambda: device.work(0.1)] * 4) == pytest.approx(0.1)
