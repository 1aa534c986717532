"""All terms, weighted and named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..config import Config
from ..perceptual import LAYERS, PerceptualNetwork
from ..structures import Batch, Output
from .adversarial import Maps, feature_matching, hinge_fake, hinge_generator, hinge_real
from .contextual import contextual_layers
from .features import perceptual, pseudo
from .transport import comparable, consistency, cycle, mask_nll, warp_self

#: A weight, and what it multiplies.
Term = tuple[float, Callable[[], Tensor]]


class Counts(NamedTuple):
    """What shares are taken of in a step: over all its batches and processes, or losses would depend on the split."""

    flagged: Tensor    # pseudo pairs
    positions: Tensor  # where `mask_nll` counts, a mean over batches


class Losses:
    """The losses of a configuration, in float32 whatever autocast says.

    Args:
        config: Weights and forms; a weight of 0 spares the computation.
        network: Judge of perceptual, pseudo and contextual terms; None where their weights are 0.

    Raises:
        ValueError: for a missing judge.
    """

    def __init__(self, config: Config, network: PerceptualNetwork | None) -> None:
        self.config, self.network, self.stride = config.loss, network, config.model.stride
        loss = self.config
        if network is None and (loss.pseudo or loss.perceptual_weight or loss.contextual):
            raise ValueError("network must be given: pseudo, perceptual_weight or contextual is not 0")

    def counts(self, batch: Batch) -> Tensor:
        """Of one batch: pseudo pairs, and positions that `mask_nll` counts (0 where its weight is 0), (2,)."""
        flagged = batch.self_reference.sum()
        if not self.config.mask_nll:
            return torch.stack([flagged, torch.zeros_like(flagged)])
        height, width = (side // self.stride for side in batch.condition.shape[-2:])
        counted = comparable(batch.condition, batch.exemplar_condition, (height, width))[1]
        return torch.stack([flagged, counted.sum().to(flagged.dtype)])

    def generator(self, output: Output, batch: Batch, fake: Maps, real: Maps,
                  counts: Counts | None = None) -> dict[str, Tensor]:
        """Weighted terms of model and matching, by name; their sum is what is minimised.

        Args:
            output: Of the model, which was given the truth where consistency is asked for.
            batch: What it was made from.
            fake, real: Maps of the discriminator for the output and for the truth.
            counts: Of the step that the batch is a part of; None: it is all of it.
        """
        loss, transported = self.config, output.transported
        flagged, positions = (None, None) if counts is None else counts
        ours, truth, exemplar = self._features(output, batch)
        with torch.autocast(output.image.device.type, enabled=False):
            return _weighed({
                "adversarial": (loss.adversarial, partial(hinge_generator, fake)),
                "discriminator_features": (loss.discriminator_features, partial(feature_matching, fake, real)),
                "consistency": (loss.consistency, partial(self._consistency, output)),
                "cycle": (loss.cycle, partial(cycle, transported)),
                "pseudo": (loss.pseudo, partial(pseudo, ours, truth, batch.self_reference, flagged)),
                "perceptual": (loss.perceptual_weight, lambda: perceptual(
                    ours[loss.perceptual_layer], truth[loss.perceptual_layer], l1=loss.perceptual_l1)),
                "contextual": (loss.contextual, partial(
                    contextual_layers, ours, exemplar, relu2=loss.contextual_relu2,
                    spatial_mean=loss.contextual_spatial_mean, paper=loss.contextual_paper)),
                "warp_self": (loss.warp_self, partial(warp_self, transported.warped, batch.image,
                                                      batch.self_reference, flagged)),
                "mask_nll": (loss.mask_nll, partial(mask_nll, transported.warped_condition, batch.condition,
                                                    batch.exemplar_condition, positions)),
            })

    def discriminator(self, fake: Maps, real: Maps) -> dict[str, Tensor]:
        """Weighted terms of the discriminator, by name; ``fake`` is of a detached image."""
        weight = self.config.adversarial
        with torch.autocast(fake[0][-1].device.type, enabled=False):
            return _weighed({"discriminator_fake": (weight, partial(hinge_fake, fake)),
                             "discriminator_real": (weight, partial(hinge_real, real))})

    def _features(self, output: Output, batch: Batch) -> tuple[dict[str, Tensor], ...]:
        """Features of output, truth and exemplar, each where a term needs it."""
        loss = self.config
        of_truth, of_exemplar = bool(loss.pseudo or loss.perceptual_weight), bool(loss.contextual)
        last = LAYERS[-1] if loss.pseudo or loss.contextual else loss.perceptual_layer
        ours = self.network(output.image, last) if of_truth or of_exemplar else {}
        with torch.no_grad():
            truth = self.network(batch.image, last) if of_truth else {}
            exemplar = self.network(batch.exemplar, last) if of_exemplar else {}
        return ours, truth, exemplar

    @staticmethod
    def _consistency(output: Output) -> Tensor:
        if output.truth_f6 is None:
            raise ValueError("output.truth_f6 is missing: give the model the truth, or set loss.consistency to 0")
        return consistency(output.condition_features.f6, output.truth_f6)


def _weighed(terms: dict[str, Term]) -> dict[str, Tensor]:
    return {name: weight * term() for name, (weight, term) in terms.items() if weight}
