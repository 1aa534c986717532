"""Exemplar retrieval: cosines against brute force, chunks, features, names, the command and what kills it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

from accelerate.state import AcceleratorState

from examples.unite import retrieve
from examples.unite.data import make
from examples.unite.data.modes import rgb
from examples.unite.neighbours import STEPS, Rows, nearest
from examples.unite.perceptual import load_perceptual
from examples.unite.pictures import Picture, find_pictures
from examples.unite.retrieve import Decoded, exclusions, features, main

pytestmark = pytest.mark.filterwarnings("ignore:images are judged by random")
ROOT = Path(__file__).parent.parent
SHARED_VGG = Path(os.environ.get("UNITE_VGG16", Path(__file__).resolve().parents[2] / "shared" / "weights"
                                 / "vgg16_imagenet_conv.safetensors"))


@pytest.fixture(autouse=True)
def accelerate_of_its_own() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def unit_rows(count: int, width: int = 24, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def everything(rows: np.ndarray) -> Rows:
    return Rows(rows, np.arange(len(rows)))


def draw(folder: Path, names: list[str], seed: int = 0, size: int = 40) -> None:
    """Images of smooth colour, each of its own."""
    drawn = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(drawn.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / name)


def read_list(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        return {name: refs for name, *refs in csv.reader(file)}


def command(tmp_path: Path, query: Path, gallery: Path, out: Path, *more: str) -> list[str]:
    return ["--query", str(query), "--gallery", str(gallery), "-o", str(out), "--network", "random", "--size", "64",
            "--grid", "2", "--device", "cpu", "--cache", str(tmp_path / "cache"), *more]


# --- neighbours -------------------------------------------------------------------------------------------------------

def test_neighbours_are_those_of_all_cosines_in_float64():
    queries, gallery = unit_rows(37), unit_rows(61, seed=1)
    exact = queries.astype(np.float64), gallery.astype(np.float64)
    lengths = [np.linalg.norm(side, axis=1) for side in exact]
    cosines = exact[0] @ exact[1].T / np.outer(*lengths)
    assert np.abs(np.diff(np.sort(cosines, axis=1))).min() > 2 / STEPS  # so that the order is beyond doubt
    cosines[np.arange(37), np.arange(37)] = -np.inf
    found = nearest(everything(queries), everything(gallery), 7, excluded=[[i] for i in range(37)], chunk=10)
    np.testing.assert_array_equal(found, np.argsort(-cosines, axis=1)[:, :7])


@pytest.mark.parametrize("chunk", [1, 3, 16, 50, 1000])
def test_chunks_have_no_say(chunk: int):
    rows = unit_rows(50)
    rows[40:] = rows[:10]  # ties at every place
    excluded = [[i] for i in range(50)]
    places = np.random.default_rng(3).permutation(50)
    expected = nearest(everything(rows[places]), everything(rows), 49, excluded=excluded, chunk=64)
    found = nearest(Rows(rows, places), everything(rows), 49, excluded=excluded, chunk=chunk)
    np.testing.assert_array_equal(found, expected)


def test_no_more_than_a_chunk_is_read_at_once(monkeypatch: pytest.MonkeyPatch):
    sizes, whole = [], Rows.read

    def read(rows: Rows, first: int, last: int, device: torch.device) -> torch.Tensor:
        found = whole(rows, first, last, device)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Rows, "read", read)
    rows = everything(unit_rows(50))
    nearest(rows, rows, 5, excluded=[[]] * 50, chunk=7)
    assert max(sizes) == 7
    assert len(sizes) == 8 + 8 * 8


def test_dot_products_of_float16_are_exact_in_any_order():
    rows = unit_rows(40, width=4096).astype(np.float64)
    forward = rows @ rows.T
    order = np.random.default_rng(1).permutation(4096)
    np.testing.assert_array_equal(forward, (rows[:, order] @ rows[:, order].T))


def test_ties_go_by_row_and_rows_of_zeros_are_at_right_angles_to_all():
    rows = np.zeros((5, 4), np.float16)
    rows[0, 0] = rows[2, 0] = rows[4, 0] = 0.5
    rows[1, 0] = -0.5
    found = nearest(everything(rows), everything(rows), 4, excluded=[[i] for i in range(5)], chunk=2)
    assert found.tolist() == [[2, 4, 3, 1], [3, 0, 2, 4], [0, 4, 3, 1], [0, 1, 2, 4], [0, 2, 3, 1]]


@pytest.mark.parametrize("k", [0, 5])
def test_more_exemplars_than_there_are_is_an_error(k: int):
    rows = everything(unit_rows(5))
    with pytest.raises(ValueError, match=f"k must be from 1 to 4, the other images of the gallery, got {k}"):
        nearest(rows, rows, k, excluded=[[i] for i in range(5)])


# --- features ---------------------------------------------------------------------------------------------------------

def test_features_are_of_the_last_max_pool_by_position_and_of_unit_length():
    network = load_perceptual("random", whole=True)
    picture = torch.zeros(1, 128, 128, 3, dtype=torch.uint8)
    picture[:, :, 64:] = torch.randint(0, 256, (1, 128, 64, 3), generator=torch.Generator().manual_seed(0))
    row = features(network, picture, 2)[0].float()
    assert float(row.norm()) == pytest.approx(1.0, abs=1e-3)
    images = picture.permute(0, 3, 1, 2).float() / 127.5 - 1
    pooled = network.pooled(images)
    assert pooled.shape == (1, 128, 4, 4)
    means = pooled.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5)).flatten()
    torch.testing.assert_close(row, means / means.norm(), atol=1e-3, rtol=0)
    flipped = features(network, picture.flip(2), 2)[0].float()
    assert float(row @ flipped) < 0.999  # where things are counts


def test_the_deepest_feature_needs_a_whole_network():
    with pytest.raises(ValueError, match="ends at relu5_2"):
        load_perceptual("random").pooled(torch.zeros(1, 3, 32, 32))
    whole, part = load_perceptual("random", whole=True), load_perceptual("random")
    image = torch.rand(1, 3, 32, 32)
    deep = whole(image)["relu5_2"]
    torch.testing.assert_close(deep, part(image)["relu5_2"], rtol=0, atol=0)
    expected = torch.nn.functional.max_pool2d(torch.relu(whole.blocks[4][2](deep)), 2)
    torch.testing.assert_close(whole.pooled(image), expected, rtol=0, atol=0)


@pytest.mark.skipif(not SHARED_VGG.is_file(), reason="needs VGG-16's weights: UNITE_VGG16, or shared/weights")
def test_vgg16_finds_the_picture_with_noise_on_it(tmp_path: Path):
    draw(tmp_path / "gallery", [f"{i}.png" for i in range(4)], size=64)
    drawn = np.random.default_rng(5)
    (tmp_path / "query").mkdir()
    for i in range(4):
        picture = np.asarray(Image.open(tmp_path / "gallery" / f"{i}.png")).astype(float)
        noisy = np.clip(picture + drawn.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(tmp_path / "query" / f"noisy-{i}.png")
    argv = command(tmp_path, tmp_path / "query", tmp_path / "gallery", tmp_path / "list.csv", "-k", "2",
                   "--network", "vgg16", "--file", str(SHARED_VGG))
    assert main(argv) == 0
    assert {name: refs[0] for name, refs in read_list(tmp_path / "list.csv").items()} \
        == {f"noisy-{i}": str(i) for i in range(4)}


def test_grey_of_16_bits_has_the_features_of_8(tmp_path: Path):
    grey = np.arange(0, 256, dtype=np.uint8).reshape(16, 16).repeat(4, 0).repeat(4, 1)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    one, other = (Decoded([tmp_path / name], 64)[0] for name in ("8.png", "16.png"))
    assert torch.equal(one, other)
    assert one.float().std() > 50


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_values_of_16_bits_go_to_the_nearest_of_8(mode: str):
    values = np.array([[0, 128, 129, 257, 32767, 65535]])
    picture = Image.fromarray(values.astype(np.int32))
    if mode != "I":
        picture = Image.frombytes(mode, (6, 1), values.astype("<u2" if mode == "I;16" else ">u2").tobytes())
    assert picture.mode == mode
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(rgb(picture)), np.stack([expected] * 3, -1))


def test_grey_beyond_16_bits_is_no_picture(tmp_path: Path):
    deep = Image.fromarray(np.array([[0, 65536]], dtype=np.int32))
    with pytest.raises(ValueError, match="grey values must be from 0 to 65535, got 0 to 65536"):
        rgb(deep)
    deep.save(tmp_path / "deep.tiff")
    assert Decoded([tmp_path / "deep.tiff"], 32)[0] == \
        f"{tmp_path}/deep.tiff cannot be read: grey values must be from 0 to 65535, got 0 to 65536"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK"])
def test_other_modes_are_pillows(mode: str):
    picture = Image.new("RGB", (3, 2), (10, 200, 30)).convert(mode)
    np.testing.assert_array_equal(np.asarray(rgb(picture)), np.asarray(picture.convert("RGB")))


# --- names ------------------------------------------------------------------------------------------------------------

def test_pictures_of_folders_and_lists(tmp_path: Path):
    draw(tmp_path / "images", ["b.jpg", "a/one.png", "a/.hidden.png", ".git/x.png", "c.v2.png"])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    assert [picture.name for picture in find_pictures(tmp_path / "images")] == ["a/one", "b", "c.v2"]
    assert [picture.name for picture in find_pictures(tmp_path / "images", suffixes=[".png"])] == ["a/one", "c.v2"]
    (tmp_path / "list.txt").write_text("b,whatever\n\na\\one.png\nc.v2\n")
    found = find_pictures(tmp_path / "list.txt", tmp_path / "images")
    assert found == [Picture("b", tmp_path / "images" / "b.jpg"), Picture("a/one", tmp_path / "images/a/one.png"),
                     Picture("c.v2", tmp_path / "images" / "c.v2.png")]


@pytest.mark.parametrize(("files", "words"), [
    (["a.png", "a.jpg"], "has the name 'a' twice: .*a.jpg and .*a.png"),
    (["a.png.jpg"], "a.png.jpg would stand in a list as 'a.png'"),
    ([], "no images"),
])
def test_names_that_lists_could_not_tell_apart(tmp_path: Path, files: list[str], words: str):
    (tmp_path / "images").mkdir()
    draw(tmp_path / "images", files)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        find_pictures(tmp_path / "images")


@pytest.mark.parametrize(("text", "words"), [
    ("a\nz\n", "list.txt, line 2: 'z' has no image in"),
    ("a\n\na.png\n", "has the name 'a' twice"),
    ("", "names no images"),
])
def test_lists_that_do_not_fit_are_named_by_line(tmp_path: Path, text: str, words: str):
    draw(tmp_path, ["a.png"])
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        find_pictures(tmp_path / "list.txt")


def test_an_image_is_never_its_own_exemplar(tmp_path: Path):
    draw(tmp_path, ["train/a.png", "train/b.png", "test/a.png", "test/c.png"])
    (tmp_path / "test" / "d.png").symlink_to(tmp_path / "train" / "b.png")
    train, test, all_of_it = (find_pictures(tmp_path / name) for name in ("train", "test", "."))
    assert exclusions(train, train) == [[0], [1]]
    assert exclusions(test, train) == [[0], [], [1]]       # a by its name, d by its file
    assert [[all_of_it[place].name for place in barred] for barred in exclusions(train, all_of_it)] \
        == [["train/a"], ["test/d", "train/b"]]


# --- the command ------------------------------------------------------------------------------------------------------

def test_the_command_agrees_with_brute_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = [f"{i:02d}" for i in range(9)]
    draw(tmp_path / "images", [f"{name}.png" for name in names])
    argv = command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / "lists" / "train.csv", "-k", "3",
                   "--batch", "4", "--chunk", "5")
    assert main(argv) == 0
    network = load_perceptual("random", whole=True)
    pictures = [np.array(Image.open(tmp_path / "images" / f"{name}.png").resize((64, 64), Image.Resampling.BICUBIC))
                for name in names]
    rows = features(network, torch.from_numpy(np.stack(pictures)), 2).double().numpy()
    cosines = rows @ rows.T / np.outer(*[np.linalg.norm(rows, axis=1)] * 2)
    np.fill_diagonal(cosines, -1)
    found = read_list(tmp_path / "lists" / "train.csv")
    assert list(found) == names
    for row, name in enumerate(names):
        got = [cosines[row, int(ref)] for ref in found[name]]
        # In batches of another size a feature may be rounded to float16 the other way.
        np.testing.assert_allclose(got, np.sort(cosines[row])[::-1][:3], atol=1e-5)
    first = (tmp_path / "lists" / "train.csv").read_bytes()
    capsys.readouterr()
    assert main([*argv, "--chunk", "2"]) == 0
    assert "features: step" not in capsys.readouterr().out  # all of them were there
    assert (tmp_path / "lists" / "train.csv").read_bytes() == first
    draw(tmp_path / "images", ["00.png"], seed=9)            # another picture under an old name
    assert main(argv) == 0
    assert "features: step 1/1 " in capsys.readouterr().out
    assert (tmp_path / "lists" / "train.csv").read_bytes() != first


def test_broken_images_are_named_counted_and_left_out_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "images", [f"{i}.png" for i in range(6)])
    for name in ("1.png", "4.png"):
        (tmp_path / "images" / name).write_bytes((tmp_path / "images" / name).read_bytes()[:200])
    argv = command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / "list.csv", "-k", "2", "--batch", "2")
    assert main(argv) == 1
    told = capsys.readouterr().err
    assert "1.png cannot be read" in told
    assert "4.png cannot be read" in told
    assert "2 of 6 images cannot be read; --skip-broken" in told
    assert not (tmp_path / "list.csv").exists()
    assert main([*argv, "--skip-broken"]) == 0
    found = read_list(tmp_path / "list.csv")
    assert list(found) == ["0", "2", "3", "5"]
    assert {ref for refs in found.values() for ref in refs} <= {"0", "2", "3", "5"}


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "images", [f"{i}.png" for i in range(4)])
    (tmp_path / "images" / "9.png").symlink_to(tmp_path / "nowhere.png")
    argv = command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / "list.csv", "-k", "3")
    assert main(argv) == 1
    assert f"{tmp_path}/images/9.png cannot be read: No such file or directory\n1 of 5 images cannot be read; " \
        in capsys.readouterr().err
    assert main([*argv, "--skip-broken"]) == 0
    assert list(read_list(tmp_path / "list.csv")) == ["0", "1", "2", "3"]
    assert main([*argv, "--skip-broken", "-k", "4"]) == 1  # of the five images, one is not there to be had
    assert "k must be from 1 to 3, the other images of the gallery, got 4" in capsys.readouterr().err


def test_no_list_is_written_where_no_query_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "gallery", ["0.png", "1.png"])
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "a.png").write_bytes(b"nothing")
    (tmp_path / "query" / "b.png").symlink_to(tmp_path / "nowhere.png")
    argv = command(tmp_path, tmp_path / "query", tmp_path / "gallery", tmp_path / "list.csv", "-k", "1")
    assert main([*argv, "--skip-broken"]) == 1
    assert capsys.readouterr().err.endswith("ValueError: there are no queries\n")
    assert not (tmp_path / "list.csv").exists()


@pytest.mark.parametrize(("more", "words"), [
    (["-k", "4"], "k must be from 1 to 3, the other images of the gallery, got 4"),
    (["-o", "."], "-o must name a file, got the folder ."),
])
def test_what_will_not_do_is_said_before_features_are_made(tmp_path: Path, more: list[str], words: str,
                                                           capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "images", [f"{i}.png" for i in range(4)])
    assert main(command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / "list.csv", "-k", "2",
                        *more)) == 1
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("more", "words"), [
    (["--network", "vgg16", "--file", "nowhere.pth"], "no file of a perceptual network at nowhere.pth"),
    (["--query", "nowhere"], "no folder or list nowhere"),
    (["--suffix", ".jpg"], "no images (.jpg) in"),
])
def test_what_cannot_be_is_one_line(tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "images", [f"{i}.png" for i in range(4)])
    argv = command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / "list.csv", "-k", "2", *more)
    assert main(argv) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_stopped_in_process_and_started_again_is_the_same_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]):
    draw(tmp_path / "images", [f"{i:02d}.png" for i in range(10)])
    whole, stopped = (command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / f"{name}.csv", "-k", "4",
                              "--batch", "3", "--cache", str(tmp_path / name)) for name in ("whole", "stopped"))
    assert main(whole) == 0
    calls = []

    def interrupted(*inputs: object) -> torch.Tensor:
        calls.append(inputs)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return features(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(retrieve, "features", interrupted)
        assert main(stopped) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert main(stopped) == 0
    assert "features: step 2/2 " in capsys.readouterr().out  # the four images of the last two batches
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "stopped.csv").read_bytes()


@pytest.mark.slow
def test_killed_and_started_again_is_the_same_list(tmp_path: Path):
    draw(tmp_path / "images", [f"{i:02d}.png" for i in range(24)], size=96)
    whole, killed = (command(tmp_path, tmp_path / "images", tmp_path / "images", tmp_path / f"{name}.csv", "-k", "4",
                             "--batch", "1", "--size", "192", "--cache", str(tmp_path / name))
                     for name in ("whole", "killed"))
    assert main(whole) == 0
    process = subprocess.Popen([sys.executable, "-m", "examples.unite.retrieve", *killed], cwd=ROOT,
                               env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        index = list((tmp_path / "killed").glob("*/index.txt"))
        if index and index[0].read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.csv").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(killed) == 0
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "killed.csv").read_bytes()


@pytest.mark.slow
def test_a_list_is_what_data_folder_takes(tmp_path: Path):
    pytest.importorskip("python_avatars", reason="needs python-avatars: the extra unite")
    pytest.importorskip("resvg_py", reason="needs resvg-py: the extra unite")
    from examples.unite import train
    from examples.unite.data.export import export

    folder = tmp_path / "files"
    export(make("avatars", root=tmp_path / "avatars", size=64, split="test", count=2), "mask", folder)
    (folder / "pairs.csv").unlink()
    images = folder / "image"
    assert main(command(tmp_path, images, images, folder / "pairs.csv", "-k", "3")) == 0
    rows = read_list(folder / "pairs.csv")
    assert len(rows) == 4
    assert all(len({name, *refs}) == 4 for name, refs in rows.items())
    pairs = make("folder", root=folder, size=64)
    assert {name: list(refs) for name, refs in pairs.rows} == rows
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = ["model.base=4", "model.hidden=8", "model.descriptor_dim=16", "model.stride=4",
                "model.residual_layers=1", "match.passes=4", "train.validation=1"]
    argv = ["--data", "folder", "--root", str(folder), "--steps", "1", "--batch", "2", "--device", "cpu",
            "--out", str(tmp_path / "run")]
    assert train.main([*argv, *(part for text in settings for part in ("--set", text))]) == 0
