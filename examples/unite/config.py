"""Settings of model, matching, losses and training, and the presets: plain dataclasses that a JSON file can hold."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

#: Choices by setting; anything else is refused by name.
CHOICES = {
    "norm": ("seace", "seace_released", "spade"),
    "spade_norm": ("position", "batch"),
    "mask": ("mix", "noise", "none"),
    "centring": ("channel", "position"),
    "activation": ("cosine", "dot"),
    "activation_stages": ("three", "all"),
    "confidence": ("off", "mass", "learned"),
    "matcher": ("uot", "ot", "cos"),
    "masses": ("eq3", "eq3_proj", "softmax", "uniform"),
    "reg_type": ("kl", "entropy"),
    "gradients": ("implicit", "one_step", "unrolled"),
    "backend": ("auto", "native", "triton", "cuda", "reference"),
    "perceptual": ("random", "vgg16", "vgg19"),
    "perceptual_layer": ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2"),
    "precision": ("no", "bf16", "fp16"),
    "source": ("avatars", "folder", "ade20k", "coco", "celebahq", "deepfashion"),
    "condition": ("mask", "edges", "landmarks", "layout"),
}
#: The transported levels of an exemplar, in the order of their plan.
LEVELS = ("rgb", "f2", "f3", "f4", "f5")


class _Checked:
    """Refuses, by name, a choice that does not exist and a number out of range."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            unset = value is None and item.default is None
            if item.name in CHOICES and value not in CHOICES[item.name] and not unset:
                raise ValueError(f"{item.name} must be one of {', '.join(CHOICES[item.name])}, got {value!r}")
            words = item.metadata.get("range")
            if words is None or unset:
                continue
            if not isinstance(value, int | float) or not RANGES[words](value):
                raise ValueError(f"{item.name} must be {words}, got {value!r}")


#: What a number may be, in words; comparisons with NaN are false.
RANGES = {
    "positive": lambda value: value > 0,
    "a finite number from 0 on": lambda value: 0 <= value < math.inf,
    "between 0 and 1": lambda value: 0 <= value <= 1,
}


def _positive(default: Any) -> Any:
    """Positive; None too where that is the default."""
    return field(default=default, metadata={"range": "positive"})


def _weight(default: Any) -> Any:
    return field(default=default, metadata={"range": "a finite number from 0 on"})


def _share(default: float) -> Any:
    return field(default=default, metadata={"range": "between 0 and 1"})


@dataclass(frozen=True)
class ModelConfig(_Checked):
    """The networks (spec sections 2, 3 and 4).

    ``base`` is nf of the published networks, 64; every width is a multiple of it.  ``stride`` is image side over side
    of the matching grid, 4 or 2.
    """

    size: int = _positive(256)
    condition_channels: int = _positive(9)
    base: int = _positive(64)
    hidden: int = _positive(128)              # width inside SPADE and SEACE
    stride: int = _positive(4)
    strided_kernel: int = _positive(4)        # of the extractors' convolutions with stride 2: 4 (CoCosNet), 3 (UNITE)
    extractor_attention: bool = False
    coordinates: bool = False                 # coordconv
    mask: str = "mix"                         # appended to f6: the own condition, noise in its place, nothing
    residual_layers: int = 4
    descriptor_dim: int = _positive(128)
    match_kernel: int = _positive(1)          # 3: unfolded 3 x 3 neighbourhoods
    centring: str = "channel"
    levels: tuple[str, ...] = LEVELS          # transported to the generator; ("rgb",) is a single stage
    unfold: bool = False                      # carry patches, so that levels keep their resolution
    bilinear_warp: bool = False               # how the warped image is enlarged
    norm: str = "seace"
    spade_norm: str = "position"              # inside norm "spade": "batch" as published, over all processes
    activation: str = "cosine"                # semantic-activation matrix M: softmax of cosines, or dot / n
    activation_stages: str = "three"          # where M is: middle_0, up_0 and out_0, or "all"
    confidence: str = "off"
    attention: bool = True                    # non-local block of the generator
    discriminator_attention: bool = True
    discriminators: int = _positive(2)
    checkpointing: bool = False               # recompute activations in the backward

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride not in (2, 4):
            raise ValueError(f"stride must be 2 or 4, got {self.stride!r}")
        if self.size % 32 or self.size < 64:
            raise ValueError(f"size must be a multiple of 32 from 64 on, got {self.size!r}")
        if "rgb" not in self.levels or any(level not in LEVELS for level in self.levels):
            raise ValueError(f"levels must be rgb and any of {', '.join(LEVELS[1:])}, got {self.levels!r}")


@dataclass(frozen=True)
class MatchConfig(_Checked):
    """How descriptors are matched (spec section 2.3): one switch, regularisation apart for training and evaluation."""

    matcher: str = "uot"
    masses: str = "eq3"
    eta_train: float = _positive(0.025)
    eta_eval: float = _positive(0.025)
    #: eta goes from here down to eta_train over this share of the training's steps; None keeps it constant.
    eta_start: float | None = _positive(None)
    anneal_share: float = _positive(0.75)
    tau_train: float = _positive(0.5)
    tau_eval: float = _positive(0.5)
    reg_type: str = "kl"
    #: Fixed, so that nothing depends on the data: 25 leave less than 1e-6 at eta 0.025, 1e-4 wants some hundreds.
    passes: int = _positive(25)
    passes_eval: int | None = _positive(None)  # in evaluation; None: as many as passes
    gradients: str = "implicit"
    unrolled_passes: int = _positive(5)
    temperature: float = _positive(0.01)      # of "cos"
    backend: str = "auto"                     # of uotlib: auto, native, triton, cuda, reference
    cycle_features: bool = False              # move all levels there and back, not the image alone (for the cycle loss)


@dataclass(frozen=True)
class LossConfig(_Checked):
    """Weights of the losses (spec section 5); 0 turns one off and spares its computation."""

    adversarial: float = _weight(10.0)
    discriminator_features: float = _weight(10.0)
    consistency: float = _weight(10.0)
    cycle: float = _weight(1.0)
    pseudo: float = _weight(10.0)                      # feature matching of pseudo pairs: 10 * fm_ratio
    perceptual_weight: float = _weight(0.001)
    perceptual_layer: str = "relu4_2"
    perceptual_l1: bool = False               # the paper's; the code's is a mean square
    contextual: float = _weight(10.0)                  # 10 * ctx_w
    contextual_relu2: bool = False
    contextual_spatial_mean: bool = False
    contextual_paper: bool = False            # Eq. 11 as printed: roles swapped, a sum
    warp_self: float = _weight(0.0)
    mask_nll: float = _weight(0.0)
    perceptual: str = "random"                # which network judges
    perceptual_file: str = ""


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """The optimisation (spec section 5)."""

    batch: int = _positive(4)
    steps: int = _positive(100_000)
    generator_rate: float = _positive(1e-4)
    discriminator_rate: float = _positive(4e-4)
    beta1: float = 0.0
    beta2: float = 0.999
    adam_eps: float = _positive(1e-8)
    decay_share: float = _share(0.5)                  # the last share of the steps, over which the rates fall to 0
    ema: float = _share(0.999)                # 0: none
    accumulate: int = _positive(1)
    pseudo_share: float = _share(0.3)                 # share of pseudo pairs among training examples
    sample_every: int = _positive(500)
    checkpoint_every: int = _positive(500)
    validation: int = _positive(16)           # held-out pairs that judge the average of the weights
    precision: str = "no"                     # of the networks; the solver stays in float32
    seed: int = _weight(0)


@dataclass(frozen=True)
class DataConfig(_Checked):
    """Where examples come from; ``root`` is the data's folder, or where avatars are kept."""

    source: str = "avatars"
    root: str = ""
    condition: str | None = None              # of avatars and celebahq; None: the source's usual one (data.KINDS)
    count: int | None = None                  # training examples; None: as many as there are
    mirror: bool = True                       # training images from left to right at random


@dataclass(frozen=True)
class Config:
    """Everything that a run is defined by; `to_dict` and `from_dict` are inverse."""

    preset: str = "default"
    model: ModelConfig = field(default_factory=ModelConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; refuses unknown sections and settings by name."""
        parts = {"model": ModelConfig, "match": MatchConfig, "loss": LossConfig, "train": TrainConfig,
                 "data": DataConfig}
        unknown = set(tree) - {"preset", *parts}
        if unknown:
            raise ValueError(f"unknown section {sorted(unknown)[0]!r} of a configuration, known are "
                             f"preset, {', '.join(parts)}")
        made = {}
        for name, part in parts.items():
            values = dict(tree.get(name, {}))
            known = {item.name for item in dataclasses.fields(part)}
            for key in values:
                if key not in known:
                    raise ValueError(f"unknown setting {name}.{key}, known are {', '.join(sorted(known))}")
            if "levels" in values:
                values["levels"] = tuple(values["levels"])
            made[name] = part(**values)
        return cls(preset=tree.get("preset", "default"), **made)

    def replace(self, section: str, **changes: Any) -> Config:
        """The same with other settings in one section."""
        return dataclasses.replace(self, **{section: dataclasses.replace(getattr(self, section), **changes)})


def preset(name: str) -> Config:
    """A named configuration.

    ``default``: the paper's structure with the choices that train; ``paper_literal``: the paper's text wherever it
    says something, eta 1e-4 included (reached by annealing, and given the passes that it needs in evaluation);
    ``released``: what the authors' code computes, whose potentials are detached: gradients are of one half-step;
    ``tiny``: 64 px and a few million parameters, for two CPU cores.
    """
    default = Config()
    if name == "default":
        return default
    if name == "paper_literal":
        made = default.replace("match", eta_train=1e-4, eta_eval=1e-4, eta_start=0.05, passes=200,
                               passes_eval=400)
        return dataclasses.replace(made.replace("loss", perceptual_l1=True, contextual_paper=True,
                                                discriminator_features=0.0), preset=name)
    if name == "released":
        made = default.replace("model", descriptor_dim=256, match_kernel=3, strided_kernel=3, norm="seace_released",
                               confidence="learned")
        made = made.replace("match", matcher="ot", masses="softmax", gradients="one_step")
        return dataclasses.replace(made.replace("train", beta2=0.9, adam_eps=1e-3), preset=name)
    if name == "tiny":
        made = default.replace("model", size=64, base=8, hidden=16, stride=2, descriptor_dim=64, residual_layers=2)
        # The judge is random: its first layer alone is near to what is seen; the adversary must not be loudest.
        made = made.replace("loss", perceptual_weight=10.0, perceptual_layer="relu1_2", contextual=1.0, adversarial=1.0,
                            discriminator_features=2.0)
        # Weights start at a fiftieth of the usual, so that at the paper's rate a short training ends on its way.
        made = made.replace("train", batch=4, steps=600, sample_every=100, checkpoint_every=100, generator_rate=1e-3,
                            beta1=0.5, ema=0.99)
        return dataclasses.replace(made, preset=name)
    raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")


PRESETS = ("default", "paper_literal", "released", "tiny")
