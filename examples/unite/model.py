"""UNITE: extractors, descriptors, matcher and generator as one network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import MatchConfig, ModelConfig
from .descriptors import Descriptors
from .extractor import Extractor
from .matching import Matcher
from .structures import Features, Output
from .translation import Generator


class Unite(nn.Module):
    """An image that shows a condition in the style of an exemplar.

    Args:
        model: Of the networks.
        match: Of the transport between condition and exemplar.

    Shape:
        condition (B, S, H, W) in [0, 1], sides in 32s; exemplar, truth (B, 3, H, W) in [-1, 1]; the exemplar's
        condition (B, S, H, W), or None where ``model.mask`` is not "mix" (nothing is moved of it then).  The truth is
        only looked at by F_Z, for the consistency of features (Eq. 9).

    Raises:
        ValueError: for a tensor of a wrong shape, by name.

    Example:
        >>> import torch
        >>> from examples.unite.config import preset
        >>> config = preset("tiny").replace("model", base=4, hidden=8)
        >>> model = Unite(config.model, config.match).eval()
        >>> condition, exemplar = torch.rand(1, 9, 64, 64), torch.rand(1, 3, 64, 64) * 2 - 1
        >>> with torch.no_grad():
        ...     output = model(condition, exemplar, condition)
        >>> output.image.shape
        torch.Size([1, 3, 64, 64])

    Source: Zhan et al., Unbalanced Feature Transport for Exemplar-based Image Translation, CVPR 2021.
    """

    def __init__(self, model: ModelConfig, match: MatchConfig) -> None:
        super().__init__()
        self.config = model
        self.extractor_x = Extractor(model, model.condition_channels)
        self.extractor_z = Extractor(model, 3)
        self.descriptors = Descriptors(model)
        self.matcher = Matcher(model, match)
        self.generator = Generator(model)

    def forward(self, condition: Tensor, exemplar: Tensor, exemplar_condition: Tensor | None,
                truth: Tensor | None = None) -> Output:
        self._check(condition, exemplar, exemplar_condition, truth)
        features_x = self.extractor_x(condition)
        features_z, truth_f6 = self._exemplar_features(exemplar, truth)
        shared = self.descriptors.shared_features(features_x, features_z, condition, exemplar_condition)
        x, z = self.descriptors.project(*shared)
        levels = {level: getattr(features_z, level) for level in self.config.levels if level != "rgb"}
        moved_condition = torch.zeros_like(condition) if exemplar_condition is None else exemplar_condition
        transported = self.matcher(x, z, exemplar, levels, moved_condition, shared)
        image = self.generator(condition, features_x, transported)
        return Output(image, transported, features_x, truth_f6)

    def _exemplar_features(self, exemplar: Tensor, truth: Tensor | None) -> tuple[Features, Tensor | None]:
        """F_Z of the exemplar, and f6 of the truth, in one batch: spectral norms move once a step."""
        if truth is None:
            return self.extractor_z(exemplar), None
        both = self.extractor_z(torch.cat([exemplar, truth]))
        return Features(*(level[:len(exemplar)] for level in both)), both.f6[len(exemplar):]

    def _check(self, condition: Tensor, exemplar: Tensor, exemplar_condition: Tensor | None,
               truth: Tensor | None) -> None:
        batch, _, *sides = condition.shape if condition.dim() == 4 else (0, 0, 1)
        if any(side % 32 for side in sides):
            raise ValueError(f"condition must be (B, S, H, W) with sides in 32s, got {tuple(condition.shape)}")
        channels = self.config.condition_channels
        for name, given, expected in (("condition", condition, channels), ("exemplar", exemplar, 3),
                                      ("exemplar_condition", exemplar_condition, channels), ("truth", truth, 3)):
            if given is not None and tuple(given.shape) != (batch, expected, *sides):
                raise ValueError(f"{name} must have shape {(batch, expected, *sides)}, got {tuple(given.shape)}")
