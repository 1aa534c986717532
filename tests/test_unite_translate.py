"""UNITE's inference: weights of a run, files and folders, and errors that say what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

from accelerate.state import AcceleratorState

from examples.unite import checkpoint
from examples.unite.checkpoint import CheckpointError
from examples.unite.config import Config, preset
from examples.unite.ema import Average
from examples.unite.model import Unite
from examples.unite.translate import jobs, load_condition, load_model, main, translate

CLASSES = 4


@pytest.fixture(autouse=True)
def accelerate_of_its_own() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def small(mask: str = "mix") -> Config:
    config = preset("tiny").replace("model", base=4, hidden=8, descriptor_dim=16, stride=4, residual_layers=1,
                                    condition_channels=CLASSES, mask=mask)
    return config.replace("match", passes=6)


def write_run(folder: Path, config: Config, averaged: bool = True) -> tuple[Unite, Average]:
    """A run of one step: the model and the average differ."""
    torch.manual_seed(0)
    model = Unite(config.model, config.match)
    average = Average(model, 0.5)
    average.updates = 7
    with torch.no_grad():
        for tensor in average.model.parameters():
            tensor.mul_(1.25)
    state = {"config": config.to_dict(), "model": model.state_dict(),
             "average": average.state_dict() if averaged else None}
    checkpoint.save(state, folder / "checkpoints", 1, best=False)
    return model.eval(), average


def write_pictures(folder: Path, names: tuple[str, ...], seed: int = 0) -> None:
    drawn = np.random.default_rng(seed)
    for kind in ("condition", "image"):
        (folder / kind).mkdir(parents=True)
    for name in names:
        labels = drawn.integers(0, CLASSES, (8, 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(labels).save(folder / "condition" / f"{name}.png")
        Image.fromarray(drawn.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "image" / f"{name}.png")


def inputs(folder: Path, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    from examples.unite.data.folder import read_image

    return load_condition(folder / "condition/a.png", config)[None], read_image(folder / "image/a.png", 64)[None]


def test_a_runs_average_is_what_translates(tmp_path: Path) -> None:
    config = small()
    model, average = write_run(tmp_path, config)
    write_pictures(tmp_path, ("a",))
    condition, exemplar = inputs(tmp_path, config)
    loaded, read = load_model(tmp_path)
    assert read == config
    with torch.no_grad():
        expected, other = (network(condition, exemplar, condition).image for network in (average.model, model))
    ours = translate(loaded, condition, exemplar, condition).image
    assert torch.equal(ours, expected)
    assert not torch.allclose(ours, other)
    assert not ours.requires_grad
    write_run(tmp_path / "plain", config, averaged=False)
    assert torch.equal(translate(load_model(tmp_path / "plain")[0], condition, exemplar, condition).image, other)


@pytest.mark.parametrize("enabled", [True, False])
def test_translating_leaves_grad_mode_and_random_state_alone(enabled: bool, tmp_path: Path) -> None:
    write_run(tmp_path, config := small("noise"))
    write_pictures(tmp_path, ("a",))
    model, _ = load_model(tmp_path)
    before = torch.get_rng_state()
    with torch.set_grad_enabled(enabled):
        output = translate(model, *inputs(tmp_path, config), None)
        assert torch.is_grad_enabled() is enabled
    assert not output.image.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exemplar_without_condition_is_refused_where_it_is_mixed_in(tmp_path: Path) -> None:
    write_run(tmp_path, config := small())
    write_pictures(tmp_path, ("a",))
    with pytest.raises(ValueError, match="needs the condition of the exemplar too"):
        translate(load_model(tmp_path)[0], *inputs(tmp_path, config), None)


def test_files_and_folders_by_name(tmp_path: Path) -> None:
    write_pictures(tmp_path, ("a", "b"))
    conditions, images, out = tmp_path / "condition", tmp_path / "image", tmp_path / "out"
    assert jobs(conditions / "a.png", images / "b.png", None, out / "x.png") == [
        (conditions / "a.png", images / "b.png", None, out / "x.png")]
    assert jobs(conditions, images, conditions, out) == [
        (conditions / f"{name}.png", images / f"{name}.png", conditions / f"{name}.png", out / f"{name}.png")
        for name in "ab"]
    assert jobs(conditions, images / "b.png", conditions, out) == [
        (conditions / f"{name}.png", images / "b.png", conditions / "b.png", out / f"{name}.png") for name in "ab"]
    assert jobs(conditions / "a.png", images, conditions, out) == [
        (conditions / "a.png", images / f"{name}.png", conditions / f"{name}.png", out / f"{name}.png")
        for name in "ab"]
    (images / "b.png").unlink()
    with pytest.raises(ValueError, match="must hold pictures of the same names; only one has b"):
        jobs(conditions, images, None, out)
    with pytest.raises(FileNotFoundError, match=r"no file .*c\.png"):
        jobs(conditions, images / "c.png", None, out)
    with pytest.raises(FileNotFoundError, match="no picture a"):
        jobs(conditions / "b.png", images, write_only(tmp_path / "other", "b"), out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no pictures in"):
        jobs(tmp_path / "empty", images, None, out)


def write_only(folder: Path, name: str) -> Path:
    write_pictures(folder, (name,))
    return folder / "condition"


def test_conditions_as_arrays(tmp_path: Path) -> None:
    config = small()
    array = np.random.default_rng(0).random((CLASSES, 32, 32))
    np.save(tmp_path / "edges.npy", array)
    assert np.array_equal(load_condition(tmp_path / "edges.npy", config)[:, ::2, ::2], array.astype(np.float32))
    for wrong in (array[:3], 2 * array, array[0]):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match=r"wrong\.npy must be an array \(4, H, W\) with values in \[0, 1\]"):
            load_condition(tmp_path / "wrong.npy", config)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", small())
    write_pictures(tmp_path, ("a", "b"))
    words = ["--run", str(tmp_path / "run"), "--device", "cpu"]
    folders = [str(tmp_path / kind) for kind in ("condition", "image")]

    def run(*more: str) -> tuple[int, str, str]:
        status = main([*more, *words])
        return status, *capsys.readouterr()

    status, out, _ = run(*folders, "--exemplar-condition", folders[0], "-o", str(tmp_path / "out"))
    assert status == 0
    assert out.count("wrote") == 2
    single = [f"{folder}/a.png" for folder in folders]
    assert run(*single, "--exemplar-condition", single[0], "-o", str(tmp_path / "one.png"))[0] == 0
    one, other = (np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "out/a.png"))
    assert one.shape == (64, 64, 3)
    assert np.array_equal(one, other)  # a result does not depend on what else was asked for

    target = str(tmp_path / "no.png")
    assert "needs the condition of the exemplar too" in run(*single, "-o", target)[2]
    assert "RGB image; a condition of 4 channels" in run(single[1], single[1], "-o", target)[2]
    status, _, error = run(*single, "-o", target, "--checkpoint", "best")
    assert (status, "no checkpoint at" in error) == (1, True)
    assert not (tmp_path / "no.png").exists()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        load_model(tmp_path / "elsewhere")


@pytest.mark.parametrize("damage", ["empty.npy", "junk.npy", "text.npy", "header.npy", "nothing.npy", "cut.png",
                                    "wide.png"])
def test_a_broken_condition_is_named(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", small("noise"))
    write_pictures(tmp_path, ("a",))
    file = tmp_path / damage
    if damage == "text.npy":
        np.save(file, np.array([[["a"]]]))
    elif damage == "nothing.npy":
        np.save(file, np.zeros((CLASSES, 0, 0)))
    elif damage == "header.npy":
        np.save(file, np.zeros((CLASSES, 8, 8)))
        file.write_bytes(file.read_bytes().replace(b"), }", b"   }"))
    elif damage == "cut.png":
        file.write_bytes((tmp_path / "image/a.png").read_bytes()[:200])
    elif damage == "wide.png":  # an id that a byte would wrap to 1
        Image.fromarray(np.full((64, 64), 257, dtype=np.uint16)).save(file)
    else:
        file.write_bytes(b"" if damage == "empty.npy" else b"junk" * 20)
    words = [str(file), str(tmp_path / "image/a.png"), "-o", str(tmp_path / "no.png"), "--run", str(tmp_path / "run"),
             "--device", "cpu"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert str(file) in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "no.png").exists()


def test_memory_that_runs_out_has_advice_for_translating(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "run", small("noise"))
    write_pictures(tmp_path, ("a",))

    def full(*inputs: torch.Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(Unite, "forward", full)
    assert main([str(tmp_path / "condition/a.png"), str(tmp_path / "image/a.png"), "-o", str(tmp_path / "no.png"),
                 "--run", str(tmp_path / "run"), "--device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "out of memory" in error
    assert "trained smaller than 64 px" in error
    assert "--batch" not in error
    assert "--set" not in error


@pytest.mark.parametrize("condition", ["mask", "edges"])
def test_avatars_written_as_files_are_translated(tmp_path: Path, condition: str) -> None:
    """From the generator to an output, by the files: conditions arrive as the data set has them."""
    pytest.importorskip("python_avatars", reason="needs python-avatars: the extra unite")
    pytest.importorskip("resvg_py", reason="needs resvg-py: the extra unite")
    from examples.unite import data
    from examples.unite.data.__main__ import main as data_main

    words = ["--root", str(tmp_path / "cache"), "--size", "64", "--split", "test", "--count", "2", "--condition",
             condition, "--export"]
    assert data_main([*words, "--out", str(tmp_path)]) == 0
    pairs = data.make("avatars", root=tmp_path / "cache", size=64, split="test", condition=condition, count=2)
    config = small().replace("model", condition_channels=pairs.condition_channels)
    write_run(tmp_path / "run", config)
    suffix = "png" if condition == "mask" else "npy"
    conditions = [tmp_path / f"condition/{pairs[1].name}{side}.{suffix}" for side in ("", "-exemplar")]
    for file, expected in zip(conditions, (pairs[1].condition, pairs[1].exemplar_condition), strict=True):
        assert torch.equal(load_condition(file, config), expected)
    image = tmp_path / f"image/{pairs[1].name}-exemplar.png"
    assert main([str(conditions[0]), str(image), "--exemplar-condition", str(conditions[1]), "-o",
                 str(tmp_path / "out.png"), "--run", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert Image.open(tmp_path / "out.png").size == (64, 64)
