"""COCO-Stuff layouts: which boxes and images are kept, what they fill, that a mirror takes them along, the cache."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from defects import assert_told
from PIL import Image

from examples.unite import data
from examples.unite.data import boxes
from examples.unite.data.coco import COCO, drawn, report
from examples.unite.data.report import DataError

SIDE = 64
CATEGORIES = {"instances": [(1, "person"), (13, "stop sign"), (90, "toothbrush")],
              "stuff": [(92, "banner"), (157, "sky-other"), (183, "other")]}
#: Boxes of an image: file of annotations, category, x, y, width, height of 64 x 64 pixels.
SKY, GROUND = ("stuff", 157, 0, 0, 64, 20), ("stuff", 92, 0, 44, 64, 20)
PERSON, SIGN = ("instances", 1, 8, 16, 16, 32), ("instances", 13, 40, 10, 12, 12)
TINY, OTHER = ("instances", 90, 0, 0, 9, 9), ("stuff", 183, 0, 0, 64, 64)
IMAGES = {1: [SKY, GROUND, PERSON], 2: [SKY, GROUND, SIGN, TINY, OTHER], 3: [SKY, PERSON, TINY, OTHER],
          4: 9 * [PERSON], 5: [SKY, GROUND, PERSON, SIGN]}


def file_name(split, number):
    return f"{number + 100 * (split == 'val'):012d}.jpg"


#: Shade of grey of each class that is kept, those drawn later being in front.
SHADES = {157: 250, 92: 190, 1: 60, 13: 125}


def painted(items):
    """An image that shows each box's class where it is."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for _, category, x, y, width, height in items:
        if category in SHADES:
            image[y:y + height, x:x + width] = SHADES[category]
    return image


def annotations(split, kind, images=IMAGES):
    found = [{"id": 10 * number + i, "image_id": number + 5, "category_id": category, "bbox": [x, y, width, height],
              "segmentation": [[1.0, 2.0, 3.0]] if kind == "instances" else {"counts": "abc", "size": [64, 64]}}
             for number, items in images.items()
             for i, (of, category, x, y, width, height) in enumerate(items) if of == kind]
    return {"info": {"year": 2017}, "images": [{"id": number + 5, "file_name": file_name(split, number), "width": 64,
                                                "height": 64} for number in images],
            "annotations": found, "categories": [{"id": i, "name": name} for i, name in CATEGORIES[kind]]}


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "lists").mkdir()
    for split in ("train", "val"):
        folder = tmp_path / f"image/{split}2017"
        folder.mkdir(parents=True)
        for number, items in IMAGES.items():
            Image.fromarray(painted(items)).save(folder / file_name(split, number), quality=100, subsampling=0)
        for kind in CATEGORIES:
            (tmp_path / f"annotations/{kind}_{split}2017.json").write_text(json.dumps(annotations(split, kind)))
    # Images 3 and 4 have too few and too many boxes: lists that retrieval made name them none the less.
    rows = [(1, 3, 2, 5), (2, 1, 5), (3, 1), (5, 1, 2), (4, 1)]
    for split in ("train", "val"):
        (tmp_path / f"lists/{'test' if split == 'val' else split}.csv").write_text(
            "".join(",".join(file_name(split, number) for number in row) + "\n" for row in rows))
    return tmp_path


def test_which_images_and_boxes_are_kept(tree):
    pairs = data.make("coco", root=tree, size=SIDE, split="test")
    assert [name for name, _ in pairs.rows] == ["000000000101", "000000000102", "000000000105"]
    assert pairs.rows[0][1] == ("000000000102", "000000000105")  # image 103 has too few boxes
    assert pairs.condition_channels == 183 == len(pairs.class_names)
    assert [pairs.class_names[i] for i in (0, 1, 12, 13, 157)] == ["no box", "person", "class 12", "stop sign",
                                                                  "sky-other"]
    sample = pairs[1]
    assert np.flatnonzero(sample.condition.flatten(1).amax(1)).tolist() == [0, 13, 92, 157]
    assert torch.equal(pairs[0].exemplar, sample.image)
    assert torch.equal(pairs[0].exemplar_condition, sample.condition)
    assert pairs.one_sided(0) == (("person",), ("stop sign",))


def test_a_box_fills_its_channel_and_channel_0_is_where_none_is(tree):
    condition = COCO(root=tree, size=SIDE, split="test")[0].condition
    for _, category, x, y, width, height in IMAGES[1]:
        expected = torch.zeros(SIDE, SIDE)
        expected[y:y + height, x:x + width] = 1
        assert torch.equal(condition[category], expected)
    assert torch.equal(condition[0], 1 - condition[1:].amax(0))
    assert condition[0].any()
    assert condition[:, 18, 10].sum() == 2  # a person before the sky


def test_how_large_a_box_must_be(tree):
    """Above 2 per cent of the image: of 100 x 100 pixels 200 are none, 205 are."""
    images = {1: [SKY, GROUND, PERSON, ("stuff", 92, 0, 0, 2, 100), ("stuff", 93, 0, 0, 5, 41)]}
    content = annotations("train", "stuff", images)
    content["images"][0].update(width=100, height=100)
    content["categories"].append({"id": 93, "name": "blanket"})
    for kind, tree_of in (("stuff", content), ("instances", annotations("train", "instances", images))):
        tree_of["images"][0].update(width=100, height=100)
        (tree / f"annotations/{kind}_train2017.json").write_text(json.dumps(tree_of))
    for number in range(2, 6):
        (tree / "image/train2017" / file_name("train", number)).unlink()
    layouts = COCO(root=tree, size=SIDE, pseudo_share=1).layouts
    assert layouts["000000000001"].channels.tolist() == [1, 157, 92, 93]


def test_boxes_at_any_size():
    corners = np.array([[0.25, 0.5, 0.5, 1.0], [0.1, 0.0, 0.3, 0.34]])
    planes = drawn(np.array([5, 7]), corners, 8)
    assert [np.argwhere(planes[..., i]).min(0).tolist() for i in (5, 7)] == [[4, 2], [0, 0]]
    assert [np.argwhere(planes[..., i]).max(0).tolist() for i in (5, 7)] == [[7, 3], [2, 2]]  # whatever it touches
    assert planes[7, 7, 0] == 1


def shown(image, condition):
    """Whether an image has the shade of the class in front wherever there is a box, and else none."""
    expected = torch.zeros(SIDE, SIDE)
    for category, shade in SHADES.items():
        expected[condition[category] > 0] = shade
    return float((((image[0] + 1) * 127.5 - expected).abs() < 30).float().mean()) > 0.98  # JPEG blurs borders


def test_a_mirror_takes_image_and_boxes_together(tree):
    pairs = COCO(root=tree, size=SIDE, seed=1)
    still = COCO(root=tree, size=SIDE, seed=1, mirror=False)
    mirrored = set()
    for epoch in range(6):
        pairs.set_epoch(epoch)
        still.set_epoch(epoch)
        for index in range(3):
            sample, straight = pairs[index], still[index]
            sides = (("image", "condition"), ("exemplar", "exemplar_condition"))
            for image, condition in sides:
                assert shown(getattr(sample, image), getattr(sample, condition))
                moved = not torch.equal(getattr(sample, image), getattr(straight, image))
                mirrored.add((index, image, moved))
                expected = getattr(straight, condition).flip(-1) if moved else getattr(straight, condition)
                assert torch.equal(getattr(sample, condition), expected)
                assert not shown(getattr(sample, image), getattr(sample, condition).flip(-1))
    assert len(mirrored) == 12  # every one of them both ways


def test_the_choice_of_exemplars(tree):
    pairs = COCO(root=tree, size=SIDE)
    kinds = set()
    for epoch in range(30):
        pairs.set_epoch(epoch)
        p = pairs.draw(0).random()
        given, pseudo = pairs.chosen(0, pairs.draw(0))
        assert (given, pseudo) == (("000000000001", True) if p >= 0.7 else
                                   (("000000000005" if p < 0.2 else "000000000002"), False))
        kinds.add(given)
    assert len(kinds) == 3
    (tree / "lists/train.csv").unlink()
    alone = COCO(root=tree, size=SIDE, pseudo_share=1)
    assert [name for name, _ in alone.rows] == ["000000000001", "000000000002", "000000000005"]
    assert alone[2].self_reference
    with pytest.raises(DataError, match=r"lists/train\.csv.*retrieve --query \S+/train2017 --gallery \S+/train2017"):
        COCO(root=tree, size=SIDE)


def test_annotations_are_parsed_once(tree, monkeypatch):
    first = COCO(root=tree, size=SIDE)
    stored = sorted((tree / "cache").iterdir())
    assert [file.name for file in stored] == ["boxes_train2017.npz"]
    parsed = []
    original = boxes._parsed
    monkeypatch.setattr(boxes, "_parsed", lambda file: parsed.append(file.name) or original(file))
    again = COCO(root=tree, size=SIDE)
    for pairs in (again, pickle.loads(pickle.dumps(first))):
        assert torch.equal(pairs[0].condition, first[0].condition)
        assert pairs.rows == first.rows
    assert parsed == []
    # Another annotation: other boxes, and the cache follows.
    file = tree / "annotations/instances_train2017.json"
    file.write_text(json.dumps(annotations("train", "instances", IMAGES | {2: [PERSON, SKY, GROUND]})))
    assert COCO(root=tree, size=SIDE)[1].condition[1].any()
    assert parsed == ["instances_train2017.json", "stuff_train2017.json"]
    os.utime(file, ns=(0, 0))
    COCO(root=tree, size=SIDE)
    assert len(parsed) == 4
    for damage in (b"", stored[0].read_bytes()[:-40], b"no archive at all"):
        stored[0].write_bytes(damage)
        assert COCO(root=tree, size=SIDE)[1].condition[1].any()
    assert len(parsed) == 10
    assert [file.name for file in (tree / "cache").iterdir()] == ["boxes_train2017.npz"]


def test_a_cache_that_cannot_be_written_is_a_warning(tree):
    (tree / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"cache/boxes_train2017\.npz cannot be written .*read anew each time"):
        assert len(COCO(root=tree, size=SIDE)) == 3


def rewrite(tree, change):
    file = tree / "annotations/stuff_train2017.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


DEFECTS = {
    "no images": (lambda tree: [file.unlink() for file in (tree / "image/train2017").iterdir()]
                  and (tree / "image/train2017").rmdir(), r"missing: image/train2017/, the images of split train"),
    "no annotations": (lambda tree: (tree / "annotations/stuff_train2017.json").unlink(),
                       r"missing: annotations/stuff_train2017\.json"),
    "image gone": (lambda tree: (tree / "image/train2017/000000000004.jpg").unlink(),
                   r"images that the annotations have and the folder lacks: 1\n\s+image/train2017/000000000004\.jpg"),
    "unknown image": (lambda tree: Image.new("RGB", (8, 8)).save(tree / "image/train2017/000000000077.jpg"),
                      r"images without annotations: 1\n\s+image/train2017/000000000077\.jpg"),
    "cut short": (lambda tree: (tree / "annotations/stuff_train2017.json").write_text('{"images": ['),
                  r"stuff_train2017\.json is cut short or no JSON"),
    "other JSON": (lambda tree: (tree / "annotations/stuff_train2017.json").write_text('[{"image": 1}]'),
                   r"stuff_train2017\.json is no file of COCO's annotations"),
    "no sides": (lambda tree: rewrite(tree, lambda content: content["images"][0].update(width=0)),
                 r"stuff_train2017\.json: image '000000000001\.jpg' is 0 x 64 pixels"),
    "short box": (lambda tree: rewrite(tree, lambda content: content["annotations"][0].update(bbox=[1, 2])),
                  r"stuff_train2017\.json has an image or a box with a wrong value"),
    "negative box": (lambda tree: rewrite(tree, lambda content: content["annotations"][0].update(bbox=[9, 2, -3, 4])),
                     r"stuff_train2017\.json: a box of image '000000000001\.jpg' is -3 x 4 pixels at \(9, 2\)"),
    "infinite box": (lambda tree: rewrite(tree, lambda content: content["annotations"][0].update(
        bbox=[9, 2, 3, float("inf")])), r"a box of image '000000000001\.jpg' is 3 x inf pixels at \(9, 2\)"),
    "no number": (lambda tree: rewrite(tree, lambda content: content["annotations"][0].update(
        bbox=[float("nan"), 2, 3, 4])), r"a box of image '000000000001\.jpg' is 3 x 4 pixels at \(nan, 2\)"),
    "endless image": (lambda tree: rewrite(tree, lambda content: content["images"][0].update(width=float("inf"))),
                      r"stuff_train2017\.json: image '000000000001\.jpg' is inf x 64 pixels"),
    "box of no image": (lambda tree: rewrite(tree, lambda content: content["annotations"][0].update(image_id=99)),
                        r"stuff_train2017\.json: a box is of image 99"),
    "unknown class": (lambda tree: rewrite(tree, lambda content: content["annotations"][0].update(category_id=184)),
                      r"image/train2017/000000000001\.jpg: category 184, where 1 to 183 are known"),
    "unknown exemplar": (lambda tree: (tree / "lists/train.csv").write_text("000000000001,000000000102\n"),
                         r"lists/train\.csv, line 1: there is no image '000000000102'"),
    "itself": (lambda tree: (tree / "lists/train.csv").write_text("000000000001,train2017/000000000001.jpg\n"),
               r"lists/train\.csv lists no exemplar that is used"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_has_its_message_in_training_and_in_the_report(tree, defect):
    told = assert_told(DEFECTS[defect], tree, lambda: COCO(root=tree, size=SIDE), report)
    assert len(told.complaints()) == (1 if told.missing else 2)  # told once
    assert told.complaints() == report(tree).complaints()


def test_the_report_of_a_whole_tree(tree):
    found = report(tree, decode=True)
    assert found.right, found.complaints()
    assert [tuple(count) for count in found.found] == [
        ("train images", 5, 118_287), ("train images with 3 to 8 boxes", 3, None), ("train images with exemplars", 3,
        None), ("test images", 5, 5_000), ("test images with 3 to 8 boxes", 3, None),
        ("test images with exemplars", 3, None)]
    (tree / "image/val2017/000000000105.jpg").write_bytes(b"no picture")
    assert report(tree).right
    assert report(tree, decode=True).complaints() == [
        "pictures that cannot be read: 1", "  image/val2017/000000000105.jpg: cannot identify image file"]


def test_exemplars_that_are_all_left_out_are_counted(tree):
    (tree / "lists/test.csv").write_text("000000000101,000000000103,000000000104\n000000000102,000000000101\n")
    assert [name for name, _ in COCO(root=tree, size=SIDE, split="test").rows] == ["000000000102"]
    assert ("lines of lists/test.csv without an exemplar that is used", 1, None) in report(tree).found
