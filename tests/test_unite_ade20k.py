"""ADE20K on the disk, as the archive has it and with class ids beside the images; exemplar lists of data sets."""

import shutil

import numpy as np
import pytest
import torch
from defects import assert_told
from PIL import Image

from examples.unite import data
from examples.unite.data.ade20k import ADE20K, report
from examples.unite.data.report import DataError

SIDE = 40
#: Class ids that the trees below use; an image shows a class as a shade of grey, the picture's own shade in blue.
IDS = (0, 3, 77, 150, 255)
SHADES = dict(zip(IDS, (10, 60, 110, 160, 210), strict=True))


def scene(rng, folder, labels, name, blue):
    """Blocks of classes, big enough to outlive JPEG; the image's red is their shade."""
    ids = rng.choice(IDS, (5, 5)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    red = np.vectorize(SHADES.get)(ids)
    image = np.stack([red, red, np.full_like(red, blue)], -1).astype(np.uint8)
    Image.fromarray(image).save(folder / f"{name}.jpg", quality=100, subsampling=0)
    Image.fromarray(ids).save(labels / f"{name}.png")


@pytest.fixture(params=["annotations", "beside"])
def tree(tmp_path, request):
    """Four training and two validation images, with lists."""
    rng = np.random.default_rng(0)
    for folder, prefix, count in (("training", "ADE_train_", 4), ("validation", "ADE_val_", 2)):
        images = tmp_path / "images" / folder
        labels = tmp_path / "annotations" / folder if request.param == "annotations" else images
        for each in (images, labels):
            each.mkdir(parents=True, exist_ok=True)
        for i in range(1, count + 1):
            scene(rng, images, labels, f"{prefix}{i:08d}", 50 * (i - 1) + 20 * (folder == "validation"))
    (tmp_path / "lists").mkdir()
    train = [(1, 2, 3), (2, 1, 4), (3, 4, 1), (4, 3, 2)]
    (tmp_path / "lists/train.csv").write_text(
        "name,exemplar1,exemplar2\n" + "".join(",".join(f"ADE_train_{i:08d}" for i in row) + "\n" for row in train))
    # Names with folders, suffixes and slashes of either kind.
    (tmp_path / "lists/test.csv").write_text("validation/ADE_val_00000001.jpg,training\\ADE_train_00000003.jpg\n"
                                             "ADE_val_00000002,./images/training/ADE_train_00000001.jpg\n")
    return tmp_path


def shade(image):
    """The class id that each position of an image shows."""
    red = (image[0] + 1) * 127.5
    shades = torch.tensor(list(SHADES.values()))
    return torch.tensor([150 if i == 255 else i for i in IDS])[(red[..., None] - shades).abs().argmin(-1)]


def blue(image):
    return round(float((image[2].mean() + 1) * 127.5))


def test_items_of_the_test_split(tree):
    pairs = data.make("ade20k", root=tree, size=SIDE, split="test")
    assert (len(pairs), pairs.condition_channels, pairs.class_names) == (2, 151, None)
    for sample, target, exemplar in zip((pairs[0], pairs[1]), (20, 70), (100, 0), strict=True):
        assert sample.condition.shape == (151, SIDE, SIDE)
        assert torch.equal(sample.condition.sum(0), torch.ones(SIDE, SIDE))
        assert torch.equal(sample.condition.argmax(0), shade(sample.image))  # 255 is channel 150
        assert torch.equal(sample.exemplar_condition.argmax(0), shade(sample.exemplar))
        assert abs(blue(sample.image) - target) <= 2
        assert abs(blue(sample.exemplar) - exemplar) <= 2
        assert not sample.self_reference
    assert [sample.name for sample in (pairs[0], pairs[1])] == ["ADE_val_00000001", "ADE_val_00000002"]
    assert pairs[0].condition[150].any()


def test_crops_and_mirrors_keep_class_ids_and_image_together(tree):
    """At the size that needs no resampling: 286 / 256 of 36 are the 40 pixels of the files."""
    pairs = ADE20K(root=tree, size=36, seed=1)
    kinds = set()
    for epoch in range(12):
        pairs.set_epoch(epoch)
        for index in range(4):
            sample = pairs[index]
            for image, condition in ((sample.image, sample.condition), (sample.exemplar, sample.exemplar_condition)):
                assert torch.equal(condition.argmax(0), shade(image))
            given = round(blue(sample.exemplar) / 50)
            assert sample.self_reference == (given == index)
            kinds.add((index, given))
    assert kinds >= {(0, 0), (0, 1), (0, 2), (1, 0)}  # itself, the easy one, the hard one
    whole = {tuple(ADE20K(root=tree, size=36, seed=1, mirror=mirror)[index].condition.argmax(0)[0].tolist())
             for mirror in (True, False) for index in range(4)}
    assert len(whole) > 4  # some of them were mirrored


def test_an_image_that_is_listed_as_its_own_exemplar_is_left_out_and_counted(tree):
    write_list(tree, "train", "ADE_train_00000001,ADE_train_00000001,ADE_train_00000003\n")
    assert ADE20K(root=tree, size=36).rows == (("ADE_train_00000001", ("ADE_train_00000003",)),)
    assert "exemplars of lists/train.csv that are the image itself, left out: 1" in " ".join(report(tree).lines())


def test_with_pseudo_pairs_alone_no_list_is_needed(tree):
    (tree / "lists/train.csv").unlink()
    pairs = ADE20K(root=tree, size=36, pseudo_share=1)
    assert len(pairs) == 4
    assert all(pairs[index].self_reference for index in range(4))
    with pytest.raises(DataError, match=r"missing: lists/train\.csv.*python -m examples\.unite\.retrieve --query "
                                        r"\S+/images/training --gallery \S+/images/training --suffix \.jpg -k 20 "
                                        r"-o \S+/lists/train\.csv --file VGG19\.pth makes it \(VGG19\.pth: "
                                        r"torchvision's state dict of vgg19, https://\S+\.pth\); with pseudo pairs"):
        ADE20K(root=tree, size=36)
    assert len(ADE20K(root=tree, size=36, split="test", pseudo_share=0)) == 2


def test_names_of_classes_come_from_the_archive(tree):
    lines = [f"{i}\t 0.1\t 5\t 6\t thing {i}, item {i}   \n" for i in range(1, 151)]
    (tree / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + "".join(lines))
    pairs = ADE20K(root=tree, size=SIDE, split="test")
    assert pairs.class_names[:3] == ("unknown", "thing 1", "thing 2")
    sample = pairs[0]
    here, there = (set(np.unique(c.argmax(0)).tolist()) for c in (sample.condition, sample.exemplar_condition))
    names = pairs.class_names
    assert pairs.one_sided(0) == (tuple(names[i] for i in sorted(here - there)),
                                  tuple(names[i] for i in sorted(there - here)))
    (tree / "objectInfo150.txt").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=r"objectInfo150\.txt must name classes 1 to 150"):
        ADE20K(root=tree, size=SIDE)


def write_list(tree, split, text):
    (tree / f"lists/{split}.csv").write_text(text)


def labels_of(tree, name):
    (found,) = tree.rglob(f"{name}.png")
    return found


DEFECTS = {
    "no training images": (lambda tree: shutil.rmtree(tree / "images/training"), r"missing: images/training/"),
    "no JPG": (lambda tree: [file.unlink() for file in tree.rglob("ADE_train_*.jpg")],
               r"missing: the JPG images of images/training/"),
    "no class ids": (lambda tree: labels_of(tree, "ADE_train_00000002").unlink(),
                     r"images without class ids: 1\n.*ADE_train_00000002\.jpg has no .*ADE_train_00000002\.png"),
    "no image": (lambda tree: (tree / "images/training/ADE_train_00000004.jpg").unlink(),
                 r"class ids without an image: 1\n.*ADE_train_00000004\.png has no images/training/ADE_train_0"),
    "unknown name": (lambda tree: write_list(tree, "train", "ADE_train_00000009,ADE_train_00000001\n"),
                     r"lists/train\.csv, line 1: split train has no image 'ADE_train_00000009'"),
    "unknown exemplar": (lambda tree: write_list(tree, "train", "ADE_train_00000001,ADE_val_00000001\n"),
                         r"lists/train\.csv, line 1: there is no image 'ADE_val_00000001'"),
    "itself": (lambda tree: write_list(tree, "train", "ADE_train_00000001,training/ADE_train_00000001.jpg\n"),
               r"lists/train\.csv lists no exemplar that is used"),
    "no exemplar": (lambda tree: write_list(tree, "train", "\nADE_train_00000001\n"),
                    r"lists/train\.csv, line 2: a line is name,exemplar"),
    "empty list": (lambda tree: write_list(tree, "train", "name,exemplar\n"), r"train\.csv lists no pairs"),
}


@pytest.mark.parametrize("tree", ["annotations"], indirect=True)
@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_has_its_message_in_training_and_in_the_report(tree, defect):
    refused = assert_told(DEFECTS[defect], tree, lambda: ADE20K(root=tree, size=36), report)
    told = "\n".join(report(tree).complaints(examples=9))
    for line in refused.complaints(examples=9):
        assert line.strip() in told


@pytest.mark.parametrize("tree", ["annotations"], indirect=True)
def test_exemplars_of_the_test_split_are_training_images(tree):
    write_list(tree, "test", "ADE_val_00000001,ADE_val_00000002\nADE_val_00000002,ADE_train_00000007\n")
    with pytest.raises(DataError) as error:
        ADE20K(root=tree, size=36, split="test")
    assert list(error.value.report.problems["lines of exemplar lists"]) == [
        "lists/test.csv, line 1: 'ADE_val_00000002' is an image of split test, whose exemplars are of the training "
        "split", "lists/test.csv, line 2: there is no image 'ADE_train_00000007'"]
    # A validation image among the training images: it is in both splits.
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        shutil.copy(tree / f"{kind}/validation/ADE_val_00000002.{suffix}", tree / f"{kind}/training")
    with pytest.raises(DataError, match="'ADE_val_00000002' is in both splits, and so no exemplar of split test"):
        ADE20K(root=tree, size=36, split="test")


def test_the_report_of_a_whole_tree(tree):
    found = report(tree, decode=True)
    assert found.right, found.complaints()
    assert [tuple(count) for count in found.found] == [
        ("train images", 4, 20_210), ("train images with class ids", 4, 20_210), ("test images", 2, 2_000),
        ("test images with class ids", 2, 2_000), ("train images with exemplars", 4, None),
        ("test images with exemplars", 2, None)]


@pytest.mark.parametrize("tree", ["annotations"], indirect=True)
def test_what_heads_of_files_say_and_what_only_decoding_finds(tree):
    labels = tree / "annotations/training"
    Image.fromarray(np.full((SIDE, SIDE), 200, np.uint8)).save(labels / "ADE_train_00000001.png")
    Image.new("RGB", (SIDE, SIDE)).save(labels / "ADE_train_00000002.png")
    Image.new("L", (SIDE, 7)).save(labels / "ADE_train_00000003.png")
    (tree / "images/training/ADE_train_00000004.jpg").write_bytes(b"no picture")
    cut = tree / "images/validation/ADE_val_00000001.jpg"
    cut.write_bytes(cut.read_bytes()[:-30])
    heads = {"pictures that cannot be read": ["images/training/ADE_train_00000004.jpg: cannot identify image file"],
             "class ids of another size than their image":
                 ["annotations/training/ADE_train_00000003.png is 40 x 7, its image 40 x 40"]}
    assert {kind: list(messages) for kind, messages in report(tree).problems.items()} == heads
    found = {kind: list(messages) for kind, messages in report(tree, decode=True).problems.items()}
    assert found.pop("class ids that are none") == [
        "annotations/training/ADE_train_00000001.png: class id 200, where 0 to 150 and 255 are known",
        "annotations/training/ADE_train_00000002.png: an image in colours, no class ids"]
    unreadable = found["pictures that cannot be read"]
    assert unreadable.pop().startswith("images/validation/ADE_val_00000001.jpg: image file is truncated")
    assert found == heads
    pairs = ADE20K(root=tree, size=36, pseudo_share=1)
    for index, message in enumerate((r"00001\.png: class id 200", r"00002\.png: an image in colours",
                                     r"00003\.png is 40 x 7, its image 40 x 40")):
        with pytest.raises(ValueError, match=message):
            pairs[index]


@pytest.mark.parametrize("tree", ["annotations"], indirect=True)
def test_class_ids_are_those_of_the_nearest_pixel(tree):
    """Files of twice the size and of other ones: an id between two of the file's would be neither's."""
    for side in (2 * SIDE, 67):
        ids = np.random.default_rng(side).choice((3, 150), (side, side)).astype(np.uint8)
        Image.fromarray(ids).save(labels_of(tree, "ADE_val_00000001"))
        Image.new("RGB", (side, side)).save(tree / "images/validation/ADE_val_00000001.jpg")
        condition = ADE20K(root=tree, size=SIDE, split="test")[0].condition
        assert condition.sum(0).eq(1).all()
        assert condition.flatten(1).amax(1).nonzero().flatten().tolist() == [3, 150]
        if side == 2 * SIDE:  # pixel 2 i or 2 i + 1 is as near as the other
            of = [(condition.argmax(0).numpy() == ids[i::2, j::2]).all() for i in (0, 1) for j in (0, 1)]
            assert sum(of) == 1


def test_another_count_or_size(tree):
    assert len(ADE20K(root=tree, size=36, count=2)) == 2
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        ADE20K(root=tree, size=36, count=0)
