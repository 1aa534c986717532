"""UNITE's options of the generator, and that no combination of options leaves a parameter without a gradient."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from torch import nn
from unite_networks import CLASSES, inputs, moved, small

from examples.unite.discriminator import Discriminator
from examples.unite.ema import Average
from examples.unite.extractor import Extractor
from examples.unite.layers import BatchNorm
from examples.unite.losses import Counts, Losses
from examples.unite.model import Unite
from examples.unite.perceptual import PerceptualNetwork, load_perceptual
from examples.unite.structures import Batch, Features
from examples.unite.translation import LARGEST_GRID, STAGES, Generator


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def judge() -> PerceptualNetwork:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is random
        return load_perceptual("random", "", "cpu")


def given(self_reference: tuple[float, ...] = (1.0, 0.0), **options: object) -> Batch:
    condition, exemplar, exemplar_condition, truth = inputs(len(self_reference), **options)
    return Batch(condition, truth, exemplar, exemplar_condition, torch.tensor(self_reference))


# M at all stages

@pytest.mark.parametrize("norm", ["seace", "seace_released"])
@pytest.mark.parametrize("levels", [("rgb",), ("rgb", "f2", "f3", "f4", "f5")], ids=len)
def test_m_works_on_grids_of_64_at_most(norm, levels):
    """At the stages' own sides, or at 64 where those are more: of all stages, or of three."""
    for stages, expected in (("three", [16, 32, 64]), ("all", [8, 16, 16, 32, 64, 64, 64])):
        config = small(size=256, norm=norm, levels=levels, activation_stages=stages).model
        generator = Generator(config).to("meta")
        assert list(generator.activations) == [name for name, stage in STAGES.items()
                                               if stages == "all" or stage.one_of_three]
        sides: list[tuple[str, tuple[int, int]]] = []
        for name, activation in generator.activations.items():
            activation.register_forward_pre_hook(
                lambda module, inputs, sides=sides, name=name: sides.append((name, inputs[1])))
        x, widths = torch.zeros(1, CLASSES, 256, 256, device="meta"), (8, 16, 32, 32, 16)
        features = Features(*(torch.zeros(1, width, side, side, device="meta")
                              for width, side in zip(widths, (128, 128, 64, 64, 64), strict=True)))
        assert generator(x, features, moved(config)).shape == (1, 3, 256, 256)
        assert sides == [(name, (side, side)) for name, side in zip(generator.activations, expected, strict=True)]
    assert max(expected) == LARGEST_GRID


@pytest.mark.parametrize("changes", [{}, {"activation": "dot"}, {"norm": "seace_released"}],
                         ids=lambda changes: "-".join(changes.values()) or "cosine")
def test_m_at_all_stages_is_learned_from(changes):
    """The gradient reaches every parameter, and the features of F_X that each M compares."""
    config = small(activation_stages="all", **changes).model
    extractor, generator = Extractor(config, CLASSES), Generator(config)
    for module in generator.modules():
        if isinstance(getattr(module, "gain", None), nn.Parameter):
            nn.init.constant_(module.gain, 0.5)  # a gain of 0 lets nothing through to what is behind it
    condition = inputs()[0]
    features = extractor(condition)
    image = generator(condition, features, moved(config, 2, "cpu"))
    through = torch.autograd.grad(image.square().mean(), [*features[:4], *generator.parameters()])
    assert all(bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0 for gradient in through)


# Batch norm

def test_batch_norm_is_torchs():
    ours, theirs = BatchNorm(3), nn.BatchNorm2d(3, affine=False)
    for _ in range(3):
        x = 5 + 2 * torch.randn(2, 3, 4, 6)
        assert torch.equal(ours(x), theirs(x))
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    assert not torch.equal(ours(x), ours.train()(x))
    assert list(ours.parameters()) == []


def test_batch_norm_stands_in_the_generators_spade_alone():
    config = small(norm="spade", spade_norm="batch")
    model = Unite(config.model, config.match)
    names = [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]
    assert len(names) == 7 * 2 + 4  # two a block, and those of shortcuts where widths change
    assert all(name.startswith("generator.blocks.") for name in names)
    for norm in ("seace", "seace_released"):
        with pytest.raises(ValueError, match=f"spade_norm must be position with norm {norm}, got 'batch'"):
            Generator(small(norm=norm, spade_norm="batch").model)


def test_recomputing_counts_a_batch_once_in_the_averages():
    """And gives the same gradients, to the last bit."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        config = small(norm="spade", spade_norm="batch", checkpointing=checkpointing)
        model = Unite(config.model, config.match)
        average = Average(model, 0.5)
        model(*inputs()).image.square().mean().backward()
        average.update(model)
        states = average.model.state_dict()
        assert float(states["generator.blocks.head.norm0.norm.running_mean"].abs().max()) > 0
        results.append([*(parameter.grad for parameter in model.generator.parameters()), *model.state_dict().values(),
                        *states.values()])
    assert all(map(torch.equal, *results))


# Nothing is dead weight

@pytest.mark.slow
@pytest.mark.parametrize(("model", "match", "loss"), [
    pytest.param(*changes, id=" ".join(str(value) for part in changes for value in part.values()))
    for changes in (
        ({"norm": "seace", "confidence": "learned"}, {"matcher": "uot", "masses": "eq3_proj"}, {}),
        ({"norm": "seace_released", "activation_stages": "all"}, {"matcher": "ot", "masses": "softmax"}, {}),
        ({"norm": "spade", "spade_norm": "batch", "confidence": "mass"}, {"matcher": "cos", "masses": "softmax"}, {}),
        ({"norm": "seace", "levels": ("rgb",), "activation_stages": "all"}, {"matcher": "ot"}, {"cycle": 0.0}),
        ({"norm": "seace_released", "levels": ("rgb",), "confidence": "learned"}, {"gradients": "one_step"}, {}),
        ({"norm": "spade", "levels": ("rgb",), "attention": False}, {"gradients": "unrolled"}, {"consistency": 0.0}),
        ({"confidence": "mass", "attention": False, "discriminator_attention": False},
         {"gradients": "one_step", "masses": "softmax", "matcher": "ot"}, {"cycle": 0.0, "consistency": 0.0}),
        ({"confidence": "learned", "extractor_attention": True, "unfold": True},
         {"gradients": "one_step", "masses": "eq3_proj"}, {"cycle": 0.0}),
        ({"activation": "dot", "activation_stages": "all"}, {"masses": "uniform"}, {"mask_nll": 1.0}))])
def test_no_parameter_is_left_out_by_the_losses(judge, model, match, loss):
    """DistributedDataParallel waits for the gradient of every one; `find_unused_parameters` is off."""
    config = small(**model).replace("match", passes=4, unrolled_passes=2, **match).replace("loss", **loss)
    unite, discriminator, batch = Unite(config.model, config.match), Discriminator(config.model), given()
    output = unite(batch.condition, batch.exemplar, batch.exemplar_condition, batch.image)
    losses = Losses(config, judge)
    fake, real = (discriminator(batch.condition, image) for image in (output.image, batch.image))
    sum(losses.generator(output, batch, fake, real).values()).backward()
    assert [name for name, parameter in unite.named_parameters() if parameter.grad is None] == []
    discriminator.zero_grad()
    fake = discriminator(batch.condition, output.image.detach())
    sum(losses.discriminator(fake, discriminator(batch.condition, batch.image)).values()).backward()
    assert [name for name, parameter in discriminator.named_parameters() if parameter.grad is None] == []


# Shares

def test_shares_are_of_all_batches_of_a_step(judge):
    """The mean over batches of one size is the loss of the joined batch, however flags and classes fall."""
    config = small().replace("loss", warp_self=1.0, mask_nll=1.0, adversarial=0.0, discriminator_features=0.0)
    unite, losses = Unite(config.model, config.match).eval(), Losses(config, judge)
    whole = given((1.0, 1.0, 0.0, 0.0))
    whole.condition[3] = 0  # class 0, which is not counted
    parts = [Batch(*(getattr(whole, item.name)[piece] for item in dataclasses.fields(Batch)[:5]))
             for piece in (slice(0, 2), slice(2, 4))]
    flagged, positions = sum(losses.counts(part) for part in parts)
    assert (float(flagged), len({float(losses.counts(part)[1]) for part in parts})) == (2, 2)

    def terms(batch: Batch, counts: Counts | None) -> dict[str, float]:
        with torch.no_grad():
            output = unite(batch.condition, batch.exemplar, batch.exemplar_condition, batch.image)
            return {name: float(term) for name, term in losses.generator(output, batch, [], [], counts).items()}
    joined, found = terms(whole, None), [terms(part, Counts(flagged, positions / 2)) for part in parts]
    assert {"pseudo", "warp_self", "mask_nll", "contextual"} < joined.keys()
    for name, value in joined.items():
        assert (found[0][name] + found[1][name]) / 2 == pytest.approx(value, rel=1e-4), name
    own = [terms(part, None)["mask_nll"] for part in parts]
    assert sum(own) / 2 != pytest.approx(joined["mask_nll"], rel=1e-2)
