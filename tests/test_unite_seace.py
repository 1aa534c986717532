"""Norms and attention of examples/unite against their formulas, written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from examples.unite.attention import NonLocal, attend
from examples.unite.layers import positional_norm
from examples.unite.seace import CosineActivation, DotActivation, LearnedActivation, ReleasedSeace, Seace
from examples.unite.spade import Guidance, Spade


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("make", [lambda: Spade(6, 5, 4), lambda: Seace(6, 3, 2, 4),
                                  lambda: ReleasedSeace(6, 3, 2, 4, activated=False)],
                         ids=["spade", "seace", "released"])
def test_a_style_without_confidence_is_not_looked_at(make):
    norm = drawn(make())
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
