"""A folder of one's own data: what is right loads, what is wrong is named; crops, flips, choice of the exemplar."""

import copy
import pickle
import re
import shutil
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from examples.unite import data
from examples.unite.data.__main__ import main
from examples.unite.data.check import FolderError, Unreadable, check_folder, load_picture
from examples.unite.data.folder import Folder, read_condition, read_image
from examples.unite.data.reading import class_planes
from examples.unite.stream import Endless


def equal(one, other):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
               for x, y in zip(vars(one).values(), vars(other).values(), strict=True))


def labels(rng, side=40, classes=3):
    made = Image.fromarray(rng.integers(0, classes, (side, side), dtype=np.uint8))
    made.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    return made


@pytest.fixture
def folder(tmp_path):
    """Four pairs of 40 x 40 whose images show their class ids in red."""
    rng = np.random.default_rng(0)
    root = tmp_path / "mine"
    (root / "condition").mkdir(parents=True)
    (root / "image").mkdir()
    for name in "abcd":
        condition = labels(rng)
        condition.save(root / "condition" / f"{name}.png")
        image = np.zeros((40, 40, 3), dtype=np.uint8)
        image[..., 0] = np.asarray(condition) * 100
        image[..., 2] = 50 * "abcd".index(name)
        Image.fromarray(image).save(root / "image" / f"{name}.{'png' if name != 'd' else 'bmp'}")
    (root / "pairs.csv").write_text("name,exemplar\na,b,c\nb,a.png\nc,d\nd,a\n")
    return root


def test_a_good_folder_loads(folder):
    listing = check_folder(folder)
    assert listing.rows == (("a", ("b", "c")), ("b", ("a",)), ("c", ("d",)), ("d", ("a",)))
    pairs = data.make("folder", root=folder, size=64, split="test", seed=1)
    assert pairs.condition_channels == 3
    assert pairs.class_names == ("class 0", "class 1", "class 2")
    sample = pairs[0]
    assert sample.condition.shape == (3, 64, 64)
    assert sample.name == "a"
    assert not sample.self_reference
    assert torch.equal(sample.condition, read_condition(folder / "condition/a.png", 64, 3))
    assert torch.equal(sample.exemplar, read_image(folder / "image/b.png", 64))
    assert pairs.one_sided(0) == ((), ())
    (folder / "classes.txt").write_text("sky\nsea\nland\nship\n")
    assert data.make("folder", root=folder, size=64).class_names == ("sky", "sea", "land", "ship")
    (folder / "pairs_test.csv").write_text("d,c\n")
    assert [len(Folder(root=folder, size=64, split=split)) for split in ("train", "test")] == [4, 1]
    assert len(Folder(root=folder, size=64, count=2)) == 2


@pytest.mark.parametrize("head", ["name,exemplar", "name,exemplar1,exemplar2", "Name,Exemplar 1", "name,exemplar_1"])
def test_a_first_line_that_names_columns_is_no_pair(folder, head):
    (folder / "pairs.csv").write_text(f"{head}\na,b,c\n")
    assert check_folder(folder).rows == (("a", ("b", "c")),)


def test_ids_of_sixteen_bits(folder):
    """As many classes as are named, also above 255; what is unknown is refused and does not wrap."""
    ids = np.full((40, 40), 300, dtype=np.uint16)
    file = folder / "condition/a.png"
    Image.fromarray(ids).save(file)
    with pytest.raises(ValueError, match=r"a\.png has the class id 300, but there are 256 classes"):
        read_condition(file, 32, 256)
    assert read_condition(file, 32, 301)[300].all()
    with pytest.raises(FolderError, match=r"condition/a\.png has the unknown class id 300"):
        check_folder(folder)
    (folder / "classes.txt").write_text("".join(f"c{i}\n" for i in range(301)))
    assert data.make("folder", root=folder, size=32, split="test")[0].condition[300].all()


def test_crops_and_flips_keep_condition_and_image_together(folder):
    """At the size that needs no resampling, red is the class id at every position."""
    pairs = Folder(root=folder, size=36, seed=2)  # 286 / 256 of it are the 40 pixels of the files
    kinds = set()
    for epoch in range(12):
        pairs.set_epoch(epoch)
        for index in range(4):
            sample = pairs[index]
            for image, condition in ((sample.image, sample.condition), (sample.exemplar, sample.exemplar_condition)):
                assert torch.equal(((image[0] + 1) * 127.5 / 100).round().long(), condition.argmax(0))
            who = round(float(sample.exemplar[2, 0, 0] + 1) * 127.5 / 50)
            assert sample.self_reference == (who == index)
            kinds.add((sample.name, who))
            if sample.self_reference and not torch.equal(sample.exemplar, sample.image):
                kinds.add("moved")
    # a with its easy and its hard exemplar and with itself
    assert kinds >= {("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 3), "moved"}
    fresh = Folder(root=folder, size=36, seed=2)
    assert not equal(pairs[2], fresh[2])
    fresh.set_epoch(11)
    assert equal(pairs[2], fresh[2])
    assert equal(pairs[2], pickle.loads(pickle.dumps(pairs))[2])


def test_how_often_which_exemplar(folder):
    pairs = Folder(root=folder, size=36)
    found = []
    for epoch in range(400):
        pairs.set_epoch(epoch)
        p = pairs.draw(0).random()
        found.append("self" if p >= 0.7 else "hard" if p < 0.2 else "easy")
        name, _ = pairs.chosen(0, pairs.draw(0))
        assert {"a": "self", "b": "easy", "c": "hard"}[name] == found[-1]
        if epoch < 20:
            who = round(float(pairs[0].exemplar[2, 0, 0] + 1) * 127.5 / 50)
            assert "abc"[who] == name
    # Shares 0.3, 0.2, 0.5 with a standard deviation of 0.025 at most.
    for kind, share in (("self", 0.3), ("hard", 0.2), ("easy", 0.5)):
        assert abs(found.count(kind) / len(found) - share) < 0.1


def test_rgb_conditions(folder):
    for file in (folder / "condition").iterdir():
        Image.open(file).convert("RGB").save(file)
    pairs = Folder(root=folder, size=32, split="test")
    assert pairs.condition_channels == 3
    assert pairs.class_names is None
    assert pairs[0].condition.min() >= 0
    assert pairs[0].condition.max() <= 1
    with pytest.raises(ValueError, match="class ids"):
        pairs.one_sided(0)
    with pytest.raises(ValueError, match="RGB image"):
        read_condition(folder / "condition/a.png", 32, 9)


def broken(root):
    (root / "image/a.png").write_bytes((root / "image/a.png").read_bytes()[:60])


def no_image_file(root):
    (root / "image/a.png").write_text("not a picture")


def other_size(root):
    Image.new("RGB", (30, 40)).save(root / "image/b.png")


def rgb_condition(root):
    Image.new("RGB", (40, 40)).save(root / "condition/c.png")


def huge_header(root):
    """A BMP that says it had 60000 x 60000 pixels."""
    file = root / "image/d.bmp"
    content = bytearray(file.read_bytes())
    content[18:26] = struct.pack("<ii", 60000, 60000)
    file.write_bytes(content)


def in_latin_1(root, name, text):
    (root / name).write_bytes(text.encode("latin-1"))


DEFECTS = {
    "huge header": (huge_header, r"image/d\.bmp cannot be read: Image size .* exceeds limit"),
    "pairs in latin-1": (lambda root: in_latin_1(root, "pairs.csv", "a,b\nc,\xe9\n"),
                         r"pairs\.csv, line 2: not in UTF-8 \(byte 0xe9\)"),
    "endless field": (lambda root: (root / "pairs.csv").write_text("a,b\n\"" + 200_000 * "x"),
                      r"pairs\.csv cannot be read: field larger"),
    "classes in latin-1": (lambda root: in_latin_1(root, "classes.txt", "ciel\nfor\xeat\nmer\n"),
                           r"classes\.txt, line 2: not in UTF-8 \(byte 0xea\)"),
    "broken image": (broken, r"image/a\.png cannot be read: "),
    "no image": (no_image_file, r"image/a\.png cannot be read: cannot identify"),
    "missing image": (lambda root: (root / "image/b.png").unlink(), r"image/b\.\* is missing \(pairs.csv, line 2\)"),
    "capitals": (lambda root: (root / "image/b.png").rename(root / "image/b.JPG"),
                 r"image/b\.\* is missing \(pairs\.csv, line 2\); b\.JPG is there, whose ending must be \.jpg"),
    "labels in capitals": (lambda root: (root / "condition/d.png").rename(root / "condition/d.PNG"),
                           r"condition/d\.png is missing .*; d\.PNG is there, whose ending must be \.png"),
    "two images": (lambda root: Image.new("RGB", (40, 40)).save(root / "image/c.jpg"),
                   r"image/c has more than one file: c\.png, c\.jpg"),
    "missing labels": (lambda root: (root / "condition/d.png").unlink(), r"condition/d\.png is missing .*line 4"),
    "broken labels": (lambda root: (root / "condition/d.png").write_bytes(b""), r"condition/d\.png cannot be read"),
    "wrong size": (other_size, r"condition/b\.png is 40 x 40, but image/b\.png is 30 x 40"),
    "unknown id": (lambda root: (root / "classes.txt").write_text("sky\nsea\n"),
                   r"condition/a\.png has the unknown class id 2: classes\.txt names 0 to 1"),
    "other kind": (rgb_condition, r"condition/c\.png is an RGB image, but others are class ids"),
    "short line": (lambda root: (root / "pairs.csv").write_text("a,b\nc\n"), r"pairs\.csv, line 2: .* got 'c'"),
    "name twice": (lambda root: (root / "pairs.csv").write_text("a,b\na,c\n"), r"line 2: 'a' stands in line 1"),
    "no pairs": (lambda root: (root / "pairs.csv").write_text("name,exemplar\n"), r"pairs\.csv lists no pairs"),
    "no list": (lambda root: (root / "pairs.csv").unlink(), r"pairs\.csv is missing"),
    "no conditions": (lambda root: shutil.rmtree(root / "condition"), r"condition/ is missing"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_of_a_folder_has_its_message(folder, defect):
    damage, message = DEFECTS[defect]
    damage(folder)
    with pytest.raises(FolderError, match=message) as error:
        data.make("folder", root=folder, size=64)
    assert len(error.value.problems) == (4 if defect == "unknown id" else 1)


def test_all_defects_of_a_folder_come_in_one_error(folder):
    broken(folder)
    other_size(folder)
    (folder / "condition/d.png").unlink()
    with pytest.raises(FolderError, match="3 problems") as error:
        check_folder(folder)
    assert [problem.split()[0] for problem in error.value.problems] == ["image/a.png", "condition/b.png",
                                                                       "condition/d.png"]


def test_pairs_to_look_at(folder, tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--data", "folder", "--root", str(folder), "--size", "64"]
    assert main(arguments) == 0
    assert (tmp_path / "folder-train.png").is_file()
    broken(folder)
    assert main(arguments) == 1
    assert "image/a.png cannot be read" in capsys.readouterr().err


def test_class_ids_are_those_of_the_nearest_pixel(folder):
    """Of files of twice the size: an id between two of the file's would be neither's."""
    ids = np.random.default_rng(3).choice((0, 2), (80, 80)).astype(np.uint8)
    Image.fromarray(ids).save(folder / "condition/a.png")
    condition = read_condition(folder / "condition/a.png", 40, 3)
    assert condition.sum(0).eq(1).all()
    assert condition.flatten(1).amax(1).tolist() == [1, 0, 1]
    assert sum((condition.argmax(0).numpy() == ids[i::2, j::2]).all() for i in (0, 1) for j in (0, 1)) == 1


def test_class_planes_are_one_hot_and_lie_as_networks_take_them():
    ids = np.random.default_rng(0).integers(0, 5, (6, 7))
    planes = class_planes(ids, 5)
    assert planes.is_contiguous()
    assert planes.dtype == torch.float32
    assert torch.equal(planes, torch.stack([torch.from_numpy(ids == i) for i in range(5)]).float())


def test_half_of_all_pictures_are_mirrored(folder):
    """Of 400 sides of pairs, with a standard deviation of 0.025."""
    for file in (folder / "condition").iterdir():
        ids = np.zeros((40, 40), dtype=np.uint8)
        ids[:, :20] = 1
        Image.fromarray(ids).save(file)
    pairs = Folder(root=folder, size=36)
    mirrored = []
    for epoch in range(50):
        pairs.set_epoch(epoch)
        mirrored += [int(side.argmax(0)[0, 0]) == 0 for index in range(4) for sample in [pairs[index]]
                     for side in (sample.condition, sample.exemplar_condition)]
    assert abs(np.mean(mirrored) - 0.5) < 0.1


def test_an_error_of_a_picture_comes_out_of_a_loader(folder):
    """By its type and its message; its own reason is for whoever reads the file in the same process."""
    broken(folder)
    with pytest.raises(Unreadable, match=r"image/a\.png cannot be read: ") as error:
        list(DataLoader([folder / "image/a.png"], num_workers=1, collate_fn=lambda files: load_picture(files[0])))
    assert pickle.loads(pickle.dumps(error.value)).args == error.value.args
    with pytest.raises(Unreadable) as error:
        load_picture(folder / "image/a.png")
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.reason) == (str(error.value), error.value.reason) != ("", "")


def test_a_folder_that_is_none_or_one_level_off(folder):
    for root, message in ((folder / "none", r"the folder \S+/none does not exist"),
                          (folder / "pairs.csv", r"\S+/pairs\.csv is a file, no folder"),
                          (folder.parent, r"\S+ is one level off: pairs\.csv is in \S+/mine, which is the folder to"),
                          (folder / "image", r"\S+/image is one level off: pairs\.csv is in \S+/mine, which")):
        with pytest.raises(FolderError) as error:
            check_folder(root)
        assert re.match(message, error.value.problems[0])


def test_without_mirror_left_stays_left(folder):
    """Every name's picture has its left half in class 1 alone: a mirrored crop would begin with class 0."""
    for file in (folder / "condition").iterdir():
        ids = np.zeros((40, 40), dtype=np.uint8)
        ids[:, :20] = 1
        Image.fromarray(ids).save(file)
    found = {}
    for mirror in (True, False):
        pairs = data.make("folder", root=folder, size=36, seed=2, mirror=mirror)
        found[mirror] = {int(side.argmax(0)[0, 0]) for index in range(4) for sample in [pairs[index]]
                         for side in (sample.condition, sample.exemplar_condition)}
    assert found == {True: {0, 1}, False: {1}}


def test_a_process_of_a_loader_has_an_epoch_and_no_lists_of_its_own(folder):
    pairs = Folder(root=folder, size=36, seed=2)
    pairs.set_epoch(3)
    source = Endless(pairs, seed=0)
    source._process = -1  # as a process sees it that was forked
    assert equal(source[9], copy.deepcopy(source)[9])
    assert source.pairs is not pairs
    assert (source.pairs.epoch, pairs.epoch) == (2, 3)
    assert source.pairs.rows is pairs.rows
    assert source.pairs.listing is pairs.listing


def test_the_setting_reaches_a_trainings_data(folder):
    pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
    pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")
    from examples.unite.config import preset
    from examples.unite.trainer import make_data

    for mirror in (True, False):
        config = preset("tiny").replace("data", source="folder", root=str(folder), mirror=mirror)
        assert make_data(config)[0].mirror is mirror


def test_grey_images_of_16_bits_keep_their_shades(tmp_path):
    """Pillow alone makes every value above 255 white."""
    Image.fromarray(np.full((40, 40), 257 * 100, np.uint16)).save(tmp_path / "grey.png")
    assert torch.allclose(read_image(tmp_path / "grey.png", 32), torch.tensor(100 / 127.5 - 1))
    Image.fromarray(np.full((40, 40), 65536, np.int32)).save(tmp_path / "deep.tiff")
    with pytest.raises(Unreadable, match=r"deep\.tiff cannot be read: grey values must be from 0 to 65535"):
        read_image(tmp_path / "deep.tiff", 32)
