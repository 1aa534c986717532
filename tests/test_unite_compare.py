"""The comparison of matchers by what they move: its measures on hand-made scenes, its order on avatars."""

import json
import math

import pytest
import torch

pytest.importorskip("python_avatars", reason="avatars need the extra unite")
pytest.importorskip("resvg_py", reason="avatars need the extra unite")

from examples.unite import checkpoint, compare, data
from examples.unite.config import MatchConfig, ModelConfig, preset
from examples.unite.model import Unite
from examples.unite.structures import collate

STRIDE = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("avatars")


@pytest.fixture(scope="module")
def measured(cache):
    pairs = data.make("avatars", root=cache, size=64, split="test", count=8)
    matchers = compare.make_matchers(ModelConfig(size=64, stride=STRIDE), MatchConfig(), {})
    with torch.enable_grad():
        found = compare.compare(pairs, compare.fixed_descriptors(STRIDE), matchers, STRIDE)
        assert torch.is_grad_enabled()
    return found


def test_unbalanced_transport_keeps_less_of_what_has_no_counterpart(measured):
    means, _ = measured
    uot, ot, cos = (means[name] for name in ("uot", "ot", "cos"))
    assert uot["kept_one_sided"] < 0.7 * uot["kept_shared"]
    assert uot["kept_back_one_sided"] < 0.7 * uot["kept_back_shared"]
    assert ot["kept_one_sided"] == pytest.approx(1, abs=1e-2) == ot["load_one_sided"]
    assert uot["load_one_sided"] < 0.7 * ot["load_one_sided"]
    assert math.isnan(cos["kept_shared"])


def test_orders_of_the_matchers(measured):
    """Many-to-one: cos most, ot least; what is carried to shared classes: uot better than ot."""
    means, _ = measured
    assert means["ot"]["distinct"] > means["uot"]["distinct"] > means["cos"]["distinct"] - 0.05
    assert means["ot"]["crowded"] < means["cos"]["crowded"]
    assert means["uot"]["psnr_shared"] > means["ot"]["psnr_shared"] + 1
    assert means["uot"]["right_class"] > means["ot"]["right_class"]
    assert all(found["psnr_shared"] > found["psnr_all"] for found in means.values())


def test_tiles_are_images(measured):
    _, tiles = measured
    assert list(tiles) == ["exemplar", "one-sided", "cos", "ot", "uot", "kept by uot", "truth"]
    assert {tuple(images.shape) for images in tiles.values()} == {(8, 3, 64, 64)}
    assert all(images.min() >= -1.001 and images.max() <= 1.001 for images in tiles.values())


def test_a_matcher_with_the_right_descriptors_is_perfect():
    """Unit vectors as descriptors, the exemplar being the truth with its positions permuted: every measure is known."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(16, generator=generator)
    x = torch.eye(16).reshape(1, 16, 4, 4)
    z = x.flatten(2)[..., order].reshape(1, 16, 4, 4)
    truth = torch.rand(1, 3, 16, generator=generator) * 2 - 1
    classes = torch.nn.functional.one_hot(torch.arange(16) % 9).T[None].float()
    seen = compare.Scene(truth.reshape(1, 3, 4, 4), truth[..., order].reshape(1, 3, 4, 4),
                         classes.reshape(1, 9, 4, 4), classes[..., order].reshape(1, 9, 4, 4))
    for matcher in compare.make_matchers(ModelConfig(), MatchConfig(masses="uniform"), {}).values():
        found, warped, _ = compare.measure(matcher, x, z, seen)
        torch.testing.assert_close(warped, seen.truth, atol=1e-4, rtol=0)
        assert found["psnr_shared"] > 80
        assert found["distinct"] == 1
        assert found["crowded"] == 1
        assert found["load_shared"] == pytest.approx(1, abs=1e-4)
        assert found["load_one_sided"].isnan()


def test_plans_of_a_small_eta_are_solved_and_those_that_are_not_are_seen(cache, tmp_path, capsys):
    """25 passes at eta 1e-4 leave a plan that is none; without a number there are as many as it takes."""
    words = ["--root", str(cache), "--count", "2", "--stride", "4", "--eta", "1e-4"]
    found = {}
    for name, more in {"few": ["--passes", "25"], "default": []}.items():
        assert compare.main([*words, *more, "--out", str(tmp_path / name)]) == 0
        assert "| violation |" in capsys.readouterr().out
        found[name] = json.loads((tmp_path / name / "compare.json").read_text())
    assert found["few"]["settings"]["passes"] == 25
    assert found["few"]["measures"]["uot"]["violation"] > 1e-2
    assert found["default"]["settings"]["passes"] == 400
    assert found["default"]["measures"]["uot"]["violation"] < 1e-3
    assert math.isnan(found["few"]["measures"]["cos"]["violation"])
    assert compare.main([*words, "--passes", "0", "--out", str(tmp_path)]) == 1
    assert "passes_eval must be positive" in capsys.readouterr().err


def test_a_run_keeps_its_passes_where_they_are_more():
    assert [compare.passes_for(eta, MatchConfig()) for eta in (0.05, 0.02, 0.01, 9e-3, 1e-4)] == [50, 50, 100, 400, 400]
    assert compare.passes_for(0.05, MatchConfig(passes=300)) == 300
    assert compare.passes_for(0.05, MatchConfig(passes=300, passes_eval=60)) == 60


def test_the_violation_is_the_worst_of_all_pairs(cache):
    pairs = data.make("avatars", root=cache, size=64, split="test", count=4)
    matchers = compare.make_matchers(ModelConfig(size=64, stride=STRIDE), MatchConfig(passes=6), {})
    found, _ = compare.compare(pairs, compare.fixed_descriptors(STRIDE), matchers, STRIDE, batch=3)
    x, z, _ = compare.fixed_descriptors(STRIDE)(collate([pairs[index] for index in range(4)]))
    with torch.no_grad():
        single = matchers["uot"].plan(x, z).solution.violation
    assert single.min() < 0.9 * single.max()
    assert found["uot"]["violation"] == pytest.approx(float(single.max()), rel=1e-3)


def test_a_collapsed_matcher_is_seen():
    """All descriptors the same: every position has the same best match, and the mean colour is carried everywhere."""
    x = torch.nn.functional.normalize(torch.ones(1, 5, 4, 4), dim=1)
    truth = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    classes = torch.ones(1, 1, 4, 4)
    seen = compare.Scene(truth, truth, classes, classes)
    matcher = compare.make_matchers(ModelConfig(), MatchConfig(masses="uniform"), {})["cos"]
    found, warped, _ = compare.measure(matcher, x, x, seen)
    assert warped.abs().max() < 1e-5
    assert found["distinct"] == 1 / 16
    assert found["crowded"] == 16
    # the mean square of 16 values even in [-1, 1] is 17 / 45
    assert found["psnr_all"] == pytest.approx(10 * math.log10(4 * 45 / 17), abs=1e-3)


def test_one_sided_positions():
    classes = torch.tensor([[0, 0], [1, 2]])
    other = torch.tensor([[0, 1], [1, 3]])
    one_hot = [torch.nn.functional.one_hot(labels, 9).permute(2, 0, 1)[None].float() for labels in (classes, other)]
    seen = compare.Scene(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), *one_hot)
    assert seen.shared.tolist() == [[[True, True], [True, False]]]
    assert seen.exemplar_shared.tolist() == [[[True, True], [True, False]]]


def test_blurring_keeps_constants_and_sums():
    assert torch.allclose(compare.blurred(torch.full((1, 2, 8, 8), 0.3), 2.0), torch.tensor(0.3))
    spot = torch.zeros(1, 1, 15, 15)
    spot[..., 7, 7] = 1
    found = compare.blurred(spot, 1.0)
    assert float(found.sum()) == pytest.approx(1)
    assert float(found[..., 7, 8] / found[..., 7, 7]) == pytest.approx(math.exp(-0.5))
    assert torch.equal(compare.blurred(spot, 0.0), spot)


def test_the_command_writes_table_and_picture(cache, tmp_path, capsys):
    arguments = ["--root", str(cache), "--count", "3", "--stride", "4", "--out", str(tmp_path), "--tau", "0.1"]
    assert compare.main(arguments) == 0
    saved = json.loads((tmp_path / "compare.json").read_text())
    assert saved["settings"]["tau"] == 0.1
    assert saved["settings"]["passes"] == 50
    assert set(saved["measures"]) == {"cos", "ot", "uot"}
    assert (tmp_path / "compare.png").is_file()
    assert "| uot |" in capsys.readouterr().out
    assert compare.main([*arguments, "--checkpoint", str(tmp_path / "none.pt")]) == 1
    assert "none.pt" in capsys.readouterr().err


def test_a_checkpoint_gives_its_descriptors(cache, tmp_path):
    torch.manual_seed(0)
    config = preset("tiny").replace("model", base=4, hidden=8, descriptor_dim=8, residual_layers=1, stride=4)
    config = config.replace("match", masses="softmax", matcher="uot")
    model = Unite(config.model, config.match).eval()
    state = {"config": config.to_dict(), "model": model.state_dict(), "average": None}
    checkpoint.save(state, tmp_path / "checkpoints", step=1, best=True)
    describe, _, match, condition, own = compare.from_run(tmp_path)
    pairs = data.make("avatars", root=cache, size=64, split="test", count=2)
    batch = collate([pairs[0], pairs[1]])
    with torch.no_grad():
        x, z, shared = describe(batch)
        output = model(batch.condition, batch.exemplar, batch.exemplar_condition).transported
        plan = own["uot"].plan(x, z, shared)
    assert condition == "mask"
    torch.testing.assert_close(plan.kept, output.kept)
    matchers = compare.make_matchers(config.model, match, own)
    assert matchers["uot"] is own["uot"]  # the masses that it learned
    assert matchers["cos"].match.masses == "eq3"
    assert compare.main(["--root", str(cache), "--count", "2", "--checkpoint", str(tmp_path), "--eta", "0.01",
                         "--out", str(tmp_path / "found")]) == 0
    assert json.loads((tmp_path / "found/compare.json").read_text())["settings"]["eta"] == 0.01
