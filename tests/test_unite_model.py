"""UNITE as one network: its descriptors, its gradients, and what an image may depend on."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close
from unite_networks import CLASSES, inputs, moved, small

from examples.unite.config import PRESETS, Config, ModelConfig
from examples.unite.descriptors import Descriptors, coordinates
from examples.unite.discriminator import Discriminator
from examples.unite.extractor import Extractor
from examples.unite.layers import run
from examples.unite.model import Unite
from examples.unite.structures import Features
from examples.unite.translation import Generator

#: Parameters in the branches of gains that start at 0: their first gradient is 0, but there.
BEHIND_GAINS = ("attention.", "activations.", ".value.")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
