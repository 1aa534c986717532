"""UNITE on two processes: the gradients of one, resuming with more or fewer, an error when one is lost, launches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs a torch with gloo", allow_module_level=True)

from unite_processes import CASES, SETTINGS, group, normalised, one_step, recorded
from unite_training import ROOT, Blocks, blocks, small  # noqa: F401

from examples.unite import checkpoint, trainer
from examples.unite.checkpoint import CheckpointError
from examples.unite.launch import check_launch, make_accelerator
from examples.unite.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:images are judged by random")]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
#: It starts torchrun where --multi_gpu is said, whatever the device; without it and without GPUs, one process.
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
#: Without GPUs (and a Mac's, which is never several) this is the CPU, and processes on it must find each other.
DEVICE = ("--device", "cpu" if torch.backends.mps.is_available() else "auto")
#: Seconds in which a run that lost a process must have ended.
SECONDS = 30


def launch(launcher: tuple[str, ...], word: str, out: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore",
                   "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    return subprocess.Popen([sys.executable, *launcher, str(ROOT / "tests/unite_processes.py"), word, str(out), *flags],
                            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    return out


def alone(out: Path, steps: int, *, resume: bool = False) -> Trainer:
    """The run of one process, with the batch of two."""
    config = small(**SETTINGS).replace("train", batch=4, steps=steps)
    run = recorded(out / "examples-0.jsonl")(config, out, device="cpu", resume=resume)
    run.run()
    return run


def examples(out: Path) -> dict[int, set[str]]:
    """Names of the examples of each step, of all processes."""
    found: dict[int, set[str]] = {}
    for file in out.glob("examples-*.jsonl"):
        for step, names in map(json.loads, file.read_text().splitlines()):
            found.setdefault(step, set()).update(names)
    return found


def check_same(ours: Path, theirs: Path, steps: int) -> None:
    """The same examples in every step, and the same lines of metrics but for rounding, up to a step."""
    assert {step: names for step, names in examples(ours).items() if step <= steps} == {
        step: names for step, names in examples(theirs).items() if step <= steps}
    one, other = ([line for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
                   if line["step"] <= steps] for out in (ours, theirs))
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for mine, yours in zip(one, other, strict=True):
        assert mine.keys() == yours.keys()
        for name in mine.keys() - {"judge"}:
            # Rounding grows most in a maximum of what few passes leave, and in a gradient that is steep at the start.
            share = 0.05 if name == "validation/violation" or name.startswith("gradient/") else 2e-3
            assert mine[name] == pytest.approx(yours[name], rel=share, abs=1e-4), (mine["step"], name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("facts")
    finish(launch(TORCHRUN, "facts", out))
    return [torch.load(out / f"facts-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_gradients_of_one(facts: list[dict], name: str, tmp_path: Path) -> None:
    """Four examples a step in one process or in two; shares of flags and of classes, and batch norm, included."""
    config = CASES[name]
    joined = one_step(config.replace("train", batch=2 * config.train.batch), tmp_path, group(config, 0, 1))
    first, second = (found[name] for found in facts)
    assert first["values"] == second["values"]  # means over processes
    assert first["values"] == pytest.approx(joined["values"], rel=1e-4)
    for kind, tolerance in (("gradients", 1e-4 if name.startswith("seace") else 2e-3), ("buffers", 1e-5)):
        assert joined[kind].keys() == first[kind].keys()
        for key, tensor in joined[kind].items():
            assert torch.equal(first[kind][key], second[kind][key]), key
            # A bias in front of a batch norm has no gradient but the rounding of the others'.
            torch.testing.assert_close(first[kind][key], tensor, rtol=tolerance, msg=key,
                                       atol=tolerance * float(tensor.abs().max()) + 1e-5)


def test_batch_norm_is_torchs_of_all_samples(facts: list[dict]) -> None:
    """To rounding in float64: output, gradient and averages."""
    theirs = normalised(torch.nn.BatchNorm2d(3, affine=False).double(), slice(None))
    ours = [found["norm"] for found in facts]
    for place in range(2):
        torch.testing.assert_close(torch.cat([each[place] for each in ours]), theirs[place], rtol=1e-9, atol=1e-9)
    for each in ours:
        torch.testing.assert_close(each[2:], theirs[2:], rtol=1e-12, atol=0)


def test_losses_that_are_no_numbers_on_one_process_stop_both(facts: list[dict]) -> None:
    """Each says which it is, and whose loss it was."""
    for rank, found in enumerate(facts):
        assert found["nan"].startswith(
            f"step 1, rank {rank} of 2 processes: generator/cycle of rank 1 is nan; beside it generator/")


def test_the_main_process_alone_has_the_held_out_pairs(facts: list[dict]) -> None:
    assert [found["held"] for found in facts] == [[2], []]


@pytest.fixture
def uninterrupted(whole: Path, blocks: None) -> Path:  # noqa: F811
    """One process from the first step to the sixth, once for all tests."""
    if not (whole / "metrics.jsonl").exists():
        alone(whole, 6)
    return whole


def test_two_go_on_where_one_ended(uninterrupted: Path, tmp_path: Path) -> None:
    """By the launcher of accelerate: examples go on where they were, losses follow, and it is said."""
    alone(tmp_path, 2)
    said = finish(launch(ACCELERATE, "train", tmp_path, *DEVICE, "--resume", "--batch", "2", "--steps", "4"))
    assert "1 process then, 2 now: random states of processes are drawn anew, from seed, step and rank\n" in said
    assert "4 steps of 4 examples on 2 processes, from step 2;" in said
    assert "a step takes" not in said
    assert said.count("changed: train.batch: 4 -> 2\n") == 1  # by one of them
    check_same(tmp_path, uninterrupted, 4)


def test_one_goes_on_where_two_were_killed(uninterrupted: Path, tmp_path: Path) -> None:
    """SIGKILL of one process ends the run with an error; its checkpoint is whole, and one process goes on from it.

    The two were a group, by torchrun and without a GPU or a word of the CPU: the checkpoint has the states of two.
    """
    run = launch(TORCHRUN, "train", tmp_path, *DEVICE, "--batch", "2", "--steps", "400")
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or '"step": 3' not in metrics.read_text():
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
    _, err = run.communicate(timeout=SECONDS)
    assert run.returncode != 0
    assert f"exitcode  : {-signal.SIGKILL}" in err
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "0.pid").read_text()), 0)
    assert checkpoint.load(checkpoint.latest(tmp_path / "checkpoints"))["step"] >= 2
    resumed = alone(tmp_path, 6, resume=True)
    assert resumed.notes == ["2 processes then, 1 now: random states of processes are drawn anew, from seed, step and "
                             "rank"]
    check_same(tmp_path, uninterrupted, 6)


def test_another_number_of_processes_is_said_and_draws_by_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random states are a function of seed, step and rank; a folder that not all processes see is refused."""
    alone(tmp_path, 1)
    path = checkpoint.latest(tmp_path / "checkpoints")
    state = checkpoint.load(path)
    state["random"] = state["random"] * 3
    checkpoint.save({name: value for name, value in state.items() if name not in ("format", "version")},
                    path.parent, 1, best=False)
    config = small(**SETTINGS).replace("train", batch=4)
    run = Trainer(config, tmp_path, device="cpu", resume=True)
    drawn = checkpoint.random_state()["torch"]
    assert run.notes[0].startswith("3 processes then, 1 now")
    assert "a step takes 4 examples now, it took 12" in run.notes[1]
    for place, same in (((config.train.seed, 1, 0), True), ((config.train.seed, 1, 1), False),
                        ((config.train.seed, 2, 0), False), ((config.train.seed + 1, 1, 0), False)):
        checkpoint.draw_random_state(*place)
        assert torch.equal(drawn, checkpoint.random_state()["torch"]) is same
    monkeypatch.setattr(trainer, "gather_object", lambda found: [*found, 4])
    with pytest.raises(CheckpointError, match=r"processes found checkpoints of steps 1, 4 in"):
        Trainer(config, tmp_path, device="cpu", resume=True)


def test_one_gpu_is_not_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device cuda:1 is one GPU, and several processes take one each: give cuda"):
        make_accelerator("cuda:1", "no")


def test_processes_that_form_no_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    make_accelerator("cpu", "no")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"started 2 processes \(WORLD_SIZE\), and a group of 1 came about on device"):
        make_accelerator("auto", "no")


@pytest.mark.parametrize(("settings", "words"), [
    ({"SLURM_STEP_NUM_TASKS": "2"}, r"srun started 2 tasks \(SLURM_STEP_NUM_TASKS\).* one torchrun a node"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, r"mpirun started 4 tasks"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED is true, and training here has no DeepSpeed"),
    ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "ACCELERATE_USE_FSDP is true"),
    ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "ACCELERATE_DYNAMO_BACKEND is INDUCTOR"),
])
def test_launches_that_would_train_something_else_are_refused(
        settings: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        Trainer(small(**SETTINGS), tmp_path, device="cpu")


@pytest.mark.parametrize("settings", [
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},               # python inside a batch script: one process
    {"SLURM_STEP_NUM_TASKS": "2", "WORLD_SIZE": "2"},         # a torchrun on each of two nodes
    {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_FSDP": "false"},
])
def test_launches_that_are_none_of_these_are_not(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    check_launch()


def test_no_setting_of_accelerate_divides_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert make_accelerator("cpu", "no").gradient_accumulation_steps == 1


def test_the_checkpoint_that_was_written_is_known_by_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine a listing of the shared folder may not have it yet."""
    run = alone(tmp_path, 1)
    path, state = run.good, checkpoint.load(run.good)
    monkeypatch.setattr(checkpoint, "latest", lambda folder: pytest.fail("listed"))
    resumed = Trainer(run.config, tmp_path, device="cpu", resume=True, state=state)
    assert (resumed.done, resumed.good) == (1, path)
    resumed.save(None)
    assert resumed.good == path
