"""The stereo demo: geometry on scenes with a known answer, scores on hand-made cases, and one small run."""

import importlib.util
import re

import numpy as np
import pytest
import torch

from examples.stereo.matching import Match
from examples.stereo.peer import violation
from examples.stereo.scene import Scene, Truth, ground_truth, occlusion, photometric_error
from examples.stereo.score import is_correct, many_to_one, score, separation


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def truth():
    """A 2 x 2 grid: cell 0 is outside, 1 and 3 are visible and stay where they are, 2 is unknown."""
    return Truth(2, column=np.array([-1, 1, 0, 1]), known=np.array([True, True, False, True]),
                 outside=np.array([True, False, False, False]), covered=np.zeros(4, dtype=bool))


def square_before_background(height=40, width=60, far=2.0, near=10.0):
    """Disparity of a near square over columns 20..39 of rows 10..29, before a far plane."""
    disparity = np.full((height, width), far)
    disparity[10:30, 20:40] = near
    return disparity


def test_occlusion_of_a_square():
    """The square lands on right columns 10..29: background from left columns 12..19 lands there too, behind it."""
    covered, outside = occlusion(square_before_background())
    expected = np.zeros((40, 60), dtype=bool)
    expected[10:30, 12:20] = True
    assert np.array_equal(covered, expected)
    expected = np.zeros((40, 60), dtype=bool)
    expected[:, :2] = True
    assert np.array_equal(outside, expected)


def test_unknown_pixels_take_no_part():
    disparity = square_before_background()
    disparity[10:30, 20:40] = np.inf
    disparity[0, 0] = np.inf
    covered, outside = occlusion(disparity)
    assert not covered.any()
    assert not outside[0, 0]
    assert outside[1, 0]


def test_stretched_surface_has_no_holes():
    """A near ramp that the right view stretches by 1.5 still hides all that lies behind it."""
    disparity = np.full((1, 80), 0.0)
    disparity[0, 40:60] = 30 - 0.5 * np.arange(20)  # lands on 10, 11.5, ..., 38.5
    covered, _ = occlusion(disparity)
    assert covered[0, 10:39].all()
    assert not covered[0, 40:60].any()


def test_target_cells():
    """Cells of 4 x 6 pixels, disparity of one cell and of a third."""
    truth = ground_truth(np.full((40, 60), 6.0), 10)
    column = np.arange(100) % 10
    assert np.array_equal(truth.column, column - 1)
    assert np.array_equal(truth.outside, column == 0)
    assert np.array_equal(ground_truth(np.full((40, 60), 2.0), 10).column, column)


def test_unknown_cells_are_not_scored():
    disparity = np.full((40, 60), 6.0)
    disparity[:20] = np.inf
    truth = ground_truth(disparity, 10)
    assert truth.known.sum() == 50
    assert truth.visible.sum() == 45


def test_sign_of_the_disparity():
    """A right image made by moving every pixel of the left one by -d agrees with the sign -1, exactly."""
    left = np.random.default_rng(0).random((20, 50, 3))
    scene = Scene(left, np.roll(left, -4, axis=1), np.full((20, 50), 4.0))
    assert photometric_error(scene, -1) == 0
    assert photometric_error(scene, 1) > 0.1


def test_correct_is_chebyshev(truth):
    """Within one cell along both axes; on this grid only the column of cell 0's truth is far from anything."""
    assert is_correct(np.array([0, 2, 0, 0]), truth).tolist() == [True, True, True, True]
    assert is_correct(np.array([1, 2, 0, 0]), truth).tolist() == [False, True, True, True]
    assert is_correct(np.array([0, 1, 2, 2]), truth, within=0).tolist() == [False, True, True, False]


def test_score_counts_visible_cells_only(truth):
    kept = np.array([0.1, 0.8, 5.0, 0.4])
    scores = score(Match("UOT", np.array([1, 1, 1, 3]), seconds=0.0, kept=kept), truth)
    assert scores.correct == 1
    assert scores.many_to_one == 2
    assert scores.kept_visible == pytest.approx(0.6)
    assert scores.kept_occluded == pytest.approx(0.1)
    assert scores.separation == 1
    assert score(Match("cosine", np.arange(4), seconds=0.0), truth).kept_visible is None


def test_many_to_one():
    assert many_to_one(np.arange(5)) == 0
    assert many_to_one(np.array([3, 3, 3, 1, 1])) == 3


def test_separation_is_the_area_under_the_curve():
    high, low = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    pairs = [(h > l) + 0.5 * (h == l) for h in high for l in low]
    assert separation(high, low) == pytest.approx(np.mean(pairs))
    assert separation(low, low) == 0.5


def test_violation_vanishes_at_the_optimum():
    """One pair of points of mass 1, solved by hand: T = e^((f + g - C)/eps) must equal e^(-f/tau) and e^(-g/tau).

    So f = g = C tau / (eps + 2 tau).
    """
    cost, reg, reg_m = 0.7, 0.05, 0.3
    f = np.array([cost * reg_m / (reg + 2 * reg_m)])
    plan, one = np.exp((2 * f - cost) / reg)[:, None], np.ones(1)
    assert violation(plan, f, f, one, one, reg_m) < 1e-14
    assert violation(plan, f + 0.01, f, one, one, reg_m) > 1e-2


@needs("skimage")
def test_descriptors():
    from examples.stereo.descriptors import descriptors

    image = np.random.default_rng(0).random((50, 70, 3))
    made = descriptors(image, grid=8, patch=5)
    assert made.shape == (64, 5 * 25 + 4)
    torch.testing.assert_close(made.norm(dim=1), torch.ones(64))
    place = made[:, -4:].double() @ made[:, -4:].double().T
    torch.testing.assert_close(place[0, 1], place[62, 63])  # the code knows distances, not places
    torch.testing.assert_close(descriptors(0.5 * image + 0.2, grid=8, patch=5), made, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="odd"):
        descriptors(image, grid=8, patch=4)


@needs("skimage", "matplotlib", "ot")
def test_small_run(tmp_path, capsys):
    """The whole program on 24 x 24 cells: pictures exist, every line of the table is there, the order is computed."""
    from examples.stereo.__main__ import EPS, TAU, main

    assert main(["--grid", "24", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"overview.png", "mass.png", "matches.png"}
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    assert len(re.findall(r"^UOT +0\.\d", said, re.M)) == len(EPS) * len(TAU)
    assert len(re.findall(r"^OT +0\.\d", said, re.M)) == len(EPS)
    assert re.search(rf"OT \(same eps\) < cosine < UOT in \d of {len(EPS) * len(TAU)} settings", said)
    assert "POT sinkhorn_stabilized" in said
    assert float(re.search(r"^uotlib auto .*?x +[\d.]+ +(\S+)", said, re.M)[1]) < 1e-4
