"""DeepFashion on the disk: poses of any number of people, figures, pairs of a garment, what is wrong by file."""

import math
import shutil

import numpy as np
import pytest
import torch
from defects import assert_told
from PIL import Image
from scipy.ndimage import distance_transform_cdt

pytest.importorskip("skimage", reason="distances need SciPy, which scikit-image brings: the extra unite")

from examples.unite import check, data
from examples.unite.data.__main__ import main
from examples.unite.data.deepfashion import DeepFashion, report
from examples.unite.data.figures import disc, ellipse
from examples.unite.data.garments import garment_of, garments
from examples.unite.data.poses import JOINTS, LIMBS, mirrored_planes, pose_planes, read_pose
from examples.unite.data.report import DataError, Report

SIDE = 48
#: x, y in an image of `SIDE`; the person's left is the right of the picture.
BODY = {"nose": (24, 6), "neck": (24, 12), "r_shoulder": (17, 13), "r_elbow": (14, 21), "r_wrist": (12, 29),
        "l_shoulder": (31, 12), "l_elbow": (36, 19), "l_wrist": (41, 24), "r_hip": (20, 28), "r_knee": (19, 36),
        "r_ankle": (18, 44), "l_hip": (28, 28), "l_knee": (30, 36), "r_eye": (22, 5), "l_eye": (26, 5),
        "r_ear": (20, 6)}
DRESS, TEE = "WOMEN/Dresses/id_00000001", "MEN/Tees_Tanks/id_00000002"
#: Three views of one garment, another colour of it, and a garment alone.
TRAINING = (f"{DRESS}/01_1_front", f"{DRESS}/01_2_side", f"{DRESS}/01_3_back", f"{DRESS}/02_1_front",
            f"{TEE}/01_1_front")
TEST = ("WOMEN/Dresses/id_00000003/01_1_front", "WOMEN/Dresses/id_00000003/01_2_side")


def write_pose(root, name, people):
    """Each person is a dictionary of joints; scores rise with the number of the person."""
    candidates, subset = [], []
    for score, body in enumerate(people, start=1):
        places = dict.fromkeys(JOINTS, -1)
        for joint, (x, y) in body.items():
            places[joint] = len(candidates)
            candidates.append((x, y, 0.5, len(candidates)))
        subset.append((*places.values(), score, len(body)))
    base = root / "pose" / name
    base.parent.mkdir(parents=True, exist_ok=True)
    # As numpy.savetxt writes what the detector gives: nothing at all for nobody.
    np.savetxt(f"{base}_candidate.txt", np.array(candidates).reshape(-1, 4))
    np.savetxt(f"{base}_subset.txt", np.array(subset).reshape(-1, 20))


def files(root, name="some"):
    return root / "pose" / f"{name}_candidate.txt", root / "pose" / f"{name}_subset.txt"


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate((*TRAINING, *TEST)):
        image = tmp_path / "img" / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        blocks[..., 2] = 30 * number
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(image, quality=95)
        write_pose(tmp_path, name, [BODY])
    for file, names in (("train.txt", TRAINING), ("val.txt", TEST)):
        (tmp_path / file).write_text("".join("img\\" + name.replace("/", "\\") + ".jpg\r\n" for name in names))
    (tmp_path / "lists").mkdir()
    lines = [(TEST[0], TRAINING[3], TRAINING[0]), (TEST[1], TRAINING[4])]
    (tmp_path / "lists/test.csv").write_text("".join(
        ",".join("img\\" + name.replace("/", "\\") + ".jpg" for name in line) + "\n" for line in lines))
    return tmp_path


def test_one_person(tmp_path):
    write_pose(tmp_path, "some", [BODY])
    joints = dict(zip(JOINTS, read_pose(*files(tmp_path)), strict=True))
    assert {joint: point for joint, point in joints.items() if point is not None} == {
        joint: (y, x) for joint, (x, y) in BODY.items()}


def test_nobody_one_joint_and_several_people(tmp_path):
    """Nobody has no joints; a single one is read; of several people most joints win, and then the highest score."""
    write_pose(tmp_path, "some", [])
    assert read_pose(*files(tmp_path)) == [None] * 18
    write_pose(tmp_path, "some", [{"l_knee": (3, 5)}])
    assert read_pose(*files(tmp_path)) == [(5, 3) if joint == "l_knee" else None for joint in JOINTS]
    two, three = {"nose": (1, 1), "neck": (1, 2)}, {"nose": (7, 1), "neck": (7, 2), "l_hip": (7, 4)}
    write_pose(tmp_path, "some", [three, two])
    assert read_pose(*files(tmp_path))[:2] == [(1, 7), (2, 7)]
    write_pose(tmp_path, "some", [two, three])
    assert read_pose(*files(tmp_path))[:2] == [(1, 7), (2, 7)]
    other = {joint: (x + 20, y) for joint, (x, y) in three.items()}
    write_pose(tmp_path, "some", [three, other])  # the second's score is higher
    assert read_pose(*files(tmp_path))[:2] == [(1, 27), (2, 27)]


@pytest.mark.parametrize(("candidate", "subset", "message"), [
    ("1 2 0.5\n", "", r"some_candidate\.txt, line 1: a joint is 4 finite values, got 3"),
    ("1 2 0.5 x\n", "", r"some_candidate\.txt, line 1: could not convert string to float: 'x'"),
    ("1 nan 0.5 0\n", "", r"some_candidate\.txt, line 1: a joint is 4 finite values"),
    ("1 2 0.5 0\n", "0 -1 3\n", r"some_subset\.txt, line 1: a person is 20 finite values, got 3"),
    ("1 2 0.5 0\n", "\n" + "-1 " * 17 + "1 1 1\n", r"some_subset\.txt, line 2: l_ear is joint 1, but \S+ has 1"),
    ("1 2 0.5 0\n", "0.5 " + "-1 " * 17 + "1 1\n", r"some_subset\.txt, line 1: nose is joint 0\.5, but"),
    ("1 2 0.5 0\n", "-2 " + "-1 " * 17 + "1 1\n", r"some_subset\.txt, line 1: nose is joint -2, but"),
])
def test_broken_poses_are_named_by_file_and_line(tmp_path, candidate, subset, message):
    (tmp_path / "pose").mkdir()
    for file, text in zip(files(tmp_path), (candidate, subset), strict=True):
        file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pose(*files(tmp_path))


def points():
    return [BODY[joint][::-1] if joint in BODY else None for joint in JOINTS]


def test_the_figure_and_its_distances():
    """Discs and ellipses have their areas; a limb is 0.6 of its colour over what it covers; distances are SciPy's."""
    assert abs(disc((60, 70), 4, 128).sum() - 16 * math.pi) < 4
    tilted = ellipse((20.3, 20.4), (50.7, 70.1), 4, 128)
    assert abs(tilted.sum() - 4 * math.hypot(15.2, 24.85) * math.pi) < 8
    limb = ellipse((20, 20), (20, 80), 4, 128)
    assert limb[20, 20:81].all()
    assert limb[16:25, 50].all()
    assert not limb[15, 50]
    assert not limb[25, 50]
    assert ellipse((9, 9), (9, 9), 4, 32).any()
    assert not disc((-20, 5), 4, 32).any()
    # One limb at 256 px, from the neck to the right shoulder: blue; the joints are the next of 18 hues, 20 degrees
    # apart, so that a third of the way from blue to turquoise is there.
    places = [None] * 18
    places[JOINTS.index("neck")], places[JOINTS.index("r_shoulder")] = (100, 100), (100, 160)
    planes = pose_planes(places, 256, 1)
    assert planes.shape == (256, 256, 23)
    np.testing.assert_allclose(planes[100, 130, :3], (0, 0, 0.6), atol=1e-6)
    np.testing.assert_allclose(planes[103, 99, :3], (0, 1 / 3, 1), atol=1e-6)
    np.testing.assert_allclose(planes[100, 101, :3], (0, 0.4 / 3, 1), atol=1e-6)
    steps = distance_transform_cdt(~ellipse((100, 100), (100, 160), 4, 256), metric="taxicab")
    np.testing.assert_allclose(planes[..., 3], np.clip(steps / 3, 0, 255) / 255, atol=1e-6)
    assert (planes[..., 4:20] == 1).all()


def test_limbs_and_joints_are_in_the_published_order():
    """OpenPose's numbers from 1 on; of its 19 limbs those of shoulders and ears are not drawn."""
    assert [(start + 1, end + 1) for start, end in LIMBS] == [
        (2, 3), (2, 6), (3, 4), (4, 5), (6, 7), (7, 8), (2, 9), (9, 10), (10, 11), (2, 12), (12, 13), (13, 14), (2, 1),
        (1, 15), (15, 17), (1, 16), (16, 18)]
    assert (JOINTS[2], JOINTS[5], JOINTS[8], JOINTS[14], JOINTS[17]) == ("r_shoulder", "l_shoulder", "r_hip", "r_eye",
                                                                         "l_ear")


def test_distances_are_in_pixels_of_what_the_network_sees(tree):
    """Also in the enlarged picture, of which the network sees a window."""
    _, planes = DeepFashion(root=tree, size=SIDE).load(TRAINING[0], 54)
    steps = planes[..., 3]
    assert steps[steps > 0].min() == pytest.approx(256 / SIDE / 3 / 255)


def test_mirrored_limbs_and_colours():
    """A mirrored pose is the pose of mirrored joints whose names of sides are exchanged."""
    planes = pose_planes(points(), SIDE, SIDE / 256)
    other = {"l": "r", "r": "l"}
    swapped = [JOINTS.index(other[name[0]] + name[1:]) if "_" in name else i for i, name in enumerate(JOINTS)]
    mirrored = [None if points()[i] is None else (points()[i][0], SIDE - 1 - points()[i][1]) for i in swapped]
    expected = pose_planes(mirrored, SIDE, SIDE / 256)
    found = planes[:, ::-1][..., mirrored_planes()]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(planes[:, ::-1, :3], expected[..., :3])
    # The left ankle is hidden, so that its limb is the right one's when mirrored.
    left, right = (3 + LIMBS.index((JOINTS.index(f"{side}_knee"), JOINTS.index(f"{side}_ankle"))) for side in "lr")
    assert (planes[..., left] == 1).all()
    assert (found[..., right] == 1).all()
    assert (found[..., left] == 0).any()


def blue(image):
    return round(float((image[2].mean() + 1) * 127.5 / 30))


def test_pairs_of_one_garment(tree):
    """Other views of a garment in one colour are drawn, and what stands alone itself; all are pseudo pairs."""
    pairs = DeepFashion(root=tree, size=SIDE)
    assert (pairs.condition_channels, pairs.class_names) == (20, None)
    found = [set() for _ in TRAINING]
    for epoch in range(12):
        pairs.set_epoch(epoch)
        for index, name in enumerate(TRAINING):
            sample = pairs[index]
            assert sample.self_reference
            assert sample.name == name
            assert sample.condition.shape == (20, SIDE, SIDE)
            assert blue(sample.image) == index
            found[index].add(blue(sample.exemplar))
    assert found == [{1, 2}, {0, 2}, {0, 1}, {3}, {4}]


def test_a_file_says_what_is_one_garment(tree):
    """It alone decides, whatever the names are; lines with a name in common are one, and a name may stand alone."""
    one, two, three, four, five = TRAINING
    lines = ["img\\" + one.replace("/", "\\") + ".jpg," + five + f",{TEST[0]}.jpg", two, f"{five}.jpg, {four}"]
    (tree / "deepfashion_self_pair.txt").write_text("\r\n".join(lines) + "\r\n\r\n")
    pairs = DeepFashion(root=tree, size=SIDE)
    assert pairs.garments == {two: (two,), three: (three,)} | dict.fromkeys((one, four, five), (one, four, five))
    assert pairs.garments[one] is pairs.garments[five]
    chosen = set()
    for epoch in range(12):
        pairs.set_epoch(epoch)
        chosen.add(blue(pairs[3].exemplar))
        assert blue(pairs[1].exemplar) == 1
    assert chosen == {0, 4}
    found = report(tree)
    assert found.right
    assert {("train images with another of their garment", 3, None),
            ("images of deepfashion_self_pair.txt that are not in the training split, left out", 1, None)} <= set(
                found.found)
    with (tree / "deepfashion_self_pair.txt").open("a") as file:
        file.write(f"{two},WOMEN/none.jpg,../a.jpg\n")
    with pytest.raises(DataError) as error:
        DeepFashion(root=tree, size=SIDE)
    assert error.value.report.complaints() == report(tree).complaints() == [
        "lines of deepfashion_self_pair.txt: 2",
        "  deepfashion_self_pair.txt, line 5: there is no image 'WOMEN/none.jpg'",
        "  deepfashion_self_pair.txt, line 5: there is no image '../a.jpg'"]


@pytest.mark.parametrize(("names", "expected"), [
    (("id_00000001/01_1_front", "id_00000001/01_4_full"), True),
    (("id_00000001/01_1_front", "id_00000001/02_1_front"), False),
    (("MEN/A/id_00000001/01_1_front", "MEN/B/id_00000001/01_2_side"), False),
    (("fashionWOMENTees_Tanksid0000024402_1front", "fashionWOMENTees_Tanksid0000024402_7additional"), True),
    (("fashionMENDenimid0000024402_1front", "fashionWOMENDenimid0000024402_2side"), False),
    (("fashionWOMENid000002440_1front", "fashionWOMENid000002440_2side"), False),
    (("img_0001", "img_0002"), False), (("studio/01_1_front", "studio/01_2_side"), False),
    (("id_00000001/front_1", "id_00000001/front_2"), False), (("01_1_front", "01_2_side"), False),
])
def test_which_names_are_of_one_garment(names, expected):
    """Those of the In-shop scheme, with folders or run together; others stand alone."""
    assert (garment_of(names[0]) == garment_of(names[1])) == expected


def test_many_images_of_any_names_take_as_much_memory_as_names(tmp_path):
    names = [f"img_{i}" for i in range(20_000)] + [f"id_1/01_{i}_front" for i in range(20_000)]
    made = garments(Report("deepfashion", tmp_path, ()), names, str, lambda name: tmp_path / name)
    assert sum(map(len, {id(each): each for each in made.values()}.values())) == 40_000
    assert made["img_3"] == ("img_3",)
    assert made["id_1/01_0_front"] is made["id_1/01_9_front"]


def test_pairs_are_written_as_files(tree, tmp_path, capsys):
    words = ["--data", "deepfashion", "--root", str(tree), "--split", "test", "--size", str(SIDE), "--count", "2"]
    assert main([*words, "--export", "--out", str(tmp_path / "files")]) == 0
    assert "2 pairs, WOMEN__Dresses__id_00000003__01_1_front with" in capsys.readouterr().out
    sample = DeepFashion(root=tree, size=SIDE, split="test")[1]
    name = tmp_path / "files/condition" / TEST[1].replace("/", "__")
    for written, condition in ((f"{name}.npy", sample.condition), (f"{name}-exemplar.npy", sample.exemplar_condition)):
        assert np.array_equal(np.load(written), condition)
    (tree / f"pose/{TEST[1]}_subset.txt").write_text("0 1\n")
    assert main([*words, "--export", "--out", str(tmp_path / "more")]) == 1
    assert "01_2_side_subset.txt, line 1" in capsys.readouterr().err


def test_splits_and_exemplars(tree):
    test = data.make("deepfashion", root=tree, size=SIDE, split="test")
    assert test.rows == ((TEST[0], (TRAINING[3], TRAINING[0])), (TEST[1], (TRAINING[4],)))
    sample = test[0]
    assert not sample.self_reference
    assert (blue(sample.image), blue(sample.exemplar)) == (5, 3)
    again = pose_planes(points(), SIDE, SIDE / 256)[..., :20].transpose(2, 0, 1)
    np.testing.assert_allclose(sample.condition, again, atol=1e-6)
    (tree / "lists/train.csv").write_text(f"{TRAINING[0]},{TRAINING[4]}\n")
    listed = DeepFashion(root=tree, size=SIDE, pseudo_share=0.0)
    assert (len(listed), blue(listed[0].exemplar), listed[0].self_reference) == (1, 4, False)
    assert len(DeepFashion(root=tree, size=SIDE, count=2)) == 2


def test_joints_go_with_images_of_any_shape(tree):
    """A joint is where its pixel goes when the image is stretched."""
    name = TRAINING[4]
    Image.new("RGB", (30, 96)).save(tree / f"img/{name}.jpg")
    write_pose(tree, name, [{"nose": (9, 70), "neck": (20, 70)}])
    _, planes = DeepFashion(root=tree, size=64).load(name, 64)
    rows, columns = np.nonzero(planes[..., 3 + LIMBS.index((1, 0))] == 0)
    assert abs(rows.mean() - 46.5) < 0.6
    assert abs(columns.mean() - (15 * 64 / 30 - 0.5)) < 0.6
    write_pose(tree, name, [{"nose": (9, 70), "neck": (31, 70)}])
    with pytest.raises(ValueError, match=r"01_1_front_candidate\.txt: neck is at \(31, 70\), outside .* 30 x 96"):
        DeepFashion(root=tree, size=64).load(name, 64)


def test_joints_are_in_the_middle_of_their_pixels(tree):
    """Of an image of 8 x 16 pixels each is 8 x 4 at 64: half a pixel of it is far."""
    name = TRAINING[4]
    Image.new("RGB", (8, 16)).save(tree / f"img/{name}.jpg")
    for nose, neck in (((2, 3), (5, 3)), ((3, 3), (3, 12))):
        write_pose(tree, name, [{"nose": nose, "neck": neck}])
        _, planes = DeepFashion(root=tree, size=64).load(name, 64)
        rows, columns = np.nonzero(planes[..., 3 + LIMBS.index((1, 0))] == 0)
        middle = ((nose[1] + neck[1] + 1) / 2 * 4 - 0.5, (nose[0] + neck[0] + 1) / 2 * 8 - 0.5)
        np.testing.assert_allclose((rows.mean(), columns.mean()), middle, atol=0.3)


def test_crops_and_flips_keep_condition_and_image_together(tree):
    """A sample's condition and image are one window of what is loaded, mirrored together or not at all."""
    large = round(SIDE * 286 / 256)
    for mirror, expected in ((True, {True, False}), (False, {True})):
        pairs = DeepFashion(root=tree, size=SIDE, seed=1, mirror=mirror)
        image, planes = pairs.load(TRAINING[4], large)
        windows = {}
        for source in ((image, planes), pairs.mirrored(image, planes)):
            for y in range(large - SIDE + 1):
                for x in range(large - SIDE + 1):
                    cut = tuple(each[y:y + SIDE, x:x + SIDE] for each in source)
                    windows[cut[0].tobytes()] = (source[0] is image, pairs.tensor(cut[1]))
        seen = set()
        for epoch in range(6):
            pairs.set_epoch(epoch)
            sample = pairs[4]
            for shown, condition in ((sample.image, sample.condition), (sample.exemplar, sample.exemplar_condition)):
                bytes_of = ((shown + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes()
                straight, wanted = windows[bytes_of]
                assert torch.equal(condition, wanted)
                seen.add(straight)
        assert seen == expected


DEFECTS = {
    "no split": (lambda root: (root / "train.txt").unlink(), r"missing: train\.txt"),
    "no poses": (lambda root: shutil.rmtree(root / "pose"), r"missing: pose/"),
    "no image": (lambda root: (root / f"img/{TRAINING[1]}.jpg").unlink(),
                 r"images that are missing: 1\n +img/WOMEN/\S+/01_2_side\.jpg, which train\.txt lists"),
    "no pose": (lambda root: (root / f"pose/{TRAINING[4]}_subset.txt").unlink(),
                r"img/MEN/\S+/01_1_front\.jpg has no pose/MEN/\S+/01_1_front_subset\.txt"),
    "no name": (lambda root: (root / "train.txt").write_text("img\\..\\a.jpg\n"),
                r"train\.txt, line 1: 'img\\\\\.\.\\\\a\.jpg' is no name"),
    "no text": (lambda root: (root / "deepfashion_self_pair.txt").write_bytes(b"a.jpg,b\xe9.jpg"),
                r"deepfashion_self_pair\.txt, line 1: not in UTF-8"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_has_its_message(tree, defect):
    """Training refuses with the words of the report."""
    assert_told(DEFECTS[defect], tree, lambda: DeepFashion(root=tree, size=SIDE), report)


def test_lists_that_are_wanted(tree):
    """Pseudo pairs need none; anything else does, and the command that makes it is told."""
    with pytest.raises(DataError, match=r"lists/train\.csv.*retrieve --query \S+train\.txt --gallery \S+train\.txt"):
        DeepFashion(root=tree, size=SIDE, pseudo_share=0.5)
    (tree / "lists/test.csv").unlink()
    with pytest.raises(DataError, match=r"lists/test\.csv.*retrieve --query \S+val\.txt --gallery \S+train\.txt"):
        DeepFashion(root=tree, size=SIDE, split="test")


def test_what_the_report_says(tree):
    found = report(tree)
    assert found.right
    assert {(what, number) for what, number, _ in found.found} == {
        ("train images in train.txt", 5), ("train images with poses", 5), ("test images in val.txt", 2),
        ("test images with poses", 2), ("test images with exemplars", 2),
        ("train images with another of their garment", 3)}
    (tree / f"pose/{TEST[0]}_subset.txt").write_text("0 1\n")
    image = tree / f"img/{TRAINING[0]}.jpg"
    image.write_bytes(image.read_bytes()[:100])
    assert report(tree).right
    problems = report(tree, decode=True).problems
    assert sum(map(len, problems.values())) == 2
    assert "01_1_front_subset.txt, line 1" in "".join(problems["poses that cannot be read"])


def test_with_which_settings_training_can_start(tree, capsys):
    """The task needs no training list; another share of pseudo pairs does, and refuses without."""
    def last_line(*words):
        status = check.main(["--data", "deepfashion", "--root", str(tree), *words])
        return status, capsys.readouterr().out.splitlines()[-1]

    alone = "training can start with --task deepfashion, which has pseudo pairs alone (train.pseudo_share=1)"
    assert last_line() == (0, alone)
    (tree / "lists/train.csv").write_text("none,neither\n")
    assert last_line() == (0, alone)
    assert len(DeepFashion(root=tree, size=SIDE, pseudo_share=1.0)) == 5
    with pytest.raises(DataError):
        DeepFashion(root=tree, size=SIDE, pseudo_share=0.9)
    (tree / "lists/train.csv").write_text(f"{TRAINING[0]},{TRAINING[4]}\n")
    assert last_line() == (0, "training can start")
    (tree / f"pose/{TEST[0]}_subset.txt").write_text("0 1\n")
    assert last_line("--decode") == (1, "training cannot start")


def test_the_report_counts_images_without_a_person(tree):
    for name in TEST:
        write_pose(tree, name, [])
    assert ("images without a person, whose poses are empty", 2, None) in report(tree, decode=True).found
