"""The authors' checkpoints in our networks: each tensor in its place, the same outputs, words for what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

import unite_released as theirs
from accelerate.state import AcceleratorState
from unite_training import blocks, start  # noqa: F401

from examples.unite import checkpoint, learner, released
from examples.unite.checkpoint import CheckpointError
from examples.unite.config import preset
from examples.unite.discriminator import Discriminator
from examples.unite.importer import TASKS, configure, infer, main
from examples.unite.perceptual import PerceptualNetwork, load_perceptual
from examples.unite.structures import Transported
from examples.unite.translate import load_model, translate
from examples.unite.translate import main as translate_command

pytestmark = pytest.mark.filterwarnings("ignore:images are judged by random")
S = 5
NAMES = ("generator", "correspondence", "discriminator")


@pytest.fixture(autouse=True)
def accelerate_of_its_own() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def networks(channels: int = S, **options: object) -> dict[str, nn.Module]:
    return {"generator": theirs.trained(theirs.Generator(channels), 1),
            "correspondence": theirs.trained(theirs.Correspondence(channels, **options), 2),
            "discriminator": theirs.trained(theirs.Discriminator(channels), 3)}


def states(found: dict[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    return {name: module.state_dict() for name, module in found.items()}


def write(folder: Path, held: dict[str, dict[str, Tensor]]) -> list[str]:
    """The files, as flags of the command."""
    folder.mkdir(exist_ok=True)
    for name, state in held.items():
        torch.save(state, folder / f"{name}.pth")
    return [part for name in held for part in (f"--{name}", str(folder / f"{name}.pth"))]


def command(tmp_path: Path, held: dict[str, dict[str, Tensor]], *more: str) -> list[str]:
    return [*write(tmp_path / "theirs", held), "-o", str(tmp_path / "run"), "--set", "model.size=64", *more]


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize(("options", "prefix"), [
    ({"coordinates": True, "attended": True}, ""),
    ({"mask": False, "kernel": 4}, "module."),  # as DataParallel saves them
], ids=["ade20k", "deepfashion"])
def test_imported_networks_compute_what_theirs_do(options: dict, prefix: str, tmp_path: Path):
    found = networks(**options)
    held = {name: {prefix + key: tensor for key, tensor in state.items()} for name, state in states(found).items()}
    assert main(command(tmp_path, held)) == 0
    model, config = load_model(tmp_path / "run")
    random = torch.Generator().manual_seed(0)
    condition, other, exemplar = (torch.rand(2, channels, 64, 64, generator=random) for channels in (S, S, 3))
    correspondence = found["correspondence"]
    of_condition, of_exemplar = (extractor(image) for extractor, image in (
        (correspondence.adaptive_model_seg, condition), (correspondence.adaptive_model_img, exemplar)))
    ours_x, ours_z = model.extractor_x(condition), model.extractor_z(exemplar)
    for ours, expected in ((ours_x, of_condition), (ours_z, of_exemplar)):
        for level, right in zip(ours, expected, strict=True):
            close(level, right)
    x, z = model.descriptors(ours_x, ours_z, condition, other)
    close(x, correspondence.descriptors(of_condition[4], condition, correspondence.theta))
    close(z, correspondence.descriptors(of_exemplar[4], other, correspondence.phi))
    shared = model.descriptors.shared_features(ours_x, ours_z, condition, other)
    sides = (of_condition[4], condition), (of_exemplar[4], other)
    matched = model.matcher.double()
    for ours, right in zip(matched.mass(x, z, [side.double() for side in shared]), correspondence.masses(*sides),
                           strict=True):
        close(ours.float(), right)
    close(matched(*(side.double() for side in (x, z, exemplar)), dict.fromkeys(("f2", "f3", "f4", "f5"), exemplar),
                  other, [side.double() for side in shared]).confidence.float(), correspondence.confidence(*sides))
    levels = {"rgb": torch.rand(2, 3, 16, 16, generator=random)} | {
        name: torch.randn(2, width * 4, 16, 16, generator=random)
        for name, width in (("f2", 2), ("f3", 4), ("f4", 8), ("f5", 8))}
    moved = Transported(levels, *(exemplar,) * 8, confidence=None)
    expected = found["generator"]([condition, *of_condition[:4]], list(levels.values()), 0.5)
    close(model.generator(condition, ours_x, moved), expected)
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-0000000.pt", weights_only=True)
    judge = Discriminator(config.model).eval()
    judge.load_state_dict(state["discriminator"])
    for scale, right in zip(judge(condition, exemplar), found["discriminator"](torch.cat([condition, exemplar], 1)),
                            strict=True):
        for one, other_one in zip(scale, right, strict=True):
            close(one, other_one)


def test_every_tensor_has_one_place_and_is_there_unchanged(tmp_path: Path):
    held = states(networks(coordinates=True, attended=True))
    assert main(command(tmp_path, held)) == 0
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-0000000.pt", weights_only=True)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in state["average"]["model"].items())
    model, _ = load_model(tmp_path / "run")
    for name, part in (("generator", "model"), ("correspondence", "model"), ("discriminator", "discriminator")):
        pairs = list(getattr(released, name)(model.config))
        assert len({pair.theirs for pair in pairs}) == len({pair.ours for pair in pairs}) == len(pairs)
        for pair in pairs:
            assert torch.equal(state[part][pair.ours], held[name][pair.theirs]), pair


def test_a_weight_without_spectral_norm_stays_itself_until_training_goes_on(tmp_path: Path,
                                                                            capsys: pytest.CaptureFixture[str]):
    found = networks(attended=True)
    assert main(command(tmp_path, states(found))) == 0
    assert "adaptive_model_img.attn.o.weight: without spectral norm there" in capsys.readouterr().out
    model, _ = load_model(tmp_path / "run")
    weight = found["correspondence"].adaptive_model_seg.attn.theta.weight
    torch.testing.assert_close(model.extractor_x.attention.query.weight, weight)
    with torch.no_grad():
        trained = model.extractor_x.attention.query.train().weight
    assert float(torch.linalg.matrix_norm(trained.flatten(1), 2)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_published_sizes(task: str):
    """Numbers of parameters that were counted in the authors' code, in millions; and what preset each is here."""
    counts = {"ade20k": (131.8, 76.3), "coco": (132.0, 77.8), "celebahq": (131.4, 67.1), "deepfashion": (131.4, 66.6)}
    found, expected = full_size(task), TASKS[task]
    for name, count in zip(("generator", "correspondence"), counts[task], strict=True):
        numbers = sum(parameter.numel() for parameter in found[name].parameters()) / 1e6
        assert numbers == pytest.approx(count, abs=0.06)
    held = states(found)
    assert configure(infer(held["correspondence"], held["discriminator"]), task) \
        == preset("released").replace(
            "model", condition_channels=expected.channels, coordinates=expected.coordinates,
            mask=expected.mask, bilinear_warp=expected.bilinear_warp, extractor_attention=task == "ade20k")


def full_size(task: str) -> dict[str, nn.Module]:
    """Their networks of a task, without numbers in them."""
    channels, coordinates, mask, _ = TASKS[task]
    with torch.device("meta"):
        return {"generator": theirs.Generator(channels, base=64, hidden=128),
                "correspondence": theirs.Correspondence(channels, base=64, hidden=128, dim=256, mask=mask == "mix",
                                                        coordinates=coordinates, attended=task == "ade20k"),
                "discriminator": theirs.Discriminator(channels, base=64)}


@pytest.mark.parametrize("options", [{"mask": mask, "coordinates": coordinates, "attended": attended, "layers": layers,
                                      "dim": dim, "kernel": kernel}
                                     for mask, coordinates, attended, layers, dim, kernel in
                                     ((True, True, False, 4, 6, 3), (True, False, True, 1, 8, 4),
                                      (False, True, False, 2, 6, 3), (False, False, False, 4, 4, 3))])
def test_settings_are_read_off_the_shapes(options: dict):
    with torch.device("meta"):
        found = theirs.Correspondence(7, base=8, hidden=16, **options)
        judge = theirs.Discriminator(7, base=8, scales=3, attended=False)
    assert infer(found.state_dict(), judge.state_dict()) == {
        "condition_channels": 7, "base": 8, "hidden": 16, "strided_kernel": options["kernel"],
        "extractor_attention": options["attended"], "coordinates": options["coordinates"],
        "mask": "mix" if options["mask"] else "none", "residual_layers": options["layers"],
        "descriptor_dim": options["dim"], "discriminators": 3, "discriminator_attention": False}


def test_what_shapes_cannot_say_is_asked_for():
    with torch.device("meta"):
        found = theirs.Correspondence(3, mask=True).state_dict()
    with pytest.raises(ValueError, match=r"--set model\.mask=mix or --set model\.mask=none says it"):
        infer(found, None)
    assert (infer(found, None, "mix")["coordinates"], infer(found, None, "none")["coordinates"]) == (False, True)


def test_an_import_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With another judge than the import's settings name: none had a say before, and the one that begins is kept to."""
    held = states(networks(3))
    assert main(command(tmp_path, held, "--set", "model.mask=mix", "--set", "train.steps=1", "--set", "train.batch=2",
                        "--set", "train.validation=2")) == 0
    before, config = load_model(tmp_path / "run")

    def load(kind: str, file: str, device: torch.device) -> PerceptualNetwork:
        network = load_perceptual("random", "", device)  # whose numbers do not matter here
        network.name = f"{kind} of {file}"
        return network

    monkeypatch.setattr(learner, "load_perceptual", load)
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = start(config.replace("loss", perceptual="vgg19", perceptual_file="F"), tmp_path / "run", resume=True)
    for name, tensor in before.state_dict().items():
        assert torch.equal(resumed.learner.unite.state_dict()[name], tensor)
    resumed.run()
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").name == "step-0000001.pt"
    after, config = load_model(tmp_path / "run")
    assert not torch.equal(after.generator.last.weight, before.generator.last.weight)
    with pytest.raises(CheckpointError, match="was trained with the perceptual network vgg19 of F, not with"):
        start(config.replace("loss", perceptual_file="G"), tmp_path / "run", resume=True)


def test_another_task_is_refused():
    with torch.device("meta"):
        said = infer(theirs.Correspondence(15).state_dict(), None)
    with pytest.raises(ValueError, match=r"--task ade20k has model.condition_channels = 151, but .* say 15"):
        configure(said, "ade20k")
    assert configure(said, "celebahq").model.bilinear_warp


def test_what_is_never_used_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held = states(networks())
    held["correspondence"]["domain_classifier.feature.0.weight"] = torch.zeros(2, 3)
    assert main(command(tmp_path, held)) == 0
    told = capsys.readouterr()
    assert "the domain classifier, which no loss reaches: 1 tensors, 6 numbers, never used" in told.out
    assert "the branch of M in a stage without M: " in told.out
    assert "a bias that the instance norm behind it takes off again: 8 tensors" in told.out
    assert "the discriminator's decoder, which nothing asks: " in told.out
    assert told.err == ""


NO_PLACE = {
    ("correspondence", "adaptive_model_seg.deeper2.norm_1.param_free_norm.num_batches_tracked"): "(batch norm, ",
    ("correspondence", "adaptive_model_img.layer2.se_layar.fc.weight"): "(squeeze and excitation (--adaptor_se)",
    ("generator", "G_head_0.norm_0.param_free_norm.running_mean"): "(batch norm, without --PONO, ",
    ("generator", "G_up_1.norm_s.param_free_norm.running_var"): "(batch norm, without --PONO, ",
    ("discriminator", "discriminator_0.gap_fc.weight_orig"): "(the CAM head (--D_cam)",
}


@pytest.mark.parametrize("extra", [{("generator", "G_more.weight"): ""}, NO_PLACE], ids=["unexpected", "no place"])
def test_what_has_no_place_needs_partial(extra: dict[tuple[str, str], str], tmp_path: Path,
                                         capsys: pytest.CaptureFixture[str]):
    """Every tensor of the model has its numbers, and it computes something else than theirs."""
    held = states(networks())
    for file, tensor in extra:
        held[file][tensor] = torch.zeros(4, 5)
    assert main(command(tmp_path, held)) == 1
    *told, last = capsys.readouterr().err.splitlines()
    assert last == "not written, since it would not be wholly theirs; --partial writes it all the same"
    assert len(told) == len(extra)
    for line, ((file, tensor), words) in zip(told, extra.items(), strict=True):
        found = f"{tmp_path}/theirs/{file}.pth: {tensor}: "
        assert line.startswith(found + (f"no place for it here {words}" if words else "unexpected, of shape (4, 5)"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(command(tmp_path, held, "--partial")) == 0
    assert capsys.readouterr().err.splitlines() == told


def test_tensors_that_do_not_fit_are_named_and_need_partial(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held = states(networks())
    del held["generator"]["G_up_0.conv_s.weight_orig"]
    held["generator"]["fc.weight"] = torch.zeros(2, 3)
    held["correspondence"]["theta.bias"] = torch.full((6,), torch.nan)
    del held["discriminator"]["discriminator_1.model2.0.0.weight_u"]
    assert main(command(tmp_path, held)) == 1
    told = capsys.readouterr().err
    for words in (
            "generator.pth: G_up_0.conv_s.weight_orig: missing "
            "(generator.blocks.up0.conv_shortcut.parametrizations.weight.original here)",
            "generator.pth: fc.weight: wrong shape, (2, 3) there, (64, 64, 3, 3) here (generator.start.weight)",
            "correspondence.pth: theta.bias: holds NaN",
            "discriminator.pth: discriminator_1.model2.0.0.weight_u: missing "
            "(scales.1.third.0.parametrizations.weight.0._u here); equalised rates",
            "4 tensors of the model were left as they were drawn",
            "not written, "):
        assert words in told
    assert told.count("\n") == 6
    assert not (tmp_path / "run" / "checkpoints").exists()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(command(tmp_path, held, "--partial")) == 0
    load_model(tmp_path / "run")


@pytest.mark.parametrize(("change", "words"), [
    (lambda files: files["correspondence"].write_bytes(files["generator"].read_bytes()),
     "the correspondence network has no adaptive_model_seg.layer1.0.weight_orig"),
    (lambda files: files["generator"].write_bytes(b"nothing"), "generator.pth holds no weights that can be read"),
    (lambda files: files["generator"].unlink(), "no checkpoint at"),
    (lambda files: torch.save([1], files["generator"]), "generator.pth must hold a state dict of tensors, got list"),
])
def test_files_that_are_something_else(change, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = command(tmp_path, states(networks()))
    change({name: tmp_path / "theirs" / f"{name}.pth" for name in NAMES})
    assert main(argv) == 1
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_an_import_is_translated_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    held = states(networks(9))
    del held["discriminator"]
    argv = command(tmp_path, held)
    assert main(argv) == 0
    assert "no discriminator was given" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(argv) == 1
    assert "holds a run already" in capsys.readouterr().err
    labels = np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "condition.png")
    Image.fromarray(labels * 25).convert("RGB").save(tmp_path / "exemplar.png")
    AcceleratorState._reset_state(reset_partial_state=True)
    condition = str(tmp_path / "condition.png")
    assert translate_command([condition, str(tmp_path / "exemplar.png"), "-o", str(tmp_path / "out.png"), "--device",
                              "cpu", "--exemplar-condition", condition, "--run", str(tmp_path / "run")]) == 0
    assert Image.open(tmp_path / "out.png").size == (64, 64)
    model, _ = load_model(tmp_path / "run")
    random = torch.rand(1, 9, 64, 64)
    assert torch.isfinite(translate(model, random, random[:, :3], random).image).all()
