"""Curves of a run, from its metrics."""

from __future__ import annotations

import json

import pytest

from examples.unite import curves

LINES = [{"step": 0, "judge": "random-vgg(0)", "validation/psnr": 10.0, "validation/warped_psnr": 9.0},
         {"step": 1, "generator/adversarial": -0.5, "generator/total": 3.5, "discriminator/total": 2.0},
         {"step": 2, "generator/adversarial": 0.5, "generator/cycle": 4.0, "generator/total": 4.5},
         {"step": 2, "validation/psnr": 12.0, "validation/warped_psnr": 9.5}]


def test_each_metric_has_the_steps_that_it_was_written_at():
    assert curves.curves(LINES, "validation/psnr") == {"validation/psnr": ([0, 2], [10.0, 12.0])}
    found = curves.curves(LINES, "generator/")
    assert list(found) == ["generator/adversarial", "generator/total", "generator/cycle"]
    assert found["generator/cycle"] == ([2], [4.0])


def test_smoothing_is_a_mean_of_what_came_before():
    assert curves.smoothed([4.0, 0.0, 2.0, 6.0], 2) == [4.0, 2.0, 1.0, 4.0]
    assert curves.smoothed([4.0, 0.0], 1) == [4.0, 0.0]


def test_the_command_draws_a_run(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'uotlib[demo]'")
    from PIL import Image

    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert curves.main([str(tmp_path)]) == 0
    assert "wrote" in capsys.readouterr().out
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]


@pytest.mark.parametrize(("text", "words"), [(None, "no metrics at"), (json.dumps(LINES[1]) + "\n", "validation/psnr")])
def test_what_cannot_be_drawn_is_said(tmp_path, capsys, text, words):
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    assert curves.main([str(tmp_path)]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()
