"""The authors' checkpoints: which of their tensors is which of ours, and what has no place.

Names and shapes are those of fnzhan/UNITE at 948a5d0; nothing else of that code is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import ModelConfig

#: Their blocks of the generator, ours, and whether the stage has an M.
STAGES = (("G_head_0", "head", False), ("G_middle_0", "middle0", True), ("G_middle_1", "middle1", False),
          ("G_up_0", "up0", True), ("G_up_1", "up1", False), ("G_out_0", "out0", True), ("G_out_1", "out1", False))
#: Their maps M, by the stage that has it here.
ACTIVATIONS = (("attn4", "middle0"), ("attn3", "up0"), ("attn2", "out0"))
#: Of a non-local block.
NON_LOCAL = (("theta", "query"), ("phi", "key"), ("g", "value"), ("o", "out"))

#: Tensors that never had a say in their forward, by pattern.
UNUSED = {
    r"layer\.\d+\.conv[12]\.bias": "a bias that the instance norm behind it takes off again",
    r"domain_classifier\..*": "the domain classifier, which no loss reaches",
    r"G_(head_0|middle_1|up_1|out_1)\.norm_[01s]\.(ref_shared\.0\.(weight|bias)|coef)":
        "the branch of M in a stage without M",
    r"discriminator_\d+\.dec\..*": "the discriminator's decoder, which nothing asks",
}
#: Tensors that did, and for which there is no place here, so that outputs differ: pattern, and what becomes of it.
HOMELESS = {
    r".*\.param_free_norm\.(running_(mean|var)|num_batches_tracked)":
        "batch norm, without --PONO, where modulated norms here are by position: outputs differ",
    r"adaptive_model_(seg|img)\.\w+\.se_layar\..*":
        "squeeze and excitation (--adaptor_se), which extractors here have not: their features differ",
    r"discriminator_\d+\.(gap_fc|gmp_fc|conv1x1)\..*":
        "the CAM head (--D_cam), which discriminators here have not: what this one says differs",
}


class Pair(NamedTuple):
    """A tensor's name there and here.

    ``unnormalised``: a weight without spectral norm there whose layer here has one.
    """

    theirs: str
    ours: str
    unnormalised: bool = False


@dataclass
class Outcome:
    """What a transfer did.

    Attributes:
        put: Names of our tensors that something was put into.
        problems: One message for each tensor that should have been taken over and was not, that has no place here, or
            that nobody knows: the model is not wholly theirs.
        notes: One message for each tensor that is here in another form.
        unused: Reason -> (tensors, numbers) of those that never had a say.
    """

    put: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unused: dict[str, tuple[int, int]] = field(default_factory=dict)


def correspondence(model: ModelConfig) -> Iterator[Pair]:
    """Of ``netCorr`` and `Unite`: extractors, shared layers, projections to descriptors, masses and confidence."""
    for theirs, ours in (("adaptive_model_seg", "extractor_x"), ("adaptive_model_img", "extractor_z")):
        for number in range(1, 6):
            yield from _spectral(f"{theirs}.layer{number}.0", f"{ours}.conv{number}.0")
        for there, here, learned in (("head_0", "block4", False), ("G_middle_0", "block5a", False),
                                     ("G_middle_1", "block5b", False), ("deeper2", "block6", True)):
            yield from _block(f"{theirs}.{there}", f"{ours}.{here}", learned, _SPADE)
        yield from _spectral(f"{theirs}.degridding0.0", f"{ours}.conv6.0")
        if model.extractor_attention:
            for there, here in NON_LOCAL:
                yield Pair(f"{theirs}.attn.{there}.weight", f"{ours}.attention.{here}.parametrizations.weight.original",
                           unnormalised=True)
            yield Pair(f"{theirs}.attn.gamma", f"{ours}.attention.gain")
    for number in range(model.residual_layers):
        for there, here in (("conv1", "conv0"), ("conv2", "conv1"), ("prelu", "activation")):
            yield Pair(f"layer.{number}.{there}.weight", f"descriptors.shared.{number}.{here}.weight")
    for name in ("theta", "phi"):
        yield from _plain(name, f"descriptors.{name}")
    for theirs, ours in (("w", "of_masses"), ("conf", "of_confidence")):
        yield from _plain(f"theta_{theirs}", f"matcher.{ours}.x")
        yield from _plain(f"phi_{theirs}", f"matcher.{ours}.z")


def generator(model: ModelConfig) -> Iterator[Pair]:
    """Of ``netG`` and `Unite`."""
    yield from _plain("fc", "generator.start")
    for theirs, ours, activated in STAGES:
        learned = theirs[2:] in ("up_0", "up_1", "out_0", "out_1")
        yield from _block(theirs, f"generator.blocks.{ours}", learned, _SEACE_WITH_M if activated else _SEACE)
    for theirs, ours in ACTIVATIONS:
        for name in ("query", "key"):
            yield Pair(f"{theirs}.{name}_conv.weight", f"generator.activations.{ours}.{name}.weight")
    yield from _non_local("attn", "generator.attention")
    yield from _plain("conv_img1", "generator.last")


def discriminator(model: ModelConfig) -> Iterator[Pair]:
    """Of ``netD`` and `Discriminator`."""
    for scale in range(model.discriminators):
        theirs, ours = f"discriminator_{scale}", f"scales.{scale}"
        yield from _plain(f"{theirs}.model0.0", f"{ours}.first")
        for number, name in enumerate(("second", "third", "fourth"), 1):
            yield from _spectral(f"{theirs}.model{number}.0.0", f"{ours}.{name}.0")
        yield from _plain(f"{theirs}.model4.0", f"{ours}.last")
        if model.discriminator_attention:
            yield from _non_local(f"{theirs}.attn", f"{ours}.attention")


#: Convolutions of a modulated norm.
_SPADE = (("mlp_shared.1", "shared"), ("mlp_gamma", "gamma"), ("mlp_beta", "beta"))
_SEACE = (("seg_shared.0", "condition"), ("ref_shared2.0", "style"), ("gamma", "gamma"), ("beta", "beta"))
_SEACE_WITH_M = (*_SEACE, ("ref_shared.0", "value"))


def _plain(theirs: str, ours: str) -> Iterator[Pair]:
    for part in ("weight", "bias"):
        yield Pair(f"{theirs}.{part}", f"{ours}.{part}")


def _spectral(theirs: str, ours: str, bias: bool = False) -> Iterator[Pair]:
    """A weight and the vectors of its power iteration: u, v there, a parametrisation here."""
    held = f"{ours}.parametrizations.weight"
    yield Pair(f"{theirs}.weight_orig", f"{held}.original")
    yield Pair(f"{theirs}.weight_u", f"{held}.0._u")
    yield Pair(f"{theirs}.weight_v", f"{held}.0._v")
    if bias:
        yield Pair(f"{theirs}.bias", f"{ours}.bias")


def _block(theirs: str, ours: str, learned: bool, norm: tuple[tuple[str, str], ...]) -> Iterator[Pair]:
    """A residual block of modulated norms."""
    norms = [("norm_0", "norm0"), ("norm_1", "norm1")]
    for number in range(2):
        yield from _spectral(f"{theirs}.conv_{number}", f"{ours}.conv{number}", bias=True)
    if learned:
        yield from _spectral(f"{theirs}.conv_s", f"{ours}.conv_shortcut")
        norms.append(("norm_s", "norm_shortcut"))
    for there, here in norms:
        for convolution_there, convolution_here in norm:
            yield from _plain(f"{theirs}.{there}.{convolution_there}", f"{ours}.{here}.{convolution_here}")
        if norm is _SEACE_WITH_M:
            yield Pair(f"{theirs}.{there}.coef", f"{ours}.{here}.gain")


def _non_local(theirs: str, ours: str) -> Iterator[Pair]:
    for there, here in NON_LOCAL:
        yield from _spectral(f"{theirs}.{there}", f"{ours}.{here}")
    yield Pair(f"{theirs}.gamma", f"{ours}.gain")


@torch.no_grad()
def transfer(source: Mapping[str, Tensor], module: nn.Module, pairs: Iterable[Pair]) -> Outcome:
    """Copy the tensors of a checkpoint into a module.

    Args:
        source: Their tensors by name, without ``module.``.
        module: Ours.
        pairs: Which is which.
    """
    outcome, state, known = Outcome(), module.state_dict(), set()
    for pair in pairs:
        known.add(pair.theirs)
        problem = _copy(source, state, pair)
        if problem:
            outcome.problems.append(problem)
            continue
        outcome.put.add(pair.ours)
        if pair.unnormalised:
            outcome.put |= set(vectors(pair.ours))
            outcome.notes.append(f"{pair.theirs}: without spectral norm there; the one here divides by 1, and once "
                                 "training goes on by the largest singular value")
    for name in (name for name in source if name not in known):
        unused, homeless = _reason(UNUSED, name), _reason(HOMELESS, name)
        if unused:
            tensors, numbers = outcome.unused.get(unused, (0, 0))
            outcome.unused[unused] = tensors + 1, numbers + source[name].numel()
        elif homeless:
            outcome.problems.append(f"{name}: no place for it here ({homeless})")
        else:
            outcome.problems.append(f"{name}: unexpected, of shape {tuple(source[name].shape)}")
    return outcome


def _copy(source: Mapping[str, Tensor], state: dict[str, Tensor], pair: Pair) -> str:
    """Put a tensor in its place; or why not."""
    if pair.theirs not in source:
        scaled = pair.theirs.endswith(("weight_u", "weight_v")) and f"{pair.theirs[:-2]}_orig" in source
        return (f"{pair.theirs}: missing ({pair.ours} here)"
                + ("; equalised rates (--eqlr_sn) have no place here" if scaled else ""))
    found, place = source[pair.theirs], state[pair.ours]
    if found.shape != place.shape:
        return (f"{pair.theirs}: wrong shape, {tuple(found.shape)} there, {tuple(place.shape)} here "
                f"({pair.ours})")
    if not torch.isfinite(found).all():
        return f"{pair.theirs}: holds NaN or infinity"
    if pair.unnormalised:
        left, values, right = torch.linalg.svd(found.flatten(1).double(), full_matrices=False)
        if values[0] == 0:
            return f"{pair.theirs}: is 0 everywhere, which a spectral norm cannot be of"
        u, v = (state[name] for name in vectors(pair.ours))
        u.copy_(left[:, 0] / values[0])  # so that u W v, what the weight is divided by, is 1
        v.copy_(right[0])
    place.copy_(found)
    return ""


def vectors(original: str) -> tuple[str, str]:
    """Names of the power iteration's vectors beside those of a spectral norm's weight."""
    held = original.removesuffix("original")
    return f"{held}0._u", f"{held}0._v"


def _reason(table: Mapping[str, str], name: str) -> str:
    return next((reason for pattern, reason in table.items() if re.fullmatch(pattern, name)), "")
