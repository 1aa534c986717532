"""UNITE's losses against numbers worked out by hand or by loops, and the networks that judge."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.unite.config import Config
from examples.unite.losses import Losses
from examples.unite.losses import contextual as contextual_module
from examples.unite.losses.adversarial import feature_matching, hinge_fake, hinge_generator, hinge_real
from examples.unite.losses.contextual import contextual, contextual_layers
from examples.unite.losses.features import perceptual, pseudo, weighted_l1
from examples.unite.losses.transport import consistency, cycle, mask_nll
from examples.unite.perceptual import BLOCKS, CAFFE, IMAGENET, LAYERS, WIDTHS, PerceptualNetwork, load_perceptual
from examples.unite.structures import Batch, Features, Output, Transported

SHARED_VGG = Path(os.environ.get("UNITE_VGG16", Path(__file__).resolve().parents[2] / "shared" / "weights"
                                 / "vgg16_imagenet_conv.safetensors"))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_network() -> PerceptualNetwork:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_perceptual("random")


# --- adversarial ------------------------------------------------------------------------------------------------------

#: Two scales, predictions (2, -1) and (0.5), with one inner map each.
MAPS = [[torch.tensor([1.0, 3.0]), torch.tensor([2.0, -1.0])], [torch.tensor([4.0]), torch.tensor([0.5])]]


def test_hinge():
    assert float(hinge_generator(MAPS)) == pytest.approx(-(0.5 + 0.5) / 2)
    assert float(hinge_real(MAPS)) == pytest.approx(((0 + 2) / 2 + 0.5) / 2)
    assert float(hinge_fake(MAPS)) == pytest.approx(((3 + 0) / 2 + 1.5) / 2)


def test_feature_matching_sums_inner_maps_and_averages_scales():
    real = [[torch.tensor([0.0, 0.0]), torch.tensor([9.0, 9.0])], [torch.tensor([1.0]), torch.tensor([9.0])]]
    assert float(feature_matching(MAPS, real)) == pytest.approx((2.0 + 3.0) / 2)  # predictions do not count
    twice = [[scale[0], scale[0], scale[1]] for scale in MAPS], [[scale[0], scale[0], scale[1]] for scale in real]
    assert float(feature_matching(*twice)) == pytest.approx(5.0)


def test_feature_matching_leaves_the_real_image_alone():
    fake, real = ([[drawn(3, seed=seed).requires_grad_(), drawn(3)]] for seed in (1, 2))
    feature_matching(fake, real).backward()
    assert torch.allclose(fake[0][0].grad, (fake[0][0] - real[0][0]).detach().sign() / 3)
    assert real[0][0].grad is None


# --- features of a network --------------------------------------------------------------------------------------------

def test_perceptual():
    image, truth = torch.tensor([1.0, -2.0]).requires_grad_(), torch.tensor([0.0, 1.0]).requires_grad_()
    assert float(perceptual(image.detach(), truth, l1=True)) == pytest.approx(2.0)
    loss = perceptual(image, truth, l1=False)
    assert float(loss) == pytest.approx(5.0)
    loss.backward()
    assert image.grad.tolist() == [1.0, -3.0]
    assert truth.grad is None


def test_pseudo_counts_flagged_samples():
    image = {layer: torch.ones(2, 1, 1, 2) * torch.tensor([1.0, 10.0])[:, None, None, None] for layer in LAYERS}
    truth = {layer: torch.zeros(2, 1, 1, 2) for layer in LAYERS}
    weights = 1 / 32 + 1 / 16 + 1 / 8 + 1 / 4 + 1
    # The mean is over both samples: half of the flagged one's difference, 1.
    assert float(pseudo(image, truth, torch.tensor([1.0, 0.0]))) == pytest.approx(weights / 2, rel=1e-4)
    assert float(pseudo(image, truth, torch.tensor([1.0, 1.0]))) == pytest.approx(weights * 5.5 / 2, rel=1e-4)
    assert float(pseudo(image, truth, torch.zeros(2))) == 0


def test_weighted_l1_has_a_constant_target():
    one, other = (drawn(2, 3, 2, 2, seed=seed).requires_grad_() for seed in (1, 2))
    weighted_l1(one, other, torch.tensor([0.0, 1.0])).backward()
    assert bool((one.grad[0] == 0).all())
    assert torch.allclose(one.grad[1], (one[1] - other[1]).detach().sign() / 24, rtol=1e-4)
    assert other.grad is None


def contextual_by_loops(image: np.ndarray, exemplar: np.ndarray, spatial_mean: bool, paper: bool) -> float:
    """One sample, (C, positions)."""
    def unit(features: np.ndarray) -> list[np.ndarray]:
        centre = exemplar.mean(1, keepdims=True) if spatial_mean else exemplar.mean(0, keepdims=True)
        return [column / np.linalg.norm(column) for column in (features - centre).T]

    rows, columns = unit(image), unit(exemplar)
    if paper:
        rows, columns = columns, rows
    best = []
    for row in rows:
        distances = [1 - float(row @ column) for column in columns]
        weights = [math.exp((1 - d / (min(distances) + 1e-3)) / 0.1) for d in distances]
        best.append(max(weights) / sum(weights))
    return -math.log(sum(best)) if paper else -math.log(sum(best) / len(best))


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("spatial_mean", [False, True])
def test_contextual_is_that_of_a_loop(spatial_mean, paper):
    image, exemplar = drawn(2, 5, 2, 3, seed=1).double(), drawn(2, 5, 2, 3, seed=2).double()
    expected = [contextual_by_loops(one.flatten(1).numpy(), other.flatten(1).numpy(), spatial_mean, paper)
                for one, other in zip(image, exemplar, strict=True)]
    found = contextual(image, exemplar, spatial_mean=spatial_mean, paper=paper)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_contextual_of_two_orthogonal_positions():
    # Equal features, distances 0 and 1: A = 1 / (1 + e^(-1 / 0.001 / 0.1)) = 1, so that the loss is 0.
    features = torch.eye(4)[:, :2].reshape(1, 4, 1, 2)
    assert float(contextual(features, features, spatial_mean=True)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("paper", [False, True])
def test_contextual_streams_to_the_same_loss_and_gradient(monkeypatch, paper):
    image, exemplar = drawn(2, 6, 4, 5, seed=3).double().requires_grad_(), drawn(2, 6, 4, 5, seed=4).double()
    whole = contextual(image, exemplar, paper=paper)
    (gradient,) = torch.autograd.grad(whole.sum(), image)
    monkeypatch.setattr(contextual_module, "BLOCK", 2 * 20 * 3)  # three rows at a time
    streamed = contextual(image, exemplar, paper=paper)
    assert torch.allclose(streamed, whole, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(streamed.sum(), image)[0], gradient, rtol=1e-9)


def test_contextual_gradient_reaches_the_image_alone():
    image, exemplar = (drawn(1, 4, 2, 2, seed=seed).double().requires_grad_() for seed in (5, 6))
    assert torch.autograd.gradcheck(contextual, (image, exemplar.detach()))
    contextual(image, exemplar).sum().backward()
    assert float(image.grad.norm()) > 0
    assert exemplar.grad is None


def test_contextual_layers_are_weighted_and_pooled():
    image, exemplar = ({layer: drawn(1, 4, 8, 8, seed=seed + place) for place, layer in enumerate(LAYERS)}
                       for seed in (0, 10))

    def at(layer: str, pool: int) -> float:
        ours, theirs = (torch.nn.functional.avg_pool2d(features[layer], pool) for features in (image, exemplar))
        return float(contextual(ours, theirs))

    three = 8 * at("relu5_2", 1) + 4 * at("relu4_2", 1) + 2 * at("relu3_2", 2)
    options = {"spatial_mean": False, "paper": False}
    assert float(contextual_layers(image, exemplar, relu2=False, **options)) == pytest.approx(three, rel=1e-5)
    assert float(contextual_layers(image, exemplar, relu2=True, **options)) == pytest.approx(
        three + at("relu2_2", 4), rel=1e-5)


# --- transport --------------------------------------------------------------------------------------------------------

def transported(**changes) -> Transported:
    values = {item.name: torch.zeros(1) for item in dataclasses.fields(Transported)}
    return Transported(**(values | {"levels": {}, "confidence": None, "feature_cycle": {}} | changes))


def test_cycle():
    there = torch.tensor([1.0, 2.0]).requires_grad_()
    assert float(cycle(transported(cycle=there, exemplar_small=torch.tensor([0.0, 4.0])))) == pytest.approx(1.5)
    level = torch.tensor([3.0]).requires_grad_()
    loss = cycle(transported(cycle=there, exemplar_small=torch.tensor([0.0, 4.0]),
                             feature_cycle={"f2": (2 * level, level)}))
    assert float(loss) == pytest.approx(1.5 + 3.0)
    loss.backward()
    assert there.grad.tolist() == [0.5, -0.5]
    assert level.grad.tolist() == [2.0]  # as what came back, not as the target


def test_consistency_teaches_both_sides():
    condition, truth = torch.tensor([1.0, 0.0]).requires_grad_(), torch.tensor([0.0, 0.5]).requires_grad_()
    loss = consistency(condition, truth)
    assert float(loss) == pytest.approx(0.75)
    loss.backward()
    assert condition.grad.tolist() == [0.5, -0.5]
    assert truth.grad.tolist() == [-0.5, 0.5]


def test_mask_nll_ignores_class_zero_and_what_the_exemplar_lacks():
    condition = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 3]]), 4).permute(2, 0, 1)[None].float()
    exemplar = torch.nn.functional.one_hot(torch.tensor([[0, 1], [1, 3]]), 4).permute(2, 0, 1)[None].float()
    warped = torch.full((1, 4, 2, 2), 0.25)
    warped[0, :, 0, 1] = torch.tensor([0.0, 0.5, 0.5, 0.0])   # true class 1
    warped[0, :, 1, 1] = torch.tensor([0.0, 0.8, 0.0, 0.2])   # true class 3
    # Class 0 and class 2, which the exemplar has not, drop out.
    expected = -(math.log(0.5) + math.log(0.2)) / 2
    assert float(mask_nll(warped, condition, exemplar)) == pytest.approx(expected, rel=1e-4)
    enlarged = (part.repeat_interleave(4, 2).repeat_interleave(4, 3) for part in (condition, exemplar))
    assert float(mask_nll(warped, *enlarged)) == pytest.approx(expected, rel=1e-4)
    background = condition[:, [1, 0, 2, 3]] * torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None, None]
    assert float(mask_nll(warped, background, exemplar)) == 0


# --- all of them ------------------------------------------------------------------------------------------------------

def example() -> tuple[Output, Batch, list, list]:
    """An output with gradients everywhere, its batch, and maps of a discriminator."""
    masks = torch.nn.functional.one_hot(torch.arange(2 * 32 * 32).reshape(2, 32, 32) % 3, 3).permute(0, 3, 1, 2).float()
    moved = transported(warped=drawn(2, 3, 32, 32, seed=1).requires_grad_(),
                        warped_condition=drawn(2, 3, 8, 8, seed=2).softmax(1).requires_grad_(),
                        cycle=drawn(2, 3, 8, 8, seed=3).requires_grad_(), exemplar_small=drawn(2, 3, 8, 8, seed=4))
    f6 = [drawn(2, 4, 8, 8, seed=seed).requires_grad_() for seed in (5, 6)]
    output = Output(drawn(2, 3, 32, 32, seed=7).tanh().requires_grad_(), moved,
                    Features(*[torch.zeros(1)] * 4, f6[0]), f6[1])
    batch = Batch(masks, drawn(2, 3, 32, 32, seed=8).tanh(), drawn(2, 3, 32, 32, seed=9).tanh(), masks.flip(2),
                  torch.tensor([1.0, 0.0]))
    fake, real = ([[drawn(2, 4, 4, 4, seed=seed + place).requires_grad_() for place in range(3)] for _ in range(2)]
                  for seed in (10, 20))
    return output, batch, fake, real


ALL = {"adversarial": 1.0, "discriminator_features": 1.0, "consistency": 1.0, "cycle": 1.0, "pseudo": 1.0,
       "perceptual_weight": 1.0, "contextual": 1.0, "warp_self": 1.0, "mask_nll": 1.0}
#: What each term teaches.
REACHES = {"adversarial": {"fake"}, "discriminator_features": {"fake"}, "consistency": {"f6", "truth_f6"},
           "cycle": {"cycle"}, "pseudo": {"image"}, "perceptual": {"image"}, "contextual": {"image"},
           "warp_self": {"warped"}, "mask_nll": {"warped_condition"}}


def test_terms_reach_what_they_should_and_nothing_else():
    output, batch, fake, real = example()
    terms = Losses(Config().replace("loss", **ALL), random_network()).generator(output, batch, fake, real)
    assert set(terms) == set(REACHES)
    leaves = {"image": output.image, "f6": output.condition_features.f6, "truth_f6": output.truth_f6,
              "fake": [part for scale in fake for part in scale], "real": [part for scale in real for part in scale]}
    leaves |= {name: getattr(output.transported, name) for name in ("warped", "warped_condition", "cycle")}
    for term, reached in REACHES.items():
        for name, leaf in leaves.items():
            grads = torch.autograd.grad(terms[term], leaf, retain_graph=True, allow_unused=True)
            moved = any(grad is not None and bool((grad != 0).any()) for grad in grads)
            assert moved == (name in reached), f"{term} and {name}"


def test_weights_multiply_and_zero_spares_the_term():
    output, batch, fake, real = example()
    network = random_network()
    once = Losses(Config().replace("loss", **ALL), network).generator(output, batch, fake, real)
    for place, (name, weight) in enumerate(ALL.items()):
        config = Config().replace("loss", **(dict.fromkeys(ALL, 0.0) | {name: 2.0 * weight}))
        (term,) = Losses(config, network).generator(output, batch, fake, real).items()
        assert term[0] == list(REACHES)[place]
        assert float(term[1]) == pytest.approx(2 * float(once[term[0]]), rel=1e-5)


def test_the_network_stops_behind_the_last_layer_that_is_asked_for():
    network, image = random_network(), drawn(2, 3, 32, 32)
    whole, calls = network(image), []
    for block in network.blocks:
        for convolution in block:
            convolution.register_forward_hook(lambda *_: calls.append(1))
    found = network(image, "relu2_2")
    assert list(found) == ["relu1_2", "relu2_2"]
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    assert len(calls) == 4
    output, batch, fake, real = example()
    alone = Config().replace("loss", **(dict.fromkeys(ALL, 0.0) | {"perceptual_weight": 1.0,
                                                                   "perceptual_layer": "relu1_2"}))
    calls.clear()
    Losses(alone, network).generator(output, batch, fake, real)
    assert len(calls) == 2 * 2  # output and truth


def test_without_weights_no_network_runs():
    output, batch, fake, real = example()
    config = Config().replace("loss", **(ALL | {"pseudo": 0.0, "perceptual_weight": 0.0, "contextual": 0.0}))
    terms = Losses(config, None).generator(output, batch, fake, real)
    assert "perceptual" not in terms
    with pytest.raises(ValueError, match="network must be given"):
        Losses(Config(), None)


def test_discriminator_terms():
    terms = Losses(Config(), random_network()).discriminator(MAPS, MAPS)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(
        {"discriminator_fake": 10 * 1.5, "discriminator_real": 10 * 0.75})


def test_consistency_needs_the_truth():
    output, batch, fake, real = example()
    with pytest.raises(ValueError, match="truth_f6 is missing"):
        Losses(Config(), random_network()).generator(dataclasses.replace(output, truth_f6=None), batch, fake, real)


def test_the_preset_of_the_paper_takes_its_forms():
    output, batch, fake, real = example()
    network = random_network()
    config = Config().replace("loss", perceptual_l1=True, contextual_paper=True)
    terms = Losses(config, network).generator(output, batch, fake, real)
    ours, truth, exemplar = (network(image) for image in (output.image, batch.image, batch.exemplar))
    expected = 0.001 * (ours["relu4_2"] - truth["relu4_2"]).abs().mean()
    assert float(terms["perceptual"]) == pytest.approx(float(expected), rel=1e-5)
    expected = 10 * contextual_layers(ours, exemplar, relu2=False, spatial_mean=False, paper=True)
    assert float(terms["contextual"]) == pytest.approx(float(expected), rel=1e-5)


# --- networks ---------------------------------------------------------------------------------------------------------

def synthetic_state(kind: str, caffe: bool) -> dict[str, Tensor]:
    """A state dict of the right shapes, sparse so that it is fast to draw, with layers that are not needed."""
    state, place, before = {}, 0, 3
    for index, (count, width) in enumerate(zip(BLOCKS[kind], WIDTHS, strict=True)):
        for number in range(1, count + 1):
            name = f"conv{index + 1}_{number}" if caffe else f"features.{place}"
            weight = torch.zeros(width, before, 3, 3)
            weight[:, :3, 1, 1] = 0.2 + 0.1 * drawn(width, 3, seed=place)
            state[f"{name}.weight"], state[f"{name}.bias"] = weight, 0.1 * drawn(width, seed=place + 1)
            place, before = place + 2, width
        place += 1
    return state | {"classifier.0.weight": torch.zeros(2)}


def by_hand(state: dict[str, Tensor], kind: str, caffe: bool, image: Tensor) -> dict[str, Tensor]:
    """The same network as plain calls."""
    if caffe:
        x = (image[:, [2, 1, 0]] + 1) * 127.5 - torch.tensor(CAFFE)[:, None, None]
    else:
        x = ((image + 1) / 2 - torch.tensor(IMAGENET[0])[:, None, None]) / torch.tensor(IMAGENET[1])[:, None, None]
    weights = [value for name, value in state.items() if name.startswith(("features", "conv"))]
    found, place = {}, 0
    for index, count in enumerate(BLOCKS[kind]):
        x = torch.nn.functional.max_pool2d(x, 2) if index else x
        for number in range(1, count + 1):
            x = torch.nn.functional.conv2d(x, weights[place], weights[place + 1], padding=1).relu()
            place += 2
            if number == 2:
                found[f"relu{index + 1}_2"] = x
    return found


@pytest.mark.parametrize(("kind", "caffe", "suffix"), [("vgg19", False, ".pth"), ("vgg19", True, ".pth"),
                                                       ("vgg16", True, ".safetensors"), ("vgg16", False, ".pth")])
def test_files_of_every_convention(tmp_path, kind, caffe, suffix):
    state, path = synthetic_state(kind, caffe), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors: the extra unite")
        safetensors.save_file({key: value.half() for key, value in state.items()}, path)
        state = {key: value.half().float() for key, value in state.items()}
    network = load_perceptual(kind, path)
    assert network.name == f"{kind}-{'caffe' if caffe else 'torchvision'}"
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = drawn(1, 3, 16, 24).tanh()
    found, expected = network(image), by_hand(state, kind, caffe, image)
    assert tuple(found) == LAYERS
    for layer, features in found.items():
        assert torch.allclose(features, expected[layer], rtol=1e-4, atol=1e-4 * float(expected[layer].abs().max()))


def test_known_indices_of_torchvision():
    """Where vgg16 and vgg19 of torchvision keep conv5_2, by their documented layouts."""
    for kind, name in (("vgg16", "features.26.weight"), ("vgg19", "features.30.weight")):
        assert [key for key in synthetic_state(kind, caffe=False) if key.endswith("weight")][-2] == name


def test_a_wrong_file_is_refused_by_what_it_lacks(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"layer1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"no vgg19: neither .* but layer1.weight"):
        load_perceptual("vgg19", path)
    torch.save(synthetic_state("vgg16", caffe=True), path)
    with pytest.raises(ValueError, match=r"no vgg19: conv3_4.weight is missing"):
        load_perceptual("vgg19", path)
    state = synthetic_state("vgg16", caffe=False)
    torch.save(state | {"features.2.bias": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"features.2.bias must have shape \(64,\), got \(3,\)"):
        load_perceptual("vgg16", path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(ValueError, match="must hold a state dict"):
        load_perceptual("vgg16", path)
    for name in ("junk.pth", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"junk" * 100)
        with pytest.raises(ValueError, match=rf"{name} holds no weights that can be read: \S"):
            load_perceptual("vgg16", tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_perceptual("vgg16", tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="kind must be one of"):
        load_perceptual("vgg11")
    with pytest.raises(ValueError, match="reads no file"):
        load_perceptual("random", path)


def test_without_a_file_and_torchvision_it_says_what_to_give(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"give a file .* or choose the network 'random'"):
        load_perceptual("vgg19")


def test_the_random_network_is_loud_and_seeded():
    with pytest.warns(UserWarning, match=r"random-vgg\(3\), a RANDOM network"):
        network = load_perceptual("random", seed=3)
    assert network.name == "random-vgg(3)"
    image = drawn(1, 3, 32, 32).tanh()
    with pytest.warns(UserWarning, match="RANDOM"):
        again, other = load_perceptual("random", seed=3), load_perceptual("random", seed=4)
    found = network(image)
    for layer in LAYERS:
        assert torch.equal(again(image)[layer], found[layer])
        assert not torch.equal(other(image)[layer], found[layer])
        assert 0.1 < float(found[layer].std()) < 10  # signals neither die nor blow up


def test_a_network_passes_gradients_and_refuses_what_it_cannot_see():
    network, image = random_network(), drawn(1, 3, 16, 16).requires_grad_()
    network(image)["relu5_2"].sum().backward()
    assert float(image.grad.norm()) > 0
    with pytest.raises(ValueError, match="at least 16 pixels"):
        network(torch.zeros(1, 3, 8, 32))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        network(torch.zeros(1, 1, 32, 32))


@pytest.mark.skipif(not SHARED_VGG.is_file(), reason="needs VGG-16's weights: UNITE_VGG16, or shared/weights")
def test_the_shared_vgg16():
    network = load_perceptual("vgg16", SHARED_VGG)
    assert network.name == "vgg16-caffe"
    smooth = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    found, noisy = network(smooth), network(smooth + 0.1 * drawn(1, 3, 64, 64))
    # Trained filters: sparse deep activations, of the size that Caffe's input scale makes, which noise changes.
    assert float((found["relu5_2"] == 0).float().mean()) > 0.5
    assert 10 < float(found["relu3_2"].max()) < 1e4
    assert float((noisy["relu1_2"] - found["relu1_2"]).norm() / found["relu1_2"].norm()) > 0.05
