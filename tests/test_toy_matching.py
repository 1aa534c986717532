"""The toy: its clouds, the half-step it compares with, that it learns, and one small run of the whole program."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch
from tolerances import assert_close

from examples.toy_matching.clouds import CLASSES, World, one_hot
from examples.toy_matching.learning import Learned, Matcher, Task, half_steps, share, train
from examples.toy_matching.report import line, markdown
from examples.toy_matching.slopes import slope_lines, slopes

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")


def small_training(eps=0.025, gradient="implicit", **task) -> Learned:
    return train(eps, gradient, 0, Task(**({"steps": 40, "points": 48} | task)))


def test_clouds():
    clouds = World(0, 0.25).draw(4000)
    for labels in (clouds.x_class, clouds.z_class):
        assert float((labels < 0).double().mean()) == pytest.approx(0.25, abs=0.03)  # 4 standard deviations
        assert labels.unique().tolist() == list(range(-1, CLASSES))
    assert torch.equal(one_hot(clouds.x_class).sum(1), (clouds.x_class >= 0).double())
    again = World(0, 0.25).draw(4000)
    assert torch.equal(clouds.x, again.x)
    assert not torch.equal(clouds.x, World(1, 0.25).draw(4000).x)


def test_right_pairs_are_those_of_one_class():
    clouds = World(0, 0.25).draw(30)
    right = clouds.right
    for i, j in ((0, 0), (3, 7), (12, 5), *right.nonzero()[:3].tolist()):
        assert bool(right[i, j]) == bool(clouds.x_class[i] == clouds.z_class[j] != -1)
    assert float(share(right.double(), clouds)) == 1
    assert float(share((~right).double(), clouds)) == 0


@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_half_steps_are_the_normalised_plan(eps):
    """At the solution one more half-step changes nothing: only the gradient differs."""
    torch.manual_seed(0)
    matcher, clouds = Matcher(eps, "half-step", Task(tau=0.5)).double(), World(0, 0.25).draw(20)
    matcher.transport.tol = 1e-11
    x, z = matcher.left(clouds.x), matcher.right(clouds.z)
    matching = matcher.transport(x, z)
    forth, back = half_steps(x, z, matching, eps, 0.5)
    plan = matching.solution.plan
    assert_close(forth, plan / plan.sum(1, keepdim=True), 1e-6)
    assert_close(back, plan.T / plan.sum(0)[:, None], 1e-6)


def test_gradients_start_from_one_loss_and_differ():
    """Half-step and implicit: the same loss of the same matcher, two directions; unrolled long enough is implicit."""
    slopes, losses = {}, {}
    for gradient in ("implicit", "unrolled", "half-step"):
        torch.manual_seed(0)
        matcher = Matcher(0.05, gradient, Task(tau=0.5)).double()
        if gradient == "unrolled":
            matcher.transport.max_iter = 300
        else:
            matcher.transport.tol = 1e-11
        loss, _ = matcher(World(0, 0.25).draw(20))
        loss.backward()
        slopes[gradient], losses[gradient] = matcher.left.weight.grad, float(loss.detach())
    assert losses["unrolled"] == pytest.approx(losses["implicit"], rel=1e-7)
    assert losses["half-step"] == pytest.approx(losses["implicit"], rel=1e-7)
    assert_close(slopes["unrolled"], slopes["implicit"], 1e-5)
    assert float((slopes["half-step"] - slopes["implicit"]).norm() / slopes["implicit"].norm()) > 0.05


def test_it_learns():
    untrained, trained = small_training(steps=0), small_training()
    assert untrained.share < 0.1  # one class in CLASSES would be right by chance
    assert trained.share > 0.3
    assert len(trained.curve) == 40
    assert trained.kept > trained.kept_outliers


def test_annealing_ends_at_its_last_eps():
    run = small_training(eps=None, steps=3, points=20)
    assert run.eps == "annealed"
    assert run.share == pytest.approx(run.share_sharp, abs=1e-6)


def test_sharp_plans_have_one_partner_and_gradients_that_agree_less():
    """A large eps spreads a row over its neighbours; gradients are aligned with themselves, always."""
    smooth, sharp = (slopes(eps, 1, Task(points=40)) for eps in (0.1, 1e-4))
    assert sharp.partners == pytest.approx(1.0, abs=0.2)
    assert smooth.partners > 3
    assert smooth.agreement["implicit"] > 0.2 > 2 * sharp.agreement["implicit"]
    assert smooth.aligned["implicit"] == pytest.approx(1.0)
    assert smooth.aligned["half-step"] > sharp.aligned["half-step"]
    assert len(slope_lines([smooth, sharp])) == 4


def test_table():
    def runs(eps, gradient, *shares):
        return [Learned(eps, gradient, seed, [value], value, value, 0.6, 0.5, 0.25, torch.eye(2), 0.02)
                for seed, value in enumerate(shares)]

    table = [runs("0.01", "implicit", 0.9, 0.7, 0.8), runs("annealed", "implicit", 0.5, 0.5, 0.5),
             runs("0.01", "half-step", 0.1, 0.4, 0.2)]
    assert line(table[0]).split() == ["0.01", "implicit", "0.90", "0.70", "0.80", "0.80", "0.80", "0.60", "0.50",
                                      "0.25", "20"]
    assert markdown(table) == ["| eps while training | implicit | half-step |", "| --- | --- | --- |",
                               "| 0.01 | 0.80 (0.70 to 0.90), rows 0.60 | 0.20 (0.10 to 0.40), rows 0.60 |",
                               "| 0.05 -> 0.0001 | 0.50 (0.50 to 0.50), rows 0.60 | - |"]


@needs_matplotlib
def test_small_run(tmp_path, capsys):
    from examples.toy_matching.__main__ import main

    assert main(["--steps", "3", "--seeds", "2", "--points", "24", "--eps", "0.05", "annealed",
                 "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r"^(?:0\.05|annealed) +(?:implicit|unrolled|half-step) +0\.\d\d +0\.\d\d", said, re.M)) == 6
    assert said.count("\n| 0.05") == 2
    assert re.search(r"^0\.05 +\d+\.\d( +-?[01]\.\d\d +1\.00 +\d+\.\d)", said, re.M)
    assert (tmp_path / "learning.png").stat().st_size > 5000


@pytest.mark.parametrize("arguments", [["--eps", "-1"], ["--eps", "soon"], ["--steps", "0"], ["--tau", "inf"],
                                       ["--gradients", "none"], ["--outliers", "1"]])
def test_bad_arguments_are_refused(arguments, capsys):
    from examples.toy_matching.__main__ import main

    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert arguments[0].lstrip("-") in capsys.readouterr().err
