"""CelebA-HQ on the disk: borders and distances of parts, mirrored faces, splits, exemplars, what is wrong by file."""

import numpy as np
import pytest
import torch
from defects import assert_told
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_cdt

pytest.importorskip("skimage", reason="edges need scikit-image: the extra unite")

from examples.unite import data
from examples.unite.data.celebahq import CelebAHQ, report
from examples.unite.data.face_parts import PARTS, POINTS, edge_planes, face_points, mirrored_planes
from examples.unite.data.lines import texture
from examples.unite.data.report import DataError

SIDE = 48
#: Boxes of parts in a face of `SIDE`; the person's left is the right of the picture.
BOXES = {"skin": (12, 10, 35, 40), "hair": (8, 2, 39, 12), "r_brow": (14, 14, 20, 15), "l_brow": (27, 15, 33, 16),
         "r_eye": (15, 18, 20, 20), "l_eye": (27, 19, 31, 22), "r_ear": (8, 18, 12, 25), "nose": (22, 20, 25, 28),
         "u_lip": (19, 31, 28, 32), "l_lip": (19, 34, 29, 35)}
OTHER = {"l": "r", "r": "l"}
TRAINING, TEST = (3, 7, 2001, 4000), (12, 2010)


def face(root, number, absent=()):
    """An image whose background is striped, and the masks of its parts, in colours and of twice its side."""
    image = Image.new("RGB", (SIDE, SIDE), (20, 40, 60))
    draw = ImageDraw.Draw(image)
    for x in range(0, SIDE, 12):
        draw.rectangle((x, 0, x + 5, SIDE), fill=(220, 200, number % 256))
    folder = root / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    folder.mkdir(parents=True, exist_ok=True)
    for part, box in BOXES.items():
        if part not in absent:
            draw.rectangle(box, fill=(255, 10 * PARTS.index(part), 0))
            mask = Image.new("RGB", (2 * SIDE, 2 * SIDE))
            x, y, right, bottom = box
            ImageDraw.Draw(mask).rectangle((2 * x, 2 * y, 2 * right + 1, 2 * bottom + 1), fill=(255, 255, 255))
            mask.save(folder / f"{number:05d}_{part}.png")
    (root / "CelebA-HQ-img").mkdir(exist_ok=True)
    image.save(root / "CelebA-HQ-img" / f"{number}.jpg", quality=95)


@pytest.fixture
def tree(tmp_path):
    for number in (*TRAINING, *TEST):
        face(tmp_path, number, absent=("r_ear",) if number == 7 else ())
    (tmp_path / "train.txt").write_text("".join(f"{number}\n" for number in TRAINING))
    (tmp_path / "val.txt").write_text("12\n2010")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.csv").write_text("3.jpg,7.jpg,2001.jpg\n7.jpg,3.jpg\n2001,4000\n4000,3\n")
    (tmp_path / "lists/test.csv").write_text("12.jpg,4000.jpg,3.jpg\n2010.jpg,7.jpg\n")
    return tmp_path


def regions():
    """The parts' regions at `SIDE`."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return {part: (x <= columns) & (columns <= right) & (y <= rows) & (rows <= bottom)
            for part, (x, y, right, bottom) in BOXES.items()}


def test_channels_of_edges(tree):
    """Borders are where a mask differs from a neighbour; distances are those of SciPy's transform of them."""
    sample = CelebAHQ(root=tree, size=SIDE, split="test")[0]
    assert sample.condition.shape == (15, SIDE, SIDE)
    planes = sample.condition.numpy()
    joined = np.zeros((SIDE, SIDE), dtype=bool)
    for part, plane in zip(PARTS, planes[1:14], strict=True):
        if part not in BOXES:
            assert (plane == 1).all()
            continue
        inside = regions()[part]
        line = np.zeros_like(inside)
        for axis in (0, 1):
            differs = np.diff(inside, axis=axis)
            line |= np.pad(differs, [(0, int(axis == i)) for i in (0, 1)])
            line |= np.pad(differs, [(int(axis == i), 0) for i in (0, 1)])
        joined |= line
        steps = distance_transform_cdt(~line, metric="taxicab") * 256 / SIDE
        np.testing.assert_allclose(plane, np.clip(steps / 3, 0, 255) / 255, atol=1e-6)
    assert np.array_equal(planes[14], joined)
    # What the first channel has besides is the picture's: in hair and background, and never in the face.
    canny = (planes[0] == 1) & ~joined
    face_alone = np.logical_or.reduce([region for part, region in regions().items() if part != "hair"])
    face_alone &= ~regions()["hair"]
    assert canny.sum() > 20
    assert not canny[face_alone].any()
    assert set(np.unique(planes[0])) == {0, 1}


def test_distances_are_in_pixels_of_what_the_network_sees(tree):
    """Also in the enlarged picture, of which the network sees a window."""
    for condition, first in (("edges", 1), ("landmarks", 3)):
        _, planes = CelebAHQ(root=tree, size=SIDE, condition=condition).load("3", 54)
        steps = planes[..., first]
        assert steps[steps > 0].min() == pytest.approx(256 / SIDE / 3 / 255)


def test_a_picture_has_edges():
    """Of one step from black to white Canny finds a line; hair's edges are kept, though it lies over skin."""
    grey = np.zeros((32, 32))
    grey[:, 16:] = 1
    assert texture(grey, 0.1, 0.2)[4:-4, 14:18].any(1).all()
    image = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, -1)
    whole = np.ones((32, 32), dtype=bool)
    for parts, found in (({}, True), ({"skin": whole}, False), ({"skin": whole, "hair": whole}, True)):
        assert edge_planes(image, parts, 1)[..., 0].any() == found


def test_how_strong_an_edge_must_be():
    """Canny's thresholds: a step of 0.12 is a line, one of 0.06 only where it goes on from a stronger one."""
    def rows_with_an_edge(*steps):
        grey = np.full((64, 64), 100, np.uint8)
        for i, step in enumerate(steps):
            grey[64 // len(steps) * i:64 // len(steps) * (i + 1), 32:] += round(255 * step)
        return edge_planes(np.repeat(grey[..., None], 3, -1), {}, 1)[:, 30:35, 0].any(1)

    assert rows_with_an_edge(0.12)[3:-3].all()
    assert not rows_with_an_edge(0.06).any()
    assert rows_with_an_edge(0.12, 0.06)[3:-3].all()


def test_left_and_right_change_places_in_a_mirrored_face(tree):
    """The condition of a mirrored face is that of a face whose masks are mirrored, with the names of sides exchanged;
    upper and lower lip stay what they are.
    """
    pairs = CelebAHQ(root=tree, size=SIDE)
    image, condition = pairs.load("3", SIDE)
    flipped, mirrored = pairs.mirrored(image, condition)
    assert np.array_equal(flipped, image[:, ::-1])
    for i, part in enumerate(PARTS):
        side, _, rest = part.partition("_")
        counterpart = f"{OTHER[side]}_{rest}" if rest in ("brow", "eye", "ear") else part
        assert np.array_equal(mirrored[..., 1 + i], condition[:, ::-1, 1 + PARTS.index(counterpart)])
    assert np.array_equal(mirrored[..., [0, 14]], condition[:, ::-1, [0, 14]])
    again = pairs.mirrored(flipped, mirrored)
    assert np.array_equal(again[0], image)
    assert np.array_equal(again[1], condition)
    # The face has a right ear alone; its mirrored picture a left one.
    left, right = (1 + PARTS.index(name) for name in ("l_ear", "r_ear"))
    assert (condition[..., left] == 1).all()
    assert (mirrored[..., right] == 1).all()
    assert (mirrored[..., left] == 0).any()


def test_landmarks_of_a_mirrored_face(tree):
    """Mirroring makes of a drawing what is drawn of mirrored masks with the names of sides exchanged."""
    pairs = CelebAHQ(root=tree, size=SIDE, condition="landmarks")
    assert pairs.condition_channels == 15
    image, condition = pairs.load("3", SIDE)
    assert pairs.tensor(condition).shape == (15, SIDE, SIDE)
    _, mirrored = pairs.mirrored(image, condition)
    picture = pairs.tensor(np.ascontiguousarray(condition[:, ::-1]))[:3]
    assert not torch.equal(pairs.tensor(mirrored)[:3], picture)
    files = sorted((tree / "CelebAMask-HQ-mask-anno/0").glob("00003_*.png"))
    masks = [Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for file in files]
    for file in files:
        file.unlink()
    for file, mask in zip(files, masks, strict=True):
        side, _, part = file.stem.removeprefix("00003_").partition("_")
        sided = part in ("brow", "eye", "ear")
        mask.save(file.with_name(f"00003_{OTHER[side]}_{part}.png") if sided else file)
    drawn = pairs.tensor(pairs.load("3", SIDE)[1])
    torch.testing.assert_close(pairs.tensor(mirrored), drawn, atol=1e-6, rtol=0)
    assert mirrored_planes("landmarks")[3:15] == [3 + i for i in (1, 0, 3, 2, 5, 4, 6, 7, 9, 8, 10, 11)]


def test_points_follow_from_the_parts():
    points = dict(zip(POINTS, face_points(regions(), SIDE), strict=True))
    assert points["l_eye"] == (20.5, 29)
    assert points["r_brow"] == (14.5, 17)
    assert points["l_ear"] is None
    assert points["chin"] == (40, 23.5)
    assert points["crown"] == (2, 23.5)
    assert points["l_end of lips"] == (34.5, 29)
    assert points["r_end of lips"][1] == 19


@pytest.mark.parametrize("condition", ["edges", "landmarks"])
def test_crops_and_flips_keep_condition_and_image_together(tree, condition):
    """A sample's condition and image are one window of what is loaded, mirrored together or not at all."""
    pairs = CelebAHQ(root=tree, size=SIDE, condition=condition, seed=1)
    large = round(SIDE * 286 / 256)
    image, planes = pairs.load("2001", large)
    windows = {}
    for source in ((image, planes), pairs.mirrored(image, planes)):
        for y in range(large - SIDE + 1):
            for x in range(large - SIDE + 1):
                cut = tuple(each[y:y + SIDE, x:x + SIDE] for each in source)
                shown = np.round(cut[0].transpose(2, 0, 1) / 127.5 - 1, 3).astype(np.float32)
                windows[shown.tobytes()] = (source[0] is image, pairs.tensor(cut[1]))
    seen = set()
    for epoch in range(6):
        pairs.set_epoch(epoch)
        sample = pairs[2]
        straight, expected = windows[np.round(sample.image.numpy(), 3).tobytes()]
        assert torch.equal(sample.condition, expected)
        seen.add(straight)
    assert seen == {True, False}


def test_splits_and_exemplars(tree):
    training = data.make("celebahq", root=tree, size=SIDE)
    assert [name for name, _ in training.rows] == ["3", "7", "2001", "4000"]
    assert training.rows[0][1] == ("7", "2001")
    assert training.class_names is None
    test = CelebAHQ(root=tree, size=SIDE, split="test")
    assert test.rows == (("12", ("4000", "3")), ("2010", ("7",)))
    sample = test[1]
    assert sample.name == "2010"
    assert not sample.self_reference
    assert torch.equal(sample.exemplar_condition, test.tensor(test.load("7", SIDE)[1]))
    assert len(CelebAHQ(root=tree, size=SIDE, count=2)) == 2
    for each in ("lists/train.csv", "val.txt"):
        (tree / each).unlink()
    alone = CelebAHQ(root=tree, size=SIDE, pseudo_share=1)
    assert len(alone) == 4
    assert all(alone[index].self_reference for index in range(4))


DEFECTS = {
    "no split": (lambda root: (root / "train.txt").unlink(), r"missing: train\.txt"),
    "no list": (lambda root: (root / "lists/train.csv").unlink(),
                r"examples\.unite\.retrieve --query \S+/train\.txt --gallery \S+/train\.txt --root \S+/CelebA-HQ-img "),
    "no masks": (lambda root: (root / "CelebAMask-HQ-mask-anno").rename(root / "masks"),
                 r"missing: CelebAMask-HQ-mask-anno/"),
    "no image": (lambda root: (root / "CelebA-HQ-img/7.jpg").unlink(),
                 r"images that are missing: 1\n +CelebA-HQ-img/7\.jpg, which train\.txt lists"),
    "no part": (lambda root: [file.unlink() for file in (root / "CelebAMask-HQ-mask-anno/2").iterdir()],
                r"CelebA-HQ-img/4000\.jpg has no CelebAMask-HQ-mask-anno/2/04000_skin\.png"),
    "no id": (lambda root: (root / "train.txt").write_text("3\nface\n"), r"train\.txt, line 2: 'face' is no name"),
    "capitals": (lambda root: (root / "CelebA-HQ-img/7.jpg").rename(root / "CelebA-HQ-img/7.JPG"),
                 r"CelebA-HQ-img/7\.jpg, which train\.txt lists; 7\.JPG is there, whose ending must be \.jpg"),
    "twice": (lambda root: (root / "train.txt").write_text("3\n\n3\n"), r"line 3: '3' stands in line 1 already"),
    "empty": (lambda root: (root / "train.txt").write_text("\n"), r"train\.txt lists no names"),
    "unknown exemplar": (lambda root: (root / "lists/train.csv").write_text("3,99\n"),
                         r"lists/train\.csv, line 1: there is no image '99'"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_has_its_message(tree, defect):
    """Training refuses with the words of the report."""
    assert_told(DEFECTS[defect], tree, lambda: CelebAHQ(root=tree, size=SIDE), report)


def test_lists_may_have_zeros_before_an_id(tree):
    (tree / "lists/train.csv").write_text("00003.jpg,images/00007.jpg,2001\n")
    assert CelebAHQ(root=tree, size=SIDE).rows == (("3", ("7", "2001")),)
    (tree / "lists/train.csv").write_text("00003.jpg,7\n2001,7\n3,2001\n")
    with pytest.raises(DataError, match=r"lists/train\.csv, line 3: '3' stands in line 1 already"):
        CelebAHQ(root=tree, size=SIDE)


def test_an_exemplar_is_in_no_two_splits(tree):
    (tree / "val.txt").write_text("12\n2010\n7\n")
    with pytest.raises(DataError, match=r"names in both splits: 1\n +'7' is in train\.txt and in val\.txt"):
        CelebAHQ(root=tree, size=SIDE, split="test")


def test_what_the_report_says(tree):
    found = report(tree)
    assert found.right
    parts = {(f"{split} masks of {part}", count * (part in BOXES) - (split == "train" and part == "r_ear"))
             for split, count in (("train", 4), ("test", 2)) for part in PARTS}
    whole = "images with masks, that of the skin among them"
    assert {(what, number) for what, number, _ in found.found} == parts | {
        ("train ids in train.txt", 4), (f"train {whole}", 4), ("train images with exemplars", 4),
        ("test ids in val.txt", 2), (f"test {whole}", 2), ("test images with exemplars", 2)}
    (tree / "CelebAMask-HQ-mask-anno/0/00007_skin.png").unlink()
    without = report(tree)
    assert without.right
    assert {(f"train {whole}", 3), ("train masks of skin", 3)} <= {count[:2] for count in without.found}
    broken = tree / "CelebAMask-HQ-mask-anno/1/02001_nose.png"
    broken.write_bytes(broken.read_bytes()[:40])
    assert report(tree).right
    assert "02001_nose.png" in "\n".join(report(tree, decode=True).complaints())
    with pytest.raises(ValueError, match=r"02001_nose\.png cannot be read"):
        CelebAHQ(root=tree, size=SIDE).load("2001", SIDE)


def test_settings_are_refused_by_name(tree):
    with pytest.raises(ValueError, match="condition must be one of edges, landmarks, got 'mask'"):
        CelebAHQ(root=tree, condition="mask")
    with pytest.raises(ValueError, match="count must be 1 or more, got 0"):
        CelebAHQ(root=tree, count=0)
