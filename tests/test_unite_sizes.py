"""The networks of examples/unite at full width: shapes, and numbers of parameters against the published ones."""

import dataclasses

import pytest
import torch
from unite_networks import CLASSES, inputs, millions, moved, small

from examples.unite import layers
from examples.unite.config import ModelConfig, preset
from examples.unite.descriptors import Descriptors
from examples.unite.discriminator import Discriminator
from examples.unite.extractor import Extractor
from examples.unite.model import Unite
from examples.unite.translation import Generator


@pytest.fixture
def meta(monkeypatch):
    """Tensors without numbers; and no spectral norms, which hold no parameters and take minutes to start there."""
    monkeypatch.setattr(layers, "spectral_norm", lambda layer: layer)
    with torch.device("meta"):
        yield


@pytest.mark.parametrize(("size", "stride"), [(64, 4), (128, 2), (256, 4), (512, 4)])
@pytest.mark.usefixtures("meta")
def test_shapes_at_full_width(size, stride):
    config = ModelConfig(size=size, stride=stride, condition_channels=CLASSES)
    condition = torch.empty(1, CLASSES, size, size)
    kept = Extractor(config, CLASSES)(condition)
    half, grid = (size // 2,) * 2, (size // stride,) * 2
    assert [tuple(level.shape[1:]) for level in kept] == [
        (128, *half), (256, *half), (512, *grid), (512, *grid), (256, *grid)]
    x, z = Descriptors(config)(kept, kept, condition, condition)
    assert x.shape == z.shape == (1, 128, *grid)
    assert Generator(config)(condition, kept, moved(config)).shape == (1, 3, size, size)


@pytest.mark.usefixtures("meta")
def test_patches_of_the_discriminator_at_256():
    judge = Discriminator(ModelConfig(condition_channels=CLASSES))
    judged = judge(torch.empty(2, CLASSES, 256, 256), torch.empty(2, 3, 256, 256))
    assert [[tuple(level.shape[1:]) for level in scale] for scale in judged] == [
        [(64, 128, 128), (128, 64, 64), (256, 32, 32), (512, 31, 31), (1, 30, 30)],
        [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 15, 15), (1, 14, 14)]]


def test_an_image_need_not_be_square_and_levels_may_come_at_their_own_size():
    config = small(unfold=True)
    model = Unite(config.model, config.match).eval()
    with torch.no_grad():
        output = model(*inputs(1, (64, 96))[:3])
    assert output.image.shape == (1, 3, 64, 96)
    assert output.transported.levels["f2"].shape[-2:] == (32, 48)
    assert output.transported.levels["f4"].shape[-2:] == (16, 24)


@pytest.mark.usefixtures("meta")
def test_striding_convolutions_have_kernels_of_four_or_three():
    four, three = (Extractor(ModelConfig(strided_kernel=kernel), 3) for kernel in (4, 3))
    assert millions(four) - millions(three) == pytest.approx((16 - 9) * (64 * 128 + 256 * 512) / 1e6)
    for extractor in (four, three):
        assert extractor(torch.empty(1, 3, 64, 64)).f4.shape == (1, 512, 16, 16)


@pytest.mark.parametrize(("channels", "total", "of_x", "of_layers"), [
    (15, 67.1, 30.8, 5.3), (151, 76.3, 32.2, 11.9), (20, 66.6, 30.8, 4.7), (183, 77.8, 32.6, 13.9)],
    ids=["faces", "ADE20K", "fashion", "COCO"])
@pytest.mark.usefixtures("meta")
def test_released_correspondence_has_the_published_size(channels, total, of_x, of_layers):
    """The published sums hold six projections of 256 channels: two are ours here, two or four are the matcher's."""
    ade, fashion = channels == 151, channels == 20
    config = dataclasses.replace(preset("released").model, condition_channels=channels, extractor_attention=ade,
                                 coordinates=ade, mask="none" if fashion else "mix")
    own, of_image, last = Extractor(config, channels), Extractor(config, 3), Descriptors(config)
    attention = 0.33 if ade else 0.0
    assert millions(own) == pytest.approx(of_x + attention, abs=0.05)
    assert 30.6 <= millions(of_image) < 31.05
    assert millions(last.shared) == pytest.approx(of_layers, rel=0.03)
    projections = 6 * (256 + channels * (not fashion) + 3 * ade) * 256 / 1e6
    found = millions(own) + millions(of_image) + millions(last.shared) + projections
    assert found == pytest.approx(total, abs=0.15)


@pytest.mark.parametrize(("channels", "released"), [(15, 131.4), (151, 131.8), (20, 131.4), (183, 132.0)])
@pytest.mark.usefixtures("meta")
def test_generators_have_the_published_sizes(channels, released):
    config = ModelConfig(condition_channels=channels)

    def size(**changes) -> float:
        return millions(Generator(dataclasses.replace(config, **changes)))

    assert size(norm="seace_released") == pytest.approx(released - 11.2, abs=0.1)  # 11.2 M of it were never used
    assert 118.3 < size() < 119.05
    assert size(norm="spade") == pytest.approx(113.3, abs=0.4)
    assert 92.55 < size(norm="spade", levels=("rgb",)) < 97.65  # CoCosNet's


@pytest.mark.parametrize(("channels", "published"), [(15, 6.5), (183, 7.0)])
@pytest.mark.usefixtures("meta")
def test_discriminator_has_the_published_size_without_its_dead_branch(channels, published):
    found = millions(Discriminator(ModelConfig(condition_channels=channels)))
    assert 0.75 < published - found < 0.95


@pytest.mark.usefixtures("meta")
def test_tiny_is_of_a_few_million():
    config = preset("tiny")
    parts = [Extractor(config.model, 9), Extractor(config.model, 3), Descriptors(config.model),
             Generator(config.model)]
    assert sum(map(millions, parts)) < 12
