"""Settings of the paper's tasks: the authors' switches, and how a command takes them."""

import dataclasses
import importlib.util
import json
import math

import pytest

from examples.unite import data, task
from examples.unite.config import CHOICES, Config, preset
from examples.unite.structures import collate

pytest.importorskip("accelerate", reason="needs accelerate: the extra unite")
pytest.importorskip("tensorboard", reason="needs tensorboard: the extra unite")

from unite_training import SMALL, Blocks, small, start

from examples.unite import train

#: Each task's switches in the authors' scripts, in the order of COLUMNS.
COLUMNS = ("model.mask", "model.coordinates", "model.extractor_attention", "loss.mask_nll", "loss.cycle",
           "loss.warp_self", "loss.perceptual_layer", "loss.perceptual_weight", "loss.pseudo", "loss.contextual",
           "model.bilinear_warp", "loss.consistency", "model.size", "model.stride", "train.batch",
           "train.pseudo_share", "data.mirror")
TABLE = {
    "ade20k": ("mix", True, True, 100, 0, 0, "relu5_2", 0.01, 10 * 0.1, 10 * 1.0, False, 10, 256, 4, 3, 0.3, True),
    "coco": ("mix", False, False, 100, 0, 0, "relu5_2", 0.01, 10 * 0.1, 10 * 0.1, False, 0, 128, 2, 8, 0.3, True),
    "celebahq": ("mix", False, False, 0, 1, 0, "relu4_2", 0.001, 10 * 1.0, 10 * 1.0, True, 10, 256, 4, 4, 0.3, True),
    "deepfashion": ("none", False, False, 0, 0, 100, "relu4_2", 0.001, 10 * 1.0, 10 * 1.0, True, 10, 256, 4, 2, 1.0,
                    False),
}
#: Epochs and images of the authors' schedule: steps are epochs x images / batch, half of them at the full rate.
SCHEDULE = {"ade20k": (300, 20_210), "coco": (60, 72_600), "celebahq": (60, 24_183), "deepfashion": (100, 29_000)}


def setting(config, name):
    section, _, key = name.partition(".")
    return getattr(getattr(config, section), key)


def test_the_tasks_are_the_published_data_sets():
    assert set(task.names()) == set(data.NAMES) - {"avatars", "folder"} == set(TABLE)
    assert CHOICES["source"] == data.NAMES
    assert set(CHOICES["condition"]) == {kind for kinds in data.KINDS.values() for kind in kinds}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_task_is_the_authors_table(name):
    config = task.apply(preset("default"), name)
    for column, value in zip(COLUMNS, TABLE[name], strict=True):
        assert setting(config, column) == value, column
    epochs, images = SCHEDULE[name]
    assert config.train.steps == epochs * images / config.train.batch
    assert config.train.decay_share == 0.5
    assert (config.data.source, config.loss.perceptual, config.data.condition) == (name, "vgg19", None)
    assert config.model.discriminator_attention
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_file_says_only_what_differs(name):
    tree = json.loads((task.FOLDER / f"{name}.json").read_text())
    default = preset("default")
    for section, settings in tree.items():
        for key, value in settings.items():
            assert getattr(getattr(default, section), key) != value, f"{section}.{key}"


def configured(*words):
    return train.configure(train._parse(list(words)))


def test_a_command_takes_a_task_over_a_preset_and_flags_over_both(tmp_path):
    plain = configured("--task", "coco", "--root", "DIR")
    assert plain == task.apply(preset("default"), "coco").replace("data", root="DIR")
    other = configured("--task", "coco", "--preset", "paper_literal", "--size", "64", "--set", "loss.cycle=2")
    assert other.match == preset("paper_literal").match
    assert (other.model.size, other.loss.cycle, other.loss.mask_nll) == (64, 2, 100)
    assert other.preset == "paper_literal"
    assert configured() == preset("tiny")
    own = tmp_path / "mine.json"
    own.write_text('{"model": {"levels": ["rgb", "f5"], "size": 64}, "data": {"count": null}, '
                   '"loss": {"perceptual_l1": true}}')
    config = configured("--task", str(own))
    assert config == preset("default").replace("model", levels=("rgb", "f5"), size=64).replace(
        "loss", perceptual_l1=True)
    assert train._folder(train._parse(["--task", str(own)]), config.preset).name == "mine"


@pytest.mark.parametrize(("text", "message"), [
    ("{", r"own\.json: .*line 1"), ("[]", r'own\.json: it must be \{"section"'),
    ('{"model": 3}', r'own\.json: it must be \{"section"'),
    ('{"network": {"size": 3}}', r"own\.json: unknown section 'network'"),
    ('{"model": {"sise": 3}}', r"own\.json: unknown setting model\.sise"),
    ('{"model": {"size": true}}', r"own\.json: model\.size must be a whole number, got 'True'"),
    ('{"model": {"size": 33}}', r"own\.json: size must be a multiple of 32"),
    ('{"data": {"source": "faces"}}', r"own\.json: source must be one of avatars"),
])
def test_what_is_wrong_with_a_task_is_told_by_its_file(tmp_path, text, message):
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        task.apply(preset("default"), str(tmp_path / "own.json"))


@pytest.mark.filterwarnings("ignore:images are judged by random")
@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_step_with_the_switches_of_a_task(name, tmp_path):
    """Every weighted loss of the task is there, and no other."""
    config = task.apply(small(), name)
    for section, settings in SMALL.items():
        config = config.replace(section, **settings)
    config = config.replace("model", size=64).replace("loss", perceptual="random")
    pairs = Blocks(4)
    run = start(config, tmp_path, examples=(pairs, [pairs[0]]))
    values = run.step([collate([pairs[0], pairs[1]])])
    losses = {key.partition("/")[2] for key in values if key.startswith("generator/")} - {"total"}
    weighted = {"adversarial", "discriminator_features", "pseudo", "perceptual", "contextual"}
    assert losses == weighted | {key for key in ("consistency", "cycle", "warp_self", "mask_nll")
                                 if setting(config, f"loss.{key}")}
    assert all(map(math.isfinite, values.values()))


def test_an_unknown_task(capsys):
    assert train.main(["--task", "cityscapes"]) == 1
    assert ("task must be one of ade20k, celebahq, coco, deepfashion or a JSON file, got 'cityscapes'"
            in capsys.readouterr().err)


def test_a_task_without_its_data_is_refused_before_anything_is_written(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--task", "ade20k", "--device", "cpu", "--out", str(out), "--set", "loss.perceptual=random"]
    assert train.main(words) == 1
    assert "root must be the folder of the data ade20k, got none" in capsys.readouterr().err
    assert train.main([*words, "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    for words in ("DataError", "missing: images/training/", "missing: lists/train.csv",
                  f"python -m examples.unite.check --data ade20k --root {tmp_path} says more"):
        assert words in error
    assert not out.exists()


def test_weights_of_the_judge_are_looked_for_before_the_data(tmp_path, capsys, monkeypatch):
    def unread(*_, **__):
        raise AssertionError("the data was read")

    monkeypatch.setattr(train, "Trainer", unread)
    file = tmp_path / "VGG19.pth"
    words = ["--task", "ade20k", "--out", str(tmp_path), "--root", str(tmp_path)]
    assert train.main([*words, "--set", f"loss.perceptual_file={file}"]) == 1
    assert capsys.readouterr().err == f"FileNotFoundError: no file of a perceptual network at {file}\n"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train.main(words) == 1
    assert "no weights for vgg19: --set loss.perceptual_file=FILE takes" in capsys.readouterr().err
    file.touch()
    unjudged = ("loss.pseudo=0", "loss.perceptual_weight=0", "loss.contextual=0")
    for settings in ((f"loss.perceptual_file={file}",), ("loss.perceptual=random",), unjudged):
        with pytest.raises(AssertionError, match="the data was read"):
            train.main([*words, *(word for setting in settings for word in ("--set", setting))])


def test_a_condition_that_a_source_does_not_have(tmp_path):
    for name, kind, known in (("coco", "mask", "layout"), ("celebahq", "layout", "edges, landmarks"),
                              ("folder", "edges", "mask")):
        with pytest.raises(ValueError, match=f"condition must be one of {known} for data {name}, got '{kind}'"):
            data.make(name, root=tmp_path, condition=kind)
    assert {field.name: field.default for field in dataclasses.fields(preset("tiny").data)}["condition"] is None
