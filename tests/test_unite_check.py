"""The check of a data set before training: what it says, with which exit status, and that training says the same."""

import json
import shlex
import shutil
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from examples.unite import check, data
from examples.unite.config import preset
from examples.unite.data import reports
from examples.unite.data.report import DataError, Report


@pytest.fixture
def scenes(tmp_path):
    """ADE20K's form: two training images, one of validation."""
    for folder, names in (("training", ("ADE_train_1", "ADE_train_2")), ("validation", ("ADE_val_1",))):
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            (tmp_path / kind / folder).mkdir(parents=True)
            for name in names:
                Image.new("L", (40, 40), 7).convert("RGB" if suffix == "jpg" else "L").save(
                    tmp_path / kind / folder / f"{name}.{suffix}")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.csv").write_text("ADE_train_1,ADE_train_2\nADE_train_2,ADE_train_1\n")
    (tmp_path / "lists/test.csv").write_text("ADE_val_1,ADE_train_2\n")
    return tmp_path


@pytest.fixture
def layouts(tmp_path):
    """COCO's form: two images a split, each with three boxes."""
    for split, first in (("train", 1), ("val", 3)):
        names = [f"{number:012d}.jpg" for number in (first, first + 1)]
        (tmp_path / f"image/{split}2017").mkdir(parents=True)
        for name in names:
            Image.new("RGB", (40, 40)).save(tmp_path / f"image/{split}2017" / name)
        tree = {"images": [{"id": i, "file_name": name, "width": 40, "height": 40} for i, name in enumerate(names)],
                "annotations": [{"image_id": i, "category_id": category, "bbox": [0, 0, 20, 20]}
                                for i in range(2) for category in (1, 2, 95)],
                "categories": [{"id": 1, "name": "person"}]}
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(tree))
        (tmp_path / f"annotations/stuff_{split}2017.json").write_text(json.dumps({**tree, "annotations": []}))
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / f"lists/{'train' if split == 'train' else 'test'}.csv").write_text(
            f"{names[0]},{names[1]}\n{names[1]},{names[0]}\n")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    for kind in ("condition", "image"):
        (tmp_path / kind).mkdir()
        for name in "ab":
            Image.new("L" if kind == "condition" else "RGB", (40, 40)).save(tmp_path / kind / f"{name}.png")
    (tmp_path / "pairs.csv").write_text("a,b\nb,a\n")
    return tmp_path


def run(capsys, *words):
    status = check.main(list(map(str, words)))
    captured = capsys.readouterr()
    return status, captured.out.splitlines(), captured.err


def test_a_right_data_set(scenes, capsys):
    for flags in ((), ("--decode",)):
        status, lines, _ = run(capsys, "--data", "ade20k", "--root", scenes, *flags)
        assert status == 0
        assert lines == [f"ade20k in {scenes}", "train images: 2 (published: 20,210)",
                         "train images with class ids: 2 (published: 20,210)", "test images: 1 (published: 2,000)",
                         "test images with class ids: 1 (published: 2,000)", "train images with exemplars: 2",
                         "test images with exemplars: 1", "training can start"]


def test_the_check_of_layouts(layouts, capsys):
    status, lines, _ = run(capsys, "--data", "coco", "--root", layouts, "--decode")
    assert status == 0
    assert "train images with 3 to 8 boxes: 2" in lines
    assert "test images: 2 (published: 5,000)" in lines
    (layouts / "image/val2017/000000000004.jpg").write_bytes(b"\xff\xd8\xff")
    assert run(capsys, "--data", "coco", "--root", layouts)[0] == 0
    status, lines, _ = run(capsys, "--data", "coco", "--root", layouts, "--decode")
    assert status == 1
    assert "pictures that cannot be read: 1" in lines


@pytest.mark.parametrize("name", ["ade20k", "coco"])
def test_nothing_there_says_where_to_get_it(name, tmp_path, capsys):
    status, lines, _ = run(capsys, "--data", name, "--root", tmp_path / "none")
    assert status == 1
    assert lines[-1] == "training cannot start"
    text = "\n".join(lines)
    for split in ("train", "test"):
        assert f"missing: lists/{split}.csv" in text
    assert {"ade20k": "http://sceneparsing.csail.mit.edu", "coco": "https://cocodataset.org"}[name] in text
    assert len(lines) == len(set(lines))


def test_as_many_examples_as_are_asked_for(scenes, capsys):
    for number in range(3, 10):
        shutil.copy(scenes / "images/training/ADE_train_1.jpg", scenes / f"images/training/ADE_train_{number}.jpg")
    for flags, count in (((), 3), (("--examples", "5"), 5), (("--examples", "50"), 7)):
        status, lines, _ = run(capsys, "--data", "ade20k", "--root", scenes, *flags)
        assert status == 1
        assert "images without class ids: 7" in lines
        assert sum(line.endswith(".png") for line in lines) == count
        assert (f"  ... and {7 - count} more" in lines) == (count < 7)
    with pytest.raises(SystemExit):
        run(capsys, "--data", "ade20k", "--root", scenes, "--examples", "0")


def test_training_refuses_in_the_words_of_the_check(scenes, capsys):
    pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
    pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")
    from examples.unite.trainer import make_data

    config = preset("tiny").replace("data", source="ade20k", root=str(scenes))
    pairs, held = make_data(config)
    assert (len(pairs), len(held)) == (2, 1)
    (scenes / "annotations/training/ADE_train_2.png").unlink()
    _, lines, _ = run(capsys, "--data", "ade20k", "--root", scenes)
    with pytest.raises(DataError) as error:
        make_data(config)
    told = str(error.value).splitlines()
    assert told[0] == f"{scenes} cannot be used as ade20k:"
    assert [line[2:] for line in told[1:-1]] == [line for line in lines if "class ids:" in line
                                                 and "published" not in line] + [
        "  images/training/ADE_train_2.jpg has no annotations/training/ADE_train_2.png"]
    assert told[-1] == f"  python -m examples.unite.check --data ade20k --root {scenes} says more"


def test_ones_own_folder(folder, capsys):
    status, lines, _ = run(capsys, "--data", "folder", "--root", folder)
    assert status == 0
    assert lines == [f"folder in {folder}", "train images with exemplars: 2", "train pictures, exemplars' too: 2",
                     "training can start"]
    (folder / "pairs_test.csv").write_text("a,c\n")
    status, lines, _ = run(capsys, "--data", "folder", "--root", folder)
    assert status == 1
    assert "  image/c.* is missing (pairs_test.csv, line 1)" in lines


def test_avatars(tmp_path, capsys, monkeypatch):
    pytest.importorskip("python_avatars", reason="needs python-avatars: the extra unite")
    pytest.importorskip("resvg_py", reason="needs resvg-py: the extra unite")
    data.make("avatars", root=tmp_path, size=64, count=1)[0]
    status, lines, _ = run(capsys, "--data", "avatars", "--root", tmp_path)
    assert (status, lines) == (0, [f"avatars in {tmp_path}", "drawn pairs that are kept: 1", "training can start"])

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    status, lines, _ = run(capsys, "--data", "avatars", "--root", tmp_path)
    assert status == 1
    assert "missing: avatars need the package python-avatars: pip install 'uotlib[unite]'" in lines


def test_with_which_settings_training_can_start(scenes, capsys):
    """What is missing or wrong with the training split's list alone is nothing to pseudo pairs."""
    lists = scenes / "lists"
    for damage in (lambda: (lists / "train.csv").write_text("ADE_train_1,none\n"), (lists / "train.csv").unlink):
        damage()
        status, lines, _ = run(capsys, "--data", "ade20k", "--root", scenes)
        assert (status, lines[-1]) == (
            1, "training can start with pseudo pairs alone (train.pseudo_share=1), and not with other settings")
        assert len(data.make("ade20k", root=scenes, pseudo_share=1.0)) == 2
        with pytest.raises(DataError):
            data.make("ade20k", root=scenes, pseudo_share=0.9)
    (lists / "test.csv").unlink()
    assert run(capsys, "--data", "ade20k", "--root", scenes)[1][-1] == "training cannot start"


def test_commands_can_be_pasted(tmp_path):
    """Folders with a blank or a quote in their names are one word of the shell's."""
    root = tmp_path / "my data's"
    for folder in ("images/training", "images/validation"):
        (root / folder).mkdir(parents=True)
    with pytest.raises(DataError) as error:
        data.make("ade20k", root=root)
    (told,) = (line for line in str(error.value).splitlines() if "lists/train.csv" in line)
    words = shlex.split(told[told.index("python"):told.index(" makes it")])
    assert words == ["python", "-m", "examples.unite.retrieve", "--query", f"{root}/images/training", "--gallery",
                     f"{root}/images/training", "--suffix", ".jpg", "-k", "20", "-o", f"{root}/lists/train.csv",
                     "--file", "VGG19.pth"]
    last = str(error.value).splitlines()[-1]
    assert shlex.split(last[:last.index(" says more")])[-2:] == ["--root", str(root)]


@pytest.mark.parametrize(("name", "expected", "inner"), [
    ("ade20k", "images", "images"), ("coco", "annotations", "image"),
    ("celebahq", "CelebA-HQ-img", "CelebAMask-HQ-mask-anno"), ("deepfashion", "img", "pose")])
def test_a_root_that_is_none_or_one_level_off(name, expected, inner, tmp_path, capsys):
    right = tmp_path / "outer/right"
    for folder in {expected, inner, "unlike"}:
        (right / folder).mkdir(parents=True)
    (tmp_path / "file").touch()
    for root, words in ((tmp_path / "none", f"the folder {tmp_path}/none does not exist"),
                        (tmp_path / "file", f"{tmp_path}/file is a file, no folder"),
                        (tmp_path / "outer", f"{tmp_path}/outer is one level off: {expected} is in {right}, which is "
                         "the folder to give"),
                        (right / inner, f"{right / inner} is one level off: {expected} is in {right}, which is the "
                         "folder to give")):
        status, lines, _ = run(capsys, "--data", name, "--root", root)
        assert status == 1
        assert lines[1] == words
        assert sum(words in line for line in lines) == 1
        with pytest.raises(DataError) as error:
            data.make(name, root=root)
        assert str(error.value).splitlines()[1] == f"  {words}"
    for root in (right, right / "unlike"):  # what lies beside another data set is none of it
        assert "one level off" not in "".join(run(capsys, "--data", name, "--root", root)[1])


def test_refusals(tmp_path, capsys):
    assert run(capsys, "--data", "coco") == (1, [], "root must be the folder of the data coco, got none\n")
    with pytest.raises(ValueError, match=r"data must be one of avatars, folder, ade20k, .*, got 'faces'"):
        reports.report_of("faces", tmp_path)


def test_a_report_tells_nothing_twice(tmp_path):
    found = Report("ade20k", tmp_path, ())
    for _ in range(2):
        found.miss("a list")
        found.problem("bad files", "one")
    found.problem("bad files", "two")
    assert found.complaints() == ["missing: a list", "bad files: 2", "  one", "  two"]
    assert not found.right


def test_pictures_that_are_gone_while_they_are_read(tmp_path):
    found = Report("ade20k", tmp_path, ())
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    read = [file.name for file, _ in found.pictures([tmp_path / "a.png", tmp_path / "b.png"])]
    assert read == ["a.png"]
    assert found.complaints() == ["pictures that cannot be read: 1", "  b.png: it is gone"]
