"""DeepFashion: people in clothes with their poses, in pairs of one garment."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .check import load_picture
from .garments import garments
from .listed import Loaded, first_rows
from .lists import list_file, stem
from .pairs import SPLITS
from .planes import Planes
from .poses import CHANNELS, JOINTS, mirrored_planes, pose_planes, read_pose
from .reading import as_pixels
from .regions import Point
from .report import Report
from .roots import in_capitals
from .splits import FILES, counted_names, listed_rows

IMAGES, POSES = "img", "pose"
#: The paper's; nobody says how many test images there are.
PUBLISHED = {"train": 29_000, "test": None}
WHERE = (
    "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html: In-shop Clothes Retrieval Benchmark, img.zip, whose "
    f"images of 256 x 256 are {IMAGES}/WOMEN/... and {IMAGES}/MEN/...",
    f"{POSES}/: for each image ..._candidate.txt and ..._subset.txt, OpenPose's joints and people.  With "
    "https://github.com/Hzzone/pytorch-openpose: candidate, subset = Body(WEIGHTS)(cv2.imread(IMAGE)), then "
    "numpy.savetxt of each; their columns are x, y, score, number, and 18 numbers of joints or -1, score, count",
    "train.txt and val.txt: names of images, one a line, such as img\\WOMEN\\Dresses\\id_00000244\\02_1_front.jpg",
    "lists/test.csv: the authors' deepfashion_ref_test.txt, or what python -m examples.unite.retrieve finds",
)


class DeepFashion(Planes):
    """Pairs of DeepFashion's In-shop Clothes Retrieval Benchmark, from crops of 256 in 286.

    ``ROOT/img/**.jpg``, for each ``ROOT/pose/**_candidate.txt`` and ``**_subset.txt`` with coordinates in the image's
    own pixels (`poses.read_pose`), and the names of the splits in ``ROOT/train.txt`` and ``ROOT/val.txt``, with slashes
    of either kind.

    Training: a pseudo pair's exemplar is another training image of the same garment, drawn at random, or the truth
    itself where there is none; both are flagged as pseudo pairs, as in the authors' code (which takes the first one).
    ``ROOT/deepfashion_self_pair.txt`` alone says which there are where it is there: names of one garment a line, apart
    by commas, with their endings or without (`garments.garments`).  Without that file the names say it:
    ``id_00000244/02_1_front.jpg`` is of the same garment as any ``id_00000244/02_*.jpg``, and a name of another form
    stands alone.  Other pairs are those of ``ROOT/lists/train.csv``, which ``pseudo_share`` 1 does without.  Split
    "test": the first exemplar in ``ROOT/lists/test.csv`` (`lists.exemplar_rows`), of the training split.

    Conditions are those of `poses.pose_planes`, 20 channels.  In a mirrored pair left joints and limbs have become
    right ones, in channels and colours.

    Args:
        root: The folder.
        size: Side of images and conditions in pixels; images of other shapes are stretched.
        pseudo_share: The authors train with pseudo pairs alone.
        count: Only the first so many pairs.
        mirror: The authors' training does not.

    Raises:
        report.DataError: what is missing or wrong, all of it.
    """

    def __init__(self, *, root: str | os.PathLike[str], size: int = 256, split: str = "train", seed: int = 0,
                 pseudo_share: float = 1.0, count: int | None = None, mirror: bool = False) -> None:
        super().__init__(size=size, split=split, seed=seed, pseudo_share=pseudo_share, mirror=mirror)
        self.root = Path(root)
        self.condition_channels, self.class_names = CHANNELS, None
        found = Report("deepfashion", self.root, WHERE)
        found.place(IMAGES, POSES)
        splits = {each: _names(found, each) for each in SPLITS[:SPLITS.index(split) + 1]}
        rows = self.wanted_rows(splits["train"], lambda: listed_rows(found, split, splits, self.root))
        self.garments = _garments(found, splits["train"])
        found.require()
        self.rows, self.mirrored_planes = first_rows(rows, count), mirrored_planes()

    def load(self, name: str, size: int) -> Loaded:
        picture = load_picture(image_file(self.root, name))
        joints = [_resized(point, picture.size, size) for point in joints_of(self.root, name, picture.size)]
        return as_pixels(picture, size), pose_planes(joints, size, self.size / 256)

    def chosen(self, index: int, rng: np.random.Generator) -> tuple[str, bool]:
        given, pseudo = super().chosen(index, rng)
        garment = self.garments[given] if pseudo else (given,)
        if len(garment) == 1:
            return given, pseudo
        other = int(rng.integers(len(garment) - 1))
        return garment[other + (other >= garment.index(given))], pseudo


def report(root: str | os.PathLike[str], decode: bool = False) -> Report:
    """What there is of DeepFashion in a folder; ``decode`` reads every picture and pose too.

    Exemplars of training are looked at where there is a list: the task's pseudo pairs need none.
    """
    found = Report("deepfashion", Path(root), WHERE)
    found.place(IMAGES, POSES)
    splits = {split: _names(found, split) for split in SPLITS}
    for split in SPLITS:
        if split == "test" or list_file(found.root, split).is_file():
            listed_rows(found, split, splits, found.root)
        else:
            found.unlisted = True
    together = _garments(found, splits["train"])
    found.count("train images with another of their garment", sum(len(each) > 1 for each in together.values()))
    if decode:
        nobody = 0
        files = {file: name for names in splits.values() for name in names
                 if (file := image_file(found.root, name)).is_file()}
        for file, picture in found.pictures(files):
            try:
                nobody += not any(joints_of(found.root, files[file], picture.size))
            except FileNotFoundError:
                continue  # told already
            except ValueError as error:
                found.problem("poses that cannot be read", str(error))
        found.count("images without a person, whose poses are empty", nobody)
    return found


def image_file(root: Path, name: str) -> Path:
    return root / IMAGES / f"{name}.jpg"


def pose_files(root: Path, name: str) -> tuple[Path, Path]:
    """The files of joints and of people."""
    folder, base = (root / POSES / name).parent, Path(name).name
    return folder / f"{base}_candidate.txt", folder / f"{base}_subset.txt"


def joints_of(root: Path, name: str, shape: tuple[int, int]) -> list[Point | None]:
    """`poses.read_pose` of a name.

    Raises:
        ValueError: A joint that is outside an image of this width and height, and what `poses.read_pose` raises.
    """
    candidate, subset = pose_files(root, name)
    joints = read_pose(candidate, subset)
    for joint, point in zip(JOINTS, joints, strict=True):
        if point is not None and not (0 <= point[1] <= shape[0] and 0 <= point[0] <= shape[1]):
            raise ValueError(f"{candidate}: {joint} is at ({point[1]:g}, {point[0]:g}), outside its image of "
                             f"{shape[0]} x {shape[1]}")
    return joints


def _resized(point: Point | None, shape: tuple[int, int], size: int) -> Point | None:
    """The middle of the same pixel in an image of another size."""
    if point is None:
        return None
    return (point[0] + 0.5) * size / shape[1] - 0.5, (point[1] + 0.5) * size / shape[0] - 0.5


def _names(found: Report, split: str) -> tuple[str, ...]:
    """Names of a split; those without an image or a pose are noted."""
    names, there = counted_names(found, split, _name, "images", PUBLISHED[split], (IMAGES, POSES))
    if not there:
        return names
    whole = 0
    for name in names:
        image = image_file(found.root, name)
        absent = [found.short(file) for file in pose_files(found.root, name) if not file.is_file()]
        if not image.is_file():
            found.problem("images that are missing",
                          f"{found.short(image)}, which {FILES[split]} lists{in_capitals(image)}")
        elif absent:
            found.problem("images without poses", f"{found.short(image)} has no {' and no '.join(absent)}")
        else:
            whole += 1
    found.count(f"{split} images with poses", whole, PUBLISHED[split])
    return names


def _name(text: str) -> str | None:
    """The path below ``img/``, with slashes and without the suffix."""
    name = stem(text.replace("\\", "/")).removeprefix("./").removeprefix(f"{IMAGES}/")
    return name if name and ".." not in name.split("/") and not name.startswith("/") else None


def _garments(found: Report, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return garments(found, names, _name, lambda name: image_file(found.root, name))
