"""Data of UNITE: avatars whose masks are what single parts show, pairs that are functions of their number."""

import copy
import dataclasses
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

pytest.importorskip("python_avatars", reason="needs python-avatars: the extra unite")
pytest.importorskip("resvg_py", reason="needs resvg-py: the extra unite")

from examples.unite import data
from examples.unite.data import conditions, faces, moves, render
from examples.unite.data.__main__ import main
from examples.unite.data.avatars import Avatars, rendered
from examples.unite.data.classes import CLASSES, PARTS, classes_of, part
from examples.unite.structures import collate

SIZE = 64
#: Colours far apart, so that what changes shows.
PALETTE = faces.Palette(background="#ffffff", skin="#f0c080", clothes="#2060d0", hair="#903010", hat="#20c040")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("avatars")


@pytest.fixture
def avatars(cache):
    def made(**options):
        return data.make("avatars", root=cache, **{"size": SIZE, "count": 6} | options)

    return made


def colour(text):
    return np.array([int(text[i:i + 2], 16) for i in (1, 3, 5)])


def geometry(**parts):
    plain = faces.Geometry(hair="SHORT_FLAT", hat="", clothes="SHIRT_V_NECK", beard="", glasses="", mouth="BIG_SMILE",
                           eyes="SURPRISED", brows="DEFAULT", nose="DEFAULT", scale=1.0, shift=(0.0, 0.0), angle=0.0)
    return dataclasses.replace(plain, **parts)


HEADS = [
    geometry(hair="STRAIGHT_1", beard="BEARD_LIGHT", glasses="SUNGLASSES"),
    geometry(hair="SHAGGY", beard="BEARD_MAGESTIC", glasses="ROUND", angle=5.0, shift=(0.05, -0.03)),
    geometry(hair="", hat="WINTER_HAT_2", beard="MOUSTACHE_FANCY", scale=1.1),
    geometry(hair="", hat="HIJAB", glasses="PRESCRIPTION_2", clothes="HOODIE"),
    geometry(hair="BOB", clothes="OVERALL", eyes="WINK", mouth="TONGUE"),
]
SHAPES = tuple(render._SVG + tag for tag in ("path", "use", "rect", "circle", "ellipse", "polygon", "g"))


def emptied(tree, shape, name, only=False):
    """The drawing without one part, or with it alone; parts inside a group are not of the group."""
    groups = render.part_groups(tree, shape)
    parents = {child: parent for parent in tree.iter() for child in parent}
    owner = {}
    for part_name, group in groups:  # inner groups come later, so that the innermost stays
        owner |= dict.fromkeys(group.iter(), part_name)
    undrawn = {item for group in tree.iter() if group.tag in render._UNDRAWN for item in group.iter()}
    for item in list(tree.iter()):
        drawn = item.tag in SHAPES and len(item) == 0 and item not in undrawn
        if drawn and (owner.get(item) == name) != only:
            parents[item].remove(item)
    return tree


def pixels(tree, shape, background, size=SIZE):
    return render.rasterise(render.framed(tree, shape, background), size, smooth=True).astype(int)


def inside(region):
    """Without the positions at its border, where smoothed edges are of two parts."""
    padded = np.pad(region, 1, mode="edge")
    return np.logical_and.reduce([padded[i:i + len(region), j:j + len(region)] for i in range(3) for j in range(3)])


@pytest.mark.parametrize("shape", HEADS)
def test_each_part_covers_its_region_when_it_is_drawn_alone(shape):
    parts = render.part_map(shape, SIZE)
    assert len(np.unique(parts)) >= 6
    for i in np.unique(parts):
        if PARTS[i] != "background":
            black, white = (pixels(emptied(render.drawing(shape, PALETTE), shape, PARTS[i], only=True), shape, ground)
                            for ground in ("#000000", "#ffffff"))
            opacity = 1 - (white - black).max(-1) / 255
            # The nose is a shade of 0.16, the lightest of all parts.
            assert (opacity[parts == i] > 0.06).mean() > 0.97, PARTS[i]
            assert (opacity[inside(parts == i)] > 0.12).all(), PARTS[i]


@pytest.mark.parametrize("shape", HEADS)
def test_a_part_that_is_taken_away_changes_its_region_and_nothing_in_front_of_it(shape):
    parts = render.part_map(shape, SIZE)
    whole = pixels(render.drawing(shape, PALETTE), shape, PALETTE.background)
    # What is seen through: shades on the skin, and lenses.
    translucent = [part(name) for name in ("nose", "mouth", "eyes", "brows", "glasses")]
    for i in np.unique(parts):
        if PARTS[i] == "background":
            continue
        without = pixels(emptied(render.drawing(shape, PALETTE), shape, PARTS[i]), shape, PALETTE.background)
        change = abs(whole - without).max(-1)
        here = inside(parts == i)
        assert (change[here] > 8).mean() > 0.9 if here.any() else True, PARTS[i]
        elsewhere = inside((parts != i) & ~np.isin(parts, translucent))
        assert (change[elsewhere] < 40).all(), PARTS[i]  # shades that it casts are no more than this


def test_every_type_is_drawn_and_shows_its_class():
    for name, types in faces.TYPES.items():
        for kind in types:
            shape = geometry(**{"hair": "SHORT_FLAT" if name != "hat" else "", name: kind})
            assert part(name) in render.part_map(shape, SIZE), (name, kind)


def test_the_flat_map_refuses_smoothed_colours():
    smooth = np.array([[[30, 0, 0]]], dtype=np.uint8)
    with pytest.raises(RuntimeError, match="no part"):
        render.ids(smooth)


def test_of_equally_many_points_the_one_in_front_has_the_pixel():
    assert render.majority(np.array([[1, 1, 2, 3], [7, 7, 2, 2]], dtype=np.uint8)).tolist() == [[7, 2]]


def test_faces_are_drawn_as_often_as_it_is_said():
    count = 2000
    heads = [faces.random_geometry(np.random.default_rng(seed)) for seed in range(count)]
    assert not any(head.hair and head.hat for head in heads)
    assert not any(head.beard for head in heads if head.hat == "HIJAB")
    hijabs = sum(head.hat == "HIJAB" for head in heads) / count
    for name, found in (("hat", [head.hat for head in heads]), ("glasses", [head.glasses for head in heads]),
                        ("bald", [not head.hat and not head.hair for head in heads])):
        # four standard deviations of a share of `count` draws
        assert abs(sum(map(bool, found)) / count - faces.SHARES[name]) < 4 * 0.5 / count**0.5, name
    beards = sum(bool(head.beard) for head in heads) / count
    assert abs(beards - faces.SHARES["beard"] * (1 - hijabs)) < 4 * 0.5 / count**0.5
    palettes = [faces.random_palette(np.random.default_rng(seed)) for seed in range(count)]
    assert len({palette.skin for palette in palettes}) > count / 2  # varied, not the given few
    assert all(palette.clothes != palette.hat for palette in palettes)


@pytest.mark.parametrize("index", range(4))
def test_a_pair_shares_its_palette(index):
    images, parts = rendered(seed=3, split="train", index=index, size=SIZE)
    palette = faces.random_palette(np.random.default_rng([3, 0, index, 0]))
    assert (images[0] != images[1]).any()
    assert (parts[0] != parts[1]).any()
    for name in ("background", "skin", "clothes", "hair", "hat"):
        for image, labels in zip(images, parts, strict=True):
            region = image[inside(labels == part(name))].astype(int)
            if len(region) > 60:
                assert (abs(region - colour(getattr(palette, name))).max(-1) <= 2).any(), name


def test_one_sided_names_what_one_side_lacks(avatars):
    pairs = avatars(split="test")
    seen = set()
    for index in range(len(pairs)):
        target, exemplar = (set(np.unique(labels)) for labels in pairs.class_maps(index))
        found = pairs.one_sided(index)
        assert set(found.target_only) == {CLASSES[i] for i in target - exemplar}
        assert set(found.exemplar_only) == {CLASSES[i] for i in exemplar - target}
        seen |= set(found.target_only) | set(found.exemplar_only)
    assert seen  # the unbalanced case is among them


@pytest.mark.parametrize("kind", list(conditions.CONDITIONS))
def test_conditions_are_in_range_and_tell_faces_apart(avatars, kind):
    pairs = avatars(condition=kind, split="test")
    one, other = pairs[0], pairs[1]
    assert one.condition.shape == one.exemplar_condition.shape == (pairs.condition_channels, SIZE, SIZE)
    assert one.condition.dtype == torch.float32
    assert one.condition.min() >= 0
    assert one.condition.max() <= 1
    assert not torch.equal(one.condition, other.condition)
    assert not torch.equal(one.condition, one.exemplar_condition)
    assert (pairs.class_names is None) == (kind in ("edges", "landmarks"))
    if kind == "mask":
        assert torch.equal(one.condition.sum(0), torch.ones(SIZE, SIZE))
    if kind == "layout":  # boxes: a class's channel holds all of the class
        labels = torch.from_numpy(pairs.class_maps(0)[0]).long()
        assert all((one.condition[i][labels == i] == 1).all() for i in range(1, len(CLASSES)))
    if kind == "edges":  # the edges of what is drawn on clothes and hair are there besides the borders
        assert (one.condition[0] > one.condition[9]).any()
        assert (one.condition[0] >= one.condition[9]).all()
        assert 0.02 < one.condition[9].mean() < 0.5


def test_distances_are_counted_from_the_border():
    parts = np.zeros((256, 256), dtype=np.uint8)
    parts[100:150, 100:150] = part("skin")
    found = conditions.edges(parts, np.zeros((256, 256, 3), dtype=np.uint8))
    skin = found[1]
    assert skin[100, 120] == 0
    assert skin[120, 149] == 0
    assert skin[97, 120] == pytest.approx(1 / 255)
    assert skin[97, 97] == pytest.approx(2 / 255)
    assert (found[2:9] == 1).all()  # classes that are absent


def test_landmarks_are_where_the_parts_are():
    parts = np.zeros((64, 64), dtype=np.uint8)
    parts[20:60, 16:48] = part("skin")
    parts[30:33, 22:25] = parts[30:33, 40:43] = part("eyes")
    parts[50:52, 30:33] = part("mouth")
    points = dict(zip(conditions.POINTS, conditions.face_points(parts), strict=True))
    assert points["left eye"] == (31, 23)
    assert points["right eye"] == (31, 41)
    assert points["mouth"] == (50.5, 31)
    assert points["nose"] is None
    assert points["left brow"] is None
    shown = conditions.landmarks(parts, np.zeros((64, 64, 3), dtype=np.uint8))
    assert shown[3 + conditions.POINTS.index("left eye"), 31, 23] == 0
    assert (shown[3 + conditions.POINTS.index("nose")] == 1).all()


@pytest.mark.parametrize("kind", ["mask", "edges", "layout"])
def test_a_flip_moves_condition_and_image_alike(kind):
    images, parts = rendered(seed=1, split="train", index=0, size=SIZE)
    function = conditions.CONDITIONS[kind][0]
    image, labels = moves.flip(images[0], parts[0])
    assert np.array_equal(image[:, ::-1], images[0])
    assert (function(labels, image) - function(parts[0], images[0]).flip(-1)).abs().mean() < 1e-3


def test_a_flip_swaps_left_and_right_landmarks():
    images, parts = rendered(seed=1, split="train", index=0, size=SIZE)
    straight = dict(zip(conditions.POINTS, conditions.face_points(parts[0]), strict=True))
    mirrored = dict(zip(conditions.POINTS, conditions.face_points(moves.flip(images[0], parts[0])[1]), strict=True))
    for name, point in straight.items():
        other = mirrored[name.replace("left", "RIGHT").replace("right", "left").replace("RIGHT", "right")]
        assert (point is None) == (other is None)
        if point is not None:
            assert other == pytest.approx((point[0], SIZE - 1 - point[1]))


@pytest.mark.parametrize("pseudo_share", [0.0, 1.0])
def test_images_of_a_training_pair_fit_their_conditions(avatars, pseudo_share):
    """Wherever the mask says skin (well inside), the image has the skin's colour or a shade of it, on both sides."""
    pairs = avatars(pseudo_share=pseudo_share)
    for epoch in range(2):
        pairs.set_epoch(epoch)
        for index in range(3):
            sample = pairs[index]
            assert sample.self_reference == bool(pseudo_share)
            palette = faces.random_palette(np.random.default_rng([0, 0, index, 0]))
            for image, mask in ((sample.image, sample.condition), (sample.exemplar, sample.exemplar_condition)):
                region = inside(mask[CLASSES.index("background")].numpy() > 0)
                shown = ((image.numpy() + 1) * 127.5).transpose(1, 2, 0)[region]
                assert len(shown) > 50
                # Mirroring the mask alone would put a good part of the figure's colours here.
                assert (abs(shown - colour(palette.background)).max(-1) <= 3).mean() > 0.97


def test_a_pseudo_pair_is_the_truth_moved():
    image, labels = (x[0] for x in rendered(seed=1, split="train", index=0, size=SIZE))
    same = moves.affine(image, labels, scale=1.0, angle=0.0, shift=(0.0, 0.0))
    assert np.array_equal(same[1], labels)
    assert abs(same[0].astype(int) - image).max() <= 1
    shifted = moves.affine(image, labels, scale=1.0, angle=0.0, shift=(2 * 8 / SIZE, 0.0))
    assert np.array_equal(shifted[1][:, :-8], labels[:, 8:])
    assert abs(shifted[0][:, :-8].astype(int) - image[:, 8:]).max() <= 1
    turned = moves.affine(image, labels, scale=1.0, angle=np.pi / 2, shift=(0.0, 0.0))
    assert np.array_equal(turned[1], np.rot90(labels))


def equal(one, other):
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
               for x, y in zip(vars(one).values(), vars(other).values(), strict=True))


def test_items_are_functions_of_seed_epoch_and_index(avatars, tmp_path):
    pairs, again = avatars(), data.make("avatars", root=tmp_path, size=SIZE, count=6)
    first = [pairs[index] for index in range(6)]
    assert equal(first[2], again[2])  # from another cache, in another order
    assert all(equal(pairs[index], first[index]) for index in (5, 0, 3))
    pairs.set_epoch(1)
    assert not all(equal(pairs[index], first[index]) for index in range(6))
    pairs.set_epoch(0)
    assert equal(pairs[4], first[4])
    assert not torch.equal(avatars(seed=1)[0].image, first[0].image)
    assert equal(pairs[-1], first[5])
    with pytest.raises(IndexError, match="below 6"):
        pairs[6]


def test_the_test_split_is_fixed_and_apart(avatars):
    test = avatars(split="test", pseudo_share=1.0)
    first = [test[index] for index in range(6)]
    test.set_epoch(3)
    assert all(equal(test[index], sample) for index, sample in enumerate(first))
    assert not any(sample.self_reference for sample in first)
    train = [rendered(0, "train", index, SIZE)[0] for index in range(6)]
    test_images = [rendered(0, "test", index, SIZE)[0] for index in range(6)]
    assert not any(np.array_equal(x, y) for one in train for other in test_images for x in one for y in other)


def test_workers_and_copies_give_the_same_items(avatars):
    pairs = avatars()
    here = collate([pairs[index] for index in range(6)])
    for copied in (pickle.loads(pickle.dumps(pairs)), copy.deepcopy(pairs)):
        assert equal(copied[3], pairs[3])
    batches = list(DataLoader(pairs, batch_size=3, num_workers=2, collate_fn=collate))
    assert torch.equal(torch.cat([batch.image for batch in batches]), here.image)
    assert torch.equal(torch.cat([batch.exemplar_condition for batch in batches]), here.exemplar_condition)


def test_the_cache_is_read_and_a_damaged_file_is_drawn_anew(tmp_path, monkeypatch):
    pairs = Avatars(root=tmp_path, size=SIZE, count=1)
    told = []
    pairs.prepare(lambda done, count: told.append((done, count)))
    assert told == [(1, 1)]
    sample = pairs[0]
    (file,) = tmp_path.rglob("*.npz")
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half-written beside it
    monkeypatch.setattr(render, "picture", lambda *arguments: pytest.fail("rendered again"))
    assert equal(Avatars(root=tmp_path, size=SIZE, count=1)[0], sample)
    monkeypatch.undo()
    whole = file.read_bytes()
    junk = bytearray(whole)
    junk[len(junk) // 2:len(junk) // 2 + 40] = bytes(40)
    for damaged in (whole[:100], b"", b"PK", bytes(junk), header_damaged(whole)):
        file.write_bytes(damaged)
        assert equal(Avatars(root=tmp_path, size=SIZE, count=1)[0], sample)
        assert file.read_bytes() == whole
    np.savez(file, images=np.zeros(3), parts=np.zeros(3))
    assert equal(Avatars(root=tmp_path, size=SIZE, count=1)[0], sample)


def header_damaged(archive):
    """The same arrays with a header of numpy that does not end: a TokenError."""
    with np.load(io.BytesIO(archive)) as stored:
        arrays = dict(stored)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as out:
        for name, array in arrays.items():
            one = io.BytesIO()
            np.save(one, array)
            out.writestr(f"{name}.npy", one.getvalue().replace(b"), }", b"   }"))
    return held.getvalue()


def test_any_size_and_bad_arguments(tmp_path):
    assert rendered(0, "train", 0, 96)[0].shape == (2, 96, 96, 3)
    small, large = (render.part_map(HEADS[0], size) for size in (64, 128))
    assert (classes_of(large[::2, ::2]) == classes_of(small)).mean() > 0.9
    for options, message in (({"size": 48}, "size"), ({"size": 1024}, "size"), ({"split": "val"}, "split"),
                             ({"condition": "depth"}, "condition"), ({"pseudo_share": 2.0}, "pseudo_share"),
                             ({"count": 0}, "count")):
        with pytest.raises(ValueError, match=f"^{message} must be"):
            data.make("avatars", root=tmp_path, **options)
    with pytest.raises(ValueError, match="data must be one of avatars, folder"):
        data.make("faces")
    with pytest.raises(ValueError, match="root must be"):
        data.make("folder")


def test_pairs_to_look_at(cache, tmp_path, capsys):
    for kind in ("mask", "landmarks", "edges"):
        assert main(["--out", str(tmp_path), "--root", str(cache), "--size", "64", "--count", "2",
                     "--condition", kind]) == 0
        assert Image.open(tmp_path / f"avatars-{kind}-train.png").size[0] > 4 * SIZE
    assert "train-0-000001: " in capsys.readouterr().out


@pytest.mark.parametrize("pseudo_share", [0.0, 1.0])
def test_without_mirror_avatars_stand_as_they_were_drawn(avatars, pseudo_share):
    def mirrored(pairs):
        """Targets that are a rendering of their index from right to left."""
        images = [rendered(0, "train", index, SIZE)[0] for index in range(6)]
        return sum(any(np.array_equal(((pairs[index].image.numpy() + 1) * 127.5).round().transpose(1, 2, 0),
                                      image[:, ::-1]) for image in images[index]) for index in range(6))

    assert mirrored(avatars(pseudo_share=pseudo_share)) > 0
    assert mirrored(avatars(pseudo_share=pseudo_share, mirror=False)) == 0


def test_how_strong_an_edge_of_hair_must_be():
    """A step of 0.06 is a line, one of 0.03 only where it goes on from a stronger one."""
    def rows_with_an_edge(*steps):
        image = np.full((64, 64, 3), 100, np.uint8)
        for i, step in enumerate(steps):
            image[64 // len(steps) * i:64 // len(steps) * (i + 1), 32:] += round(255 * step)
        return conditions.edges(np.full((64, 64), PARTS.index("hair"), np.uint8), image)[0, :, 30:35].amax(1) > 0

    assert rows_with_an_edge(0.06)[3:-3].all()
    assert not rows_with_an_edge(0.03).any()
    assert rows_with_an_edge(0.06, 0.03)[3:-3].all()


def test_a_move_mirrors_only_where_it_may():
    image, labels = (x[0] for x in rendered(seed=1, split="train", index=0, size=SIZE))
    moved = {mirror: [moves.random_move(np.random.default_rng(seed), image, labels, mirror) for seed in range(8)]
             for mirror in (True, False)}
    same = [np.array_equal(one[0], other[0]) for one, other in zip(moved[True], moved[False], strict=True)]
    flips = [np.random.default_rng(seed).random() < 0.5 for seed in range(8)]
    assert same == [not flipped for flipped in flips]


def test_written_as_a_folder_pairs_are_what_they_were(cache, avatars, tmp_path, capsys):
    arguments = ["--root", str(cache), "--size", "64", "--count", "3", "--split", "test", "--out", str(tmp_path)]
    assert main([*arguments, "--export"]) == 0
    assert "test-0-000000 with test-0-000000-exemplar" in capsys.readouterr().out
    pairs, read = avatars(split="test", count=3), data.make("folder", root=tmp_path, size=SIZE, split="test")
    assert read.class_names == CLASSES
    assert len(read) == 3
    assert all(equal(read[index], pairs[index]) for index in range(3))
    picture = Image.open(tmp_path / "condition/test-0-000000.png")
    assert picture.mode == "P"
    colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) == len(np.unique(np.asarray(picture))) > 3
    assert main([*arguments, "--export"]) == 1  # nothing is written over
    assert "is there already" in capsys.readouterr().err
