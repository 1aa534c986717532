"""Pairs of any source as files, and back: what `translate` and ``--data folder`` read is what the pairs were."""

import numpy as np
import pytest
import torch
from PIL import Image

from examples.unite import data
from examples.unite.config import preset
from examples.unite.data import pairs as pairs_module
from examples.unite.data.__main__ import main
from examples.unite.data.folder import Folder, read_image
from examples.unite.structures import Sample
from examples.unite.translate import load_condition

SIZE = 64
#: Of each source its usual kind of condition and how many channels it has.
SOURCES = {"coco": ("layout", 183), "celebahq": ("edges", 15), "deepfashion": ("landmarks", 20),
           "ade20k": ("mask", 151), "folder": ("mask", 300)}


class Drawn(pairs_module.Pairs):
    """Two pairs of a source's form, drawn by index; names lie in folders."""

    def __init__(self, channels, kind, class_names=None):
        super().__init__(size=SIZE, split="test", seed=0, pseudo_share=0.0)
        self.condition_channels, self.kind, self.class_names = channels, kind, class_names

    def __len__(self):
        return 2

    def side(self, seed):
        drawn = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, SIZE, SIZE), generator=drawn) / 127.5 - 1
        if self.kind != "mask":
            return image, torch.rand(self.condition_channels, SIZE, SIZE, generator=drawn)
        if self.class_names is None and self.condition_channels == 3:
            return image, torch.randint(0, 256, (3, SIZE, SIZE), generator=drawn) / 255
        ids = torch.randint(0, self.condition_channels, (SIZE, SIZE), generator=drawn)
        return image, torch.nn.functional.one_hot(ids, self.condition_channels).permute(2, 0, 1).float()

    def __getitem__(self, index):
        (image, condition), (exemplar, exemplar_condition) = self.side(2 * index), self.side(2 * index + 1)
        return Sample(condition, image, exemplar, exemplar_condition, False, f"WOMEN/id_1/{index:02d}_1_front")

    def one_sided(self, index):
        return data.OneSided((), ())


def exported(monkeypatch, pairs, source, out):
    monkeypatch.setattr("examples.unite.data.__main__.make", lambda *_, **__: pairs)
    assert main(["--data", source, "--root", "DIR", "--export", "--split", "test", "--out", str(out)]) == 0


@pytest.mark.parametrize("source", SOURCES)
def test_pairs_of_every_source_come_back_from_their_files(source, tmp_path, monkeypatch, capsys):
    kind, channels = SOURCES[source]
    assert kind == data.KINDS[source][0]
    classes = tuple(f"c{i}" for i in range(channels)) if source == "folder" else None
    pairs = Drawn(channels, kind, classes)
    exported(monkeypatch, pairs, source, tmp_path)
    assert ("--data folder read them" in capsys.readouterr().out) == (kind == "mask")
    config = preset("tiny").replace("model", size=SIZE, condition_channels=channels)
    ending = "png" if kind == "mask" else "npy"
    for index in range(2):
        sample, name = pairs[index], f"WOMEN__id_1__{index:02d}_1_front"
        for image, condition, file in ((sample.image, sample.condition, name),
                                       (sample.exemplar, sample.exemplar_condition, f"{name}-exemplar")):
            assert torch.equal(load_condition(tmp_path / f"condition/{file}.{ending}", config), condition)
            assert torch.equal(read_image(tmp_path / f"image/{file}.png", SIZE), image)
    if kind == "mask":
        read = Folder(root=tmp_path, size=SIZE, split="test")
        assert read.class_names == (classes or tuple(f"class {i}" for i in range(channels)))
        assert all(torch.equal(getattr(read[0], side), getattr(pairs[0], side))
                   for side in ("image", "condition", "exemplar", "exemplar_condition"))


def test_conditions_in_colours_stay_pictures(tmp_path, monkeypatch):
    pairs = Drawn(3, "mask")
    exported(monkeypatch, pairs, "folder", tmp_path)
    assert not (tmp_path / "classes.txt").exists()
    read = Folder(root=tmp_path, size=SIZE, split="test")
    assert read.class_names is None
    torch.testing.assert_close(read[1].condition, pairs[1].condition, atol=1e-6, rtol=0)


def test_items_with_one_name_are_refused(tmp_path, capsys):
    for kind in ("condition", "image"):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        for name in ("a", "a-exemplar"):
            Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(tmp_path / "mine" / kind / f"{name}.png")
    (tmp_path / "mine/pairs.csv").write_text("a,a-exemplar\na-exemplar,a\n")
    words = ["--data", "folder", "--root", str(tmp_path / "mine"), "--size", str(SIZE), "--split", "test", "--export"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert "a-exemplar.png would be of two items" in capsys.readouterr().err
