"""The networks of examples/unite: shapes, sizes, formulas, and what an image may depend on."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.testing import assert_close

from examples.unite import layers
from examples.unite.attention import NonLocal, attend
from examples.unite.config import LEVELS, PRESETS, Config, ModelConfig, preset
from examples.unite.descriptors import Descriptors, coordinates
from examples.unite.discriminator import Discriminator
from examples.unite.extractor import Extractor
from examples.unite.layers import positional_norm, run
from examples.unite.model import Unite
from examples.unite.seace import CosineActivation, DotActivation, LearnedActivation, ReleasedSeace, Seace
from examples.unite.spade import Guidance, Spade
from examples.unite.structures import Features, Transported
from examples.unite.translation import Generator

CLASSES = 5
#: Parameters in the branches of gains that start at 0: their first gradient is 0, but there.
BEHIND_GAINS = ("attention.", "activations.", ".value.")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def meta(monkeypatch):
    """Tensors without numbers; and no spectral norms, which hold no parameters and take minutes to start there."""
    monkeypatch.setattr(layers, "spectral_norm", lambda layer: layer)
    with torch.device("meta"):
        yield


def small(name: str = "default", **changes) -> Config:
    """A preset whose widths and side are cut down."""
    cut = {"size": 64, "base": 4, "hidden": 8, "descriptor_dim": 8, "residual_layers": 1,
           "condition_channels": CLASSES} | changes
    return preset(name).replace("model", **cut)


def inputs(batch: int = 2, side: tuple[int, int] = (64, 64), seed: int = 1):
    """condition, exemplar, exemplar's condition, truth."""
    random = torch.Generator().manual_seed(seed)

    def one_hot():
        return functional.one_hot(torch.randint(CLASSES, (batch, *side), generator=random), CLASSES).movedim(-1, 1)

    def image():
        return torch.rand(batch, 3, *side, generator=random) * 2 - 1

    return one_hot().float(), image(), one_hot().float(), image()


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


def moved(config: ModelConfig, batch: int = 1, device: str = "meta", **changes) -> Transported:
    """What a matcher would hand on, at random."""
    side = config.size // config.stride
    widths = dict(zip(LEVELS, (3, *(config.base * times for times in (2, 4, 8, 8))), strict=True))

    def maps(channels: int) -> torch.Tensor:
        return torch.randn(batch, channels, side, side, device=device)

    parts = {"levels": {level: maps(widths[level]) for level in config.levels}, "warped": maps(3),
             "warped_condition": maps(CLASSES), "cycle": maps(3), "exemplar_small": maps(3), "a": maps(1)[:, 0],
             "b": maps(1)[:, 0], "kept": maps(1)[:, 0], "kept_back": maps(1)[:, 0],
             "confidence": None if config.confidence == "off" else maps(1).sigmoid()}
    return Transported(**(parts | changes))


def features(config: ModelConfig, batch: int = 1, device: str = "meta") -> Features:
    half, grid, base = config.size // 2, config.size // config.stride, config.base
    return Features(*(torch.randn(batch, times * base, side, side, device=device)
                      for times, side in ((2, half), (4, half), (8, grid), (8, grid), (4, grid))))


# ------------------------------------------------------------------------------------------------------------ shapes

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


# ---------------------------------------------------------------------------------------------- numbers of parameters

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


# ---------------------------------------------------------------------------------------------------------- formulas

def test_positional_norm_standardises_channels():
    x = torch.randn(2, 7, 3, 4, dtype=torch.float64) * 5 + 3
    y = positional_norm(x, eps=0.0)
    assert_close(y.mean(1), torch.zeros(2, 3, 4, dtype=torch.float64), atol=1e-12, rtol=0)
    assert_close(y.var(1), torch.ones(2, 3, 4, dtype=torch.float64))
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 0.3).sqrt()
    assert_close(positional_norm(x, eps=0.3), expected)


def drawn(module: nn.Module) -> nn.Module:
    """In float64, with weights of a size at which every term counts."""
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3)
    return module


def conv(layer: nn.Conv2d, x: torch.Tensor, mode: str = "reflect") -> torch.Tensor:
    """3 x 3, written out: sum over taps of a padded picture."""
    padded = functional.pad(x, (1, 1, 1, 1), mode=mode)
    height, width = x.shape[-2:]
    out = layer.bias[:, None, None]
    for row in range(3):
        for column in range(3):
            patch = padded[..., row:row + height, column:column + width]
            out = out + torch.einsum("oc,bchw->bohw", layer.weight[:, :, row, column], patch)
    return out


def enlarged(x: torch.Tensor, times: int) -> torch.Tensor:
    return x.repeat_interleave(times, -1).repeat_interleave(times, -2)


def matrix(kind: str, maps: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """M, (B, n, n), whole."""
    rows = maps.flatten(2).mT
    if kind == "dot":
        return torch.einsum("bic,bjc->bij", rows, rows) / rows.shape[1]
    rows = rows / rows.norm(dim=-1, keepdim=True)
    return (module.log_temperature.exp() * torch.einsum("bic,bjc->bij", rows, rows)).softmax(-1)


@pytest.mark.parametrize("kind", ["cosine", "dot", "none"])
def test_seace_is_equations_6_and_7(kind):
    """M on a 4 x 4 grid under a picture of 8 x 8, or the identity at full size; a confidence blends."""
    norm = drawn(Seace(6, condition=3, style=2, hidden=4))
    x, condition, own = (torch.randn(2, c, 8, 8, dtype=torch.float64) for c in (6, 3, 5))
    side = 8 if kind == "none" else 4
    style = torch.randn(2, 2, side, side, dtype=torch.float64)
    confidence = torch.rand(2, 1, 8, 8, dtype=torch.float64)

    s = conv(norm.style, style).relu()
    gamma, mu = 1 + conv(norm.style_gamma, s), conv(norm.style_mu, s)
    activation = None
    if kind != "none":
        module = (CosineActivation() if kind == "cosine" else DotActivation()).double()
        activation = module(own, (4, 4))
        m = matrix(kind, own[..., ::2, ::2], module)  # the nearest pixels of a picture twice as large
        gamma, mu = (enlarged(torch.einsum("bij,bcj->bci", m, value.flatten(2)).unflatten(2, (4, 4)), 2)
                     for value in (gamma, mu))
    plain = conv(norm.condition, condition).relu()
    for blend in (None, confidence):
        modulated = gamma * plain + mu
        if blend is not None:
            modulated = blend * modulated + (1 - blend) * plain
        expected = (1 + conv(norm.gamma, modulated)) * positional_norm(x) + conv(norm.mu, modulated)
        assert_close(norm(x, Guidance(condition, style, activation, blend)), expected)


def test_cosine_activation_starts_at_temperature_10():
    assert CosineActivation().log_temperature.exp().item() == pytest.approx(10.0)


def test_released_seace_is_what_the_code_computes():
    norm = drawn(ReleasedSeace(6, condition=3, style=2, hidden=4, activated=True))
    learned = drawn(LearnedActivation(8))
    x, condition, own = (torch.randn(2, c, 8, 8, dtype=torch.float64) for c in (6, 3, 8))
    style, confidence = torch.randn(2, 2, 8, 8, dtype=torch.float64), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    rows = own[..., ::2, ::2].flatten(2).mT
    query, key = (rows @ layer.weight[:, :, 0, 0].mT for layer in (learned.query, learned.key))
    value = conv(norm.value, style[..., ::2, ::2], "constant").relu().flatten(2).mT
    gathered = (query @ key.mT).softmax(-1) @ value
    added = style + norm.gain * enlarged(gathered.mT.unflatten(2, (4, 4)), 2)
    own_part = conv(norm.condition, condition, "constant").relu()
    h = (1 - confidence) * own_part + confidence * conv(norm.style, added, "constant").relu()
    expected = positional_norm(x) * (1 + conv(norm.gamma, h, "constant")) + conv(norm.beta, h, "constant")
    assert_close(norm(x, Guidance(condition, style, learned(own, (4, 4)), confidence)), expected)


@pytest.mark.parametrize("norm", [Spade(6, 5, 4), Seace(6, 3, 2, 4), ReleasedSeace(6, 3, 2, 4, activated=False)],
                         ids=["spade", "seace", "released"])
def test_a_style_without_confidence_is_not_looked_at(norm):
    norm = drawn(norm)
    x, condition, *styles = (torch.randn(1, c, 4, 4, dtype=torch.float64) for c in (6, 3, 2, 2))
    none, full = x.new_zeros(1, 1, 4, 4), x.new_ones(1, 1, 4, 4)
    one, other = (norm(x, Guidance(condition, style, confidence=none)) for style in styles)
    assert_close(one, other, rtol=0, atol=0)
    one, other = (norm(x, Guidance(condition, style, confidence=full)) for style in styles)
    assert (one - other).abs().max() > 1e-3


def test_non_local_block_is_self_attention_behind_a_gain_of_0():
    block = NonLocal(16).double().eval()
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    assert_close(block(x), x, rtol=0, atol=0)
    with torch.no_grad():
        block.gain.fill_(0.7)
    query, key, value = (layer(x) for layer in (block.query, block.key, block.value))
    key, value = (maps.unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)).flatten(2) for maps in (key, value))
    weights = torch.einsum("bcn,bcm->bnm", query.flatten(2), key).softmax(-1)
    mixed = torch.einsum("bnm,bcm->bcn", weights, value).unflatten(2, (4, 6))
    assert_close(block(x), x + 0.7 * block.out(mixed))


def test_attention_keeps_no_matrix_for_the_backward():
    """Of 512 x 512 numbers; what is kept is a few times the inputs, filled up to one width."""
    query, key = torch.randn(1, 512, 5, requires_grad=True), torch.randn(1, 512, 5, requires_grad=True)
    value = torch.randn(1, 512, 11, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.numel()) or saved, lambda x: x):
        mixed = attend(query, key, value)
    assert max(kept) <= 512 * 16
    assert_close(mixed, (query @ key.mT).softmax(-1) @ value)
    mixed.square().sum().backward()
    assert all(x.grad.abs().max() > 0 for x in (query, key, value))


# ------------------------------------------------------------------------------------------------------- descriptors

@pytest.mark.parametrize("changes", [{}, {"match_kernel": 3}, {"coordinates": True, "mask": "none"}, {"mask": "noise"},
                                     {"centring": "position"}, {"residual_layers": 0, "mask": "none"}],
                         ids=lambda changes: "-".join(map(str, changes)) or "default")
def test_descriptors_are_centred_and_of_unit_length(changes):
    config = small(**changes).model
    f6 = torch.randn(2, 16, 16, 16)
    condition = inputs()[0]
    x, z = Descriptors(config)(*(Features(f6, f6, f6, f6, f6),) * 2, condition, condition)
    assert x.shape == z.shape == (2, 8 * config.match_kernel**2, 16, 16)
    over = 1 if config.centring == "channel" else (2, 3)
    for maps in (x, z):
        assert_close(maps.norm(dim=1), torch.ones(2, 16, 16))
        if config.centring == "channel":
            assert maps.mean(over).abs().max() < 1e-6


def test_centring_by_position_takes_the_mean_descriptor_off():
    config = small(centring="position", mask="none").model
    descriptors = Descriptors(config)
    f6 = torch.randn(2, 16, 16, 16)
    x, _ = descriptors(*(Features(f6, f6, f6, f6, f6),) * 2, inputs()[0], None)
    raw = descriptors.theta(descriptors.shared(f6))
    raw = raw - raw.mean((2, 3), keepdim=True)
    assert_close(x, raw / raw.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-4)


def test_coordinates_are_x_y_and_the_distance():
    found = coordinates(torch.zeros(2, 1, 3, 5, dtype=torch.float64))
    assert found.shape == (2, 3, 3, 5)
    assert found[0, :, 0, 0].tolist() == pytest.approx([-1, -1, math.sqrt(2)])
    assert found[1, :, 2, 2].tolist() == pytest.approx([0, 1, 1])


def test_mix_needs_the_exemplars_condition_and_noise_does_not():
    condition, exemplar, exemplar_condition, _ = inputs()
    config = small()
    with pytest.raises(ValueError, match="exemplar needs its own condition with mask='mix'"):
        Unite(config.model, config.match)(condition, exemplar, None)
    config = small(mask="noise")
    model = Unite(config.model, config.match)
    with torch.no_grad():
        first, second = (model(condition, exemplar, None).condition_features.f6 for _ in range(2))
        assert not torch.equal(first, second)  # the spectral norms, in training, move
        model.eval()
        assert torch.equal(model(condition, exemplar, None).image, model(condition, exemplar, None).image)
        features = model.extractor_x(condition), model.extractor_z(exemplar)
        still = model.descriptors(*features, condition, None)
        assert all(map(torch.equal, still, model.descriptors(*features, condition, exemplar_condition)))
        model.descriptors.train()
        assert not torch.equal(model.descriptors(*features, condition, None)[0], still[0])


# ----------------------------------------------------------------------------------------------------- the whole model

OPTIONS = [{"levels": ("rgb",)}, {"levels": ("rgb", "f3"), "norm": "spade", "confidence": "mass"},
           {"levels": ("rgb",), "norm": "seace_released"}, {"confidence": "learned", "activation": "dot"},
           {"extractor_attention": True, "coordinates": True, "mask": "noise"},
           {"attention": False, "discriminator_attention": False, "discriminators": 1, "centring": "position",
            "match_kernel": 3, "mask": "none"}]


def backward(config: Config) -> dict[str, torch.Tensor | None]:
    """Gradients of one step: of what the generator's losses look at, and of the discriminator's."""
    model, judge = Unite(config.model, config.match), Discriminator(config.model)
    condition, exemplar, exemplar_condition, truth = inputs()
    output = model(condition, exemplar, exemplar_condition, truth)
    carried = output.transported
    loss = (output.image - truth).square().mean() + (carried.cycle - carried.exemplar_small).abs().mean()
    loss = loss + (output.condition_features.f6 - output.truth_f6).abs().mean()
    loss.backward()
    fake_and_real = judge(torch.cat([condition] * 2), torch.cat([output.image.detach(), truth]))
    sum((1 - maps[-1]).relu().mean() for maps in fake_and_real).backward()
    return {f"{part}.{name}": parameter.grad for part, module in (("model", model), ("judge", judge))
            for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("config", [
    *(pytest.param(small(name, base=8, hidden=16), id=name) for name in PRESETS),
    *(pytest.param(small(**changes), id=" ".join(map(str, changes.values())) or "small") for changes in OPTIONS)])
def test_every_parameter_gets_a_gradient(config):
    """None is dead weight, in whatever configuration: DDP would refuse to train such a model."""
    gradients = backward(config)
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    zero = [name for name, gradient in gradients.items() if gradient.abs().max() == 0]
    assert [name for name in zero if not any(part in name for part in BEHIND_GAINS)] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_a_result_does_not_depend_on_batch_mates():
    config = small()
    model = Unite(config.model, config.match).eval()
    batch = inputs(3)[:3]
    with torch.no_grad():
        together, alone = model(*batch), model(*(part[1:2] for part in batch))
    assert_close(together.image[1:2], alone.image, atol=1e-5, rtol=1e-4)
    assert_close(together.transported.warped[1:2], alone.transported.warped, atol=1e-4, rtol=1e-4)


def test_evaluation_is_deterministic_and_leaves_the_grad_mode_and_the_model_alone():
    config = small()
    model = Unite(config.model, config.match).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        first, second = model(*inputs()), model(*inputs())
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(first.image, second.image)
    assert not first.image.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_truth_is_seen_by_the_consistency_alone():
    config = small()
    model = Unite(config.model, config.match).eval()
    *given, truth = inputs()
    with torch.no_grad():
        without, with_truth = model(*given), model(*given, truth)
        assert without.truth_f6 is None
        assert_close(with_truth.image, without.image, atol=1e-5, rtol=1e-4)
        assert_close(with_truth.truth_f6, model.extractor_z(truth).f6, atol=1e-5, rtol=1e-4)


def test_a_model_comes_back_from_its_state():
    config = small("released", confidence="learned")
    one, other = (Unite(config.model, config.match) for _ in range(2))
    with torch.no_grad():
        one(*inputs())  # one step of the spectral norms, which a state must hold
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.eval()(*inputs()).image, other.eval()(*inputs()).image)


@pytest.mark.parametrize("norm", ["seace", "seace_released"])
def test_recomputing_activations_changes_nothing(norm):
    """Neither gradients nor the spectral norms' vectors, to the last bit."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        config = small(checkpointing=checkpointing, norm=norm).model
        extractor, generator = Extractor(config, CLASSES), Generator(config)
        with torch.no_grad():
            generator.attention.gain.fill_(0.5)
        condition = inputs()[0].requires_grad_()
        kept = extractor(condition)
        transported = moved(config, 2, "cpu", levels={"rgb": inputs()[1]} | {
            level: getattr(kept, level).flip(-1) for level in config.levels[1:]})
        (generator(condition, kept, transported).square().mean() + kept.f6.std()).backward()
        results.append([condition.grad, *(parameter.grad for module in (extractor, generator)
                                          for parameter in module.parameters()),
                        *extractor.state_dict().values(), *generator.state_dict().values()])
    assert all(map(torch.equal, *results))


def test_recomputing_drops_activations():
    config = small().model
    kept = {}
    for recompute in (False, True):
        extractor = Extractor(dataclasses.replace(config, checkpointing=recompute), 3)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            extractor(inputs()[1])
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 5
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        assert not run(layer, torch.ones(1, 2), recompute=True).requires_grad


def test_spectral_norms_stand_where_they_should():
    """On the convolutions of blocks and attention and of extractors, at 1; not on first, last and modulating ones."""
    config = small().model
    generator, extractor, judge = Generator(config), Extractor(config, 3), Discriminator(config)

    def split(module: nn.Module) -> tuple[set[str], set[str]]:
        found = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)}
        normed = {name for name, layer in found.items() if parametrize.is_parametrized(layer)}
        return normed, set(found) - normed

    normed, plain = split(generator)
    assert all(".conv" in name or name.startswith("attention.") for name in normed)
    assert len(normed) == 7 * 2 + 4 + 4  # two a block, shortcuts where widths change, the non-local block
    assert {"start", "last"} < plain
    assert all(".norm" in name for name in plain - {"start", "last"})
    normed, plain = split(extractor)
    assert {f"conv{number}.0" for number in range(1, 7)} < normed
    assert all(".norm" in name for name in plain)
    normed, plain = split(judge)
    assert plain == {f"scales.{scale}.{name}" for scale in range(2) for name in ("first", "last")}
    for _ in range(15):
        extractor(inputs()[1])
    largest = torch.linalg.matrix_norm(extractor.block4.conv0.weight.flatten(1), 2)
    assert largest.item() == pytest.approx(1.0, rel=0.02)


def test_convolutions_start_as_published():
    config = ModelConfig(base=16, condition_channels=CLASSES)
    generator = Generator(config)
    weight = generator.start.weight
    assert weight.std().item() == pytest.approx(0.02 * math.sqrt(2 / (9 * (256 + 256))), rel=0.02)
    assert all(parameter.abs().max() == 0 for name, parameter in generator.named_parameters() if name.endswith("bias"))


def test_half_precision_keeps_descriptors_in_float32():
    config = small()
    model = Unite(config.model, config.match)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs())
    assert output.transported.a.dtype == torch.float32
    assert output.condition_features.f6.dtype == torch.float32
    assert output.image.isfinite().all()
    output.image.float().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("change", "message"), [
    ({0: (2, CLASSES, 60, 64)}, "condition must be .* sides in 32s, got \\(2, 5, 60, 64\\)"),
    ({0: (2, 4, 64, 64)}, "condition must have shape \\(2, 5, 64, 64\\), got \\(2, 4, 64, 64\\)"),
    ({1: (1, 3, 64, 64)}, "exemplar must have shape \\(2, 3, 64, 64\\)"),
    ({2: (2, CLASSES, 32, 32)}, "exemplar_condition must have shape"),
    ({3: (2, 3, 64, 32)}, "truth must have shape")])
def test_wrong_inputs_are_named(change, message):
    config = small()
    given = list(inputs())
    for place, shape in change.items():
        given[place] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        Unite(config.model, config.match)(*given)


def test_settings_that_cannot_be_built_are_named():
    with pytest.raises(ValueError, match="levels must be rgb and any of f2, f3, f4, f5, got \\('f2',\\)"):
        ModelConfig(levels=("f2",))
    with pytest.raises(ValueError, match="discriminators must be fewer at size 64, got 3"):
        Discriminator(small(discriminators=3).model)
    with pytest.raises(ValueError, match="base must be larger, or attention off"):
        Generator(small(base=1).model)
    with pytest.raises(ValueError, match="match_kernel must be odd, got 2"):
        Descriptors(small(match_kernel=2).model)
