"""Poses: the joints of a body as OpenPose's files have them, and the stick figure that is drawn of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .figures import limb_regions, stick_figure
from .lines import distance
from .regions import Point

#: OpenPose's 18 joints, in the order of their columns; r_ and l_ are the person's own sides.
JOINTS = ("nose", "neck", "r_shoulder", "r_elbow", "r_wrist", "l_shoulder", "l_elbow", "l_wrist", "r_hip", "r_knee",
          "r_ankle", "l_hip", "l_knee", "l_ankle", "r_eye", "l_eye", "r_ear", "l_ear")
#: Joints that are joined, in the order in which they are drawn and in that of their channels.
LIMBS = tuple((JOINTS.index(start), JOINTS.index(end)) for start, end in (
    ("neck", "r_shoulder"), ("neck", "l_shoulder"), ("r_shoulder", "r_elbow"), ("r_elbow", "r_wrist"),
    ("l_shoulder", "l_elbow"), ("l_elbow", "l_wrist"), ("neck", "r_hip"), ("r_hip", "r_knee"), ("r_knee", "r_ankle"),
    ("neck", "l_hip"), ("l_hip", "l_knee"), ("l_knee", "l_ankle"), ("neck", "nose"), ("nose", "r_eye"),
    ("r_eye", "r_ear"), ("nose", "l_eye"), ("l_eye", "l_ear")))
#: Channels of a pose: the figure in colours, and a distance map a limb.
CHANNELS = 3 + len(LIMBS)
#: Values of a line: of a found joint x, y, score and number; of a person the numbers of 18 joints, score and count.
_CANDIDATE, _PERSON = 4, len(JOINTS) + 2


def read_pose(candidate: Path, subset: Path) -> list[Point | None]:
    """The joints of the person of whom most joints were found, and of as many the one with the highest score.

    Args:
        candidate: A line a joint that was found: x and y in the image's pixels, score, number.
        subset: A line a person: for each of `JOINTS` the number of a line of ``candidate``, from 0 on, or -1; the
            score of all, and how many there are.

    Returns:
        (row, column) of each of `JOINTS`, None for one that was not found; where nobody was found all are None.

    Raises:
        ValueError: Naming the file and the line that is no joint or no person.
    """
    found = _numbers(candidate, _CANDIDATE, "a joint")
    people = _numbers(subset, _PERSON, "a person")
    for line, person in people:
        for joint, number in zip(JOINTS, person, strict=False):
            if number != -1 and not (number.is_integer() and 0 <= number < len(found)):
                raise ValueError(f"{subset}, line {line}: {joint} is joint {number:g}, but {candidate.name} has "
                                 f"{len(found)}")
    if not people:
        return [None] * len(JOINTS)
    numbers = max((person for _, person in people), key=_seen)[:len(JOINTS)]
    return [None if number == -1 else (found[int(number)][1][1], found[int(number)][1][0]) for number in numbers]


def pose_planes(points: Sequence[Point | None], side: int, scale: float) -> np.ndarray:
    """[0..2] the stick figure, [3..19] the distance (`lines.distance`) from each of `LIMBS`; and after these the figure
    once more in the colours of the other side, which are its own when mirrored.  (side, side, 23) float32.

    Args:
        points: Of each of `JOINTS` (row, column) in a picture of ``side``, or None.
        side: Of the planes, in pixels.
        scale: Side of the network's pictures over 256.
    """
    others = [points[i] for i in _other_side()]
    limbs = [distance(region, scale) for region in limb_regions(points, LIMBS, side, scale)]
    planes = [stick_figure(points, LIMBS, side, scale), np.stack(limbs), stick_figure(others, LIMBS, side, scale)]
    return np.concatenate(planes).astype(np.float32).transpose(1, 2, 0)


def mirrored_planes() -> list[int]:
    """Which plane takes the place of each when a picture is mirrored: left limbs become right ones."""
    other = _other_side()
    ends = [frozenset(limb) for limb in LIMBS]
    limbs = [ends.index(frozenset((other[start], other[end]))) for start, end in LIMBS]
    return [*range(CHANNELS, CHANNELS + 3), *(3 + i for i in limbs), 0, 1, 2]


def _other_side() -> list[int]:
    """For each joint the place of its counterpart on the other side, or its own."""
    sides = {"l": "r", "r": "l"}
    return [JOINTS.index(sides[name[0]] + name[1:]) if name[1] == "_" else i for i, name in enumerate(JOINTS)]


def _seen(person: Sequence[float]) -> tuple[int, float]:
    """How many joints of a person were found, and their score."""
    return sum(number != -1 for number in person[:len(JOINTS)]), person[len(JOINTS)]


def _numbers(file: Path, count: int, what: str) -> list[tuple[int, list[float]]]:
    """The lines of a file with their numbers, ``count`` finite values each; an empty file has none."""
    made = []
    for line, text in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            values = [float(value) for value in text.split()]
        except ValueError as error:
            raise ValueError(f"{file}, line {line}: {error}") from error
        if len(values) != count or not all(map(math.isfinite, values)):
            raise ValueError(f"{file}, line {line}: {what} is {count} finite values, got {len(values)}: {text[:80]!r}")
        made.append((line, values))
    return made
