"""`python -m examples.unite.compare`: cos, ot and uot side by side, by how well each moves an exemplar, untrained.

Nothing is generated: an exemplar's colours are carried by each matcher's plan, and compared with the truth, which
avatars have.  Descriptors are those of a trained run, or fixed ones, made of the two conditions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize, one_hot

from . import data
from .config import CHOICES, MatchConfig, ModelConfig
from .data.classes import CLASSES
from .grids import grid, heat, write_png
from .matching import Matcher
from .structures import Batch, collate

MATCHERS = ("cos", "ot", "uot")
#: Widths (in the grid's positions) of the blurs of the fixed descriptors, and the weight of their coordinates.
BLURS, COORDINATES = (0.0, 1.0, 2.0, 4.0), 1.0
#: What is measured: its name in a table, and its meaning.
MEASURES = {
    "psnr_shared": ("PSNR shared", "of the warped exemplar, where the exemplar has the position's class; dB"),
    "psnr_all": ("PSNR all", "the same, everywhere; dB"),
    "right_class": ("right class", "share of what is carried to those positions that is of their class"),
    "distinct": ("distinct", "share of the exemplar's positions that are some position's best match"),
    "crowded": ("crowded", "most positions that have the same best match"),
    "load_shared": ("load shared", "share of the plan that an exemplar's position has whose class the target has, in "
                                   "even shares"),
    "load_one_sided": ("load 1-sided", "the same where the target lacks the class"),
    "kept_shared": ("kept shared", "share of its mass that a target's position keeps, where the exemplar has its "
                                   "class"),
    "kept_one_sided": ("kept 1-sided", "the same where the exemplar lacks the class"),
    "kept_back_shared": ("back shared", "share of its mass that an exemplar's position keeps, where the target has the "
                                        "class"),
    "kept_back_one_sided": ("back 1-sided", "the same where the target lacks the class"),
    "violation": ("violation", "what the passes left of the optimality conditions, the largest of all pairs: plans of "
                               "more than 1e-3 are not solved, and their other figures are not the matcher's"),
}
#: Passes by eta, where none are asked for, by the first eta that is not above it.  They leave less than 1e-3 with fixed
#: descriptors but for balanced transport at eta 1e-4: 5e-3, and 1000 passes leave 4e-3 (in float64 too).
PASSES = ((0.02, 50), (0.01, 100), (0.0, 400))
#: How a measure is written, where that is not two decimals.
FORMATS = {"crowded": ".0f", "violation": ".0e"}
#: Features of the shared layers, which some masses are made of.
Shared = tuple[Tensor, Tensor] | None
Describe = Callable[[Batch], tuple[Tensor, Tensor, Shared]]


@dataclass(frozen=True)
class Scene:
    """Pairs on the matching grid."""

    truth: Tensor           # (B, 3, h, w)
    exemplar: Tensor        # (B, 3, h, w)
    classes: Tensor         # (B, K, h, w): one-hot, of the target
    exemplar_classes: Tensor

    @property
    def shared(self) -> Tensor:
        """(B, h, w): whether the exemplar has the class of a position of the target."""
        return self._has(self.classes, self.exemplar_classes)

    @property
    def exemplar_shared(self) -> Tensor:
        """(B, h, w): whether the target has the class of a position of the exemplar."""
        return self._has(self.exemplar_classes, self.classes)

    @staticmethod
    def _has(here: Tensor, there: Tensor) -> Tensor:
        present = there.amax((-2, -1))
        return torch.einsum("bkhw,bk->bhw", here, present) > 0


def scene(batch: Batch, classes: Tensor, exemplar_classes: Tensor, side: int) -> Scene:
    """Pairs brought to a grid of side x side: colours averaged, of classes (B, H, W) the most frequent."""
    def reduced(labels: Tensor) -> Tensor:
        shares = adaptive_avg_pool2d(one_hot(labels, len(CLASSES)).permute(0, 3, 1, 2).float(), side)
        return one_hot(shares.argmax(1), len(CLASSES)).permute(0, 3, 1, 2).float()

    return Scene(adaptive_avg_pool2d(batch.image, side), adaptive_avg_pool2d(batch.exemplar, side), reduced(classes),
                 reduced(exemplar_classes))


def fixed_descriptors(stride: int) -> Describe:
    """Descriptors without training: each side's own condition blurred at several widths, and coordinates.

    The means of the blurred channels say what is around a position, the coordinates break ties inside flat regions;
    centred over channels and of unit length, as the model's are.
    """
    def describe(batch: Batch) -> tuple[Tensor, Tensor, Shared]:
        return _described(batch.condition, stride), _described(batch.exemplar_condition, stride), None

    return describe


def _described(condition: Tensor, stride: int) -> Tensor:
    small = adaptive_avg_pool2d(condition, condition.shape[-1] // stride)
    rows, columns = (torch.linspace(-1, 1, side, dtype=small.dtype) for side in small.shape[-2:])
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij")) * COORDINATES
    planes = [blurred(small, width) for width in BLURS] + [place.expand(len(small), -1, -1, -1)]
    joined = torch.cat(planes, 1)
    return normalize(joined - joined.mean(1, keepdim=True), dim=1)


def blurred(maps: Tensor, width: float) -> Tensor:
    """Maps (B, C, h, w) under a Gaussian of this standard deviation; borders repeat."""
    if width == 0:
        return maps
    reach = min(round(3 * width), maps.shape[-1] - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=maps.dtype) / width) ** 2)
    weights = weights / weights.sum()
    for axis in (-2, -1):
        padding = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        padded = torch.nn.functional.pad(maps, padding, mode="replicate")
        maps = padded.unfold(axis, 2 * reach + 1, 1) @ weights
    return maps


def measure(matcher: Matcher, x: Tensor, z: Tensor, seen: Scene,
            shared: Shared = None) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What one matcher does with descriptors (B, d, h, w), and the shared features where its masses are made of them.

    Returns:
        Measures by name, (B,) each, nan where a pair has no such position; the warped exemplars (B, 3, h, w); the
        share of its mass that each target's position keeps (B, h, w).
    """
    with torch.no_grad():
        plan = matcher.plan(x, z, shared)
        warped, carried = plan.warp_all([seen.exemplar, seen.exemplar_classes])
        matches = plan.matches().flatten(1)
        positions = z.shape[-2] * z.shape[-1]
        column = plan.solution.col_mass
        if matcher.match.matcher == "cos":  # what it carries is defined by rows that sum to 1
            column = plan.solution.apply_t((1 / plan.solution.row_mass)[..., None].to(x))[..., 0]
        load = (column / column.mean(-1, keepdim=True)).reshape(len(x), *z.shape[-2:])
    kept, kept_back, violation = plan.kept, plan.kept_back, plan.solution.violation
    if matcher.match.matcher == "cos":  # it has no marginals to keep
        kept, kept_back = torch.full_like(kept, torch.nan), torch.full_like(kept_back, torch.nan)
        violation = torch.full_like(violation, torch.nan)
    shared, exemplar_shared = seen.shared, seen.exemplar_shared
    counts = one_hot(matches, positions).sum(1)
    error = (warped - seen.truth).square().mean(1)
    found = {
        "psnr_shared": psnr(error, shared), "psnr_all": psnr(error, torch.ones_like(shared)),
        "right_class": masked_mean((carried * seen.classes).sum(1), shared),
        "distinct": (counts > 0).float().mean(1), "crowded": counts.amax(1).float(),
        "load_shared": masked_mean(load, exemplar_shared), "load_one_sided": masked_mean(load, ~exemplar_shared),
        "kept_shared": masked_mean(kept, shared), "kept_one_sided": masked_mean(kept, ~shared),
        "kept_back_shared": masked_mean(kept_back, exemplar_shared),
        "kept_back_one_sided": masked_mean(kept_back, ~exemplar_shared),
        "violation": violation,
    }
    return found, warped, kept


def psnr(error: Tensor, where: Tensor) -> Tensor:
    """Of squared errors (B, h, w) of images in [-1, 1], over some positions; dB, (B,)."""
    return 10 * torch.log10(4 / masked_mean(error, where).clamp_min(1e-12))


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    """Means of (B, h, w) over some positions; nan where there are none."""
    return (values * where).sum((-2, -1)) / where.sum((-2, -1))


def compare(pairs: data.Pairs, describe: Describe, matchers: dict[str, Matcher], stride: int,
            batch: int = 8) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Every matcher on every pair of avatars.

    Returns:
        Matcher -> measure -> mean over the pairs that have it (nan: none has), of the violation the largest; and the
        tiles of a picture.
    """
    collected: dict[str, list[dict[str, Tensor]]] = {name: [] for name in matchers}
    tiles: dict[str, list[Tensor]] = {}
    for first in range(0, len(pairs), batch):
        indices = range(first, min(first + batch, len(pairs)))
        drawn = collate([pairs[index] for index in indices])
        maps = [pairs.class_maps(index) for index in indices]
        target, exemplar = (torch.stack([torch.from_numpy(pair[side]).long() for pair in maps]) for side in (0, 1))
        seen = scene(drawn, target, exemplar, pairs.size // stride)
        with torch.no_grad():
            x, z, shared = describe(drawn)
        shown = {"exemplar": drawn.exemplar, "one-sided": marked(drawn.exemplar, seen.exemplar_shared)}
        for name, matcher in matchers.items():
            found, warped, kept = measure(matcher, x, z, seen, shared)
            collected[name].append(found)
            shown[name] = _enlarged(warped, pairs.size)
            if name == "uot":
                shown["kept by uot"] = _enlarged(heat(kept), pairs.size)
        for name, images in (shown | {"truth": drawn.image}).items():
            tiles.setdefault(name, []).append(images)
    joined = {name: {key: torch.cat([found[key] for found in parts]) for key in MEASURES}
              for name, parts in collected.items()}
    means = {name: {key: float(values.max() if key == "violation" else values.nanmean())
                    for key, values in found.items()} for name, found in joined.items()}
    return means, {name: torch.cat(images) for name, images in tiles.items()}


def marked(exemplar: Tensor, shared: Tensor) -> Tensor:
    """Exemplars with what the target lacks in magenta."""
    lacking = interpolate((~shared)[:, None].float(), size=exemplar.shape[-2:], mode="nearest")
    magenta = torch.tensor([1.0, -1.0, 1.0])[None, :, None, None]
    return exemplar * (1 - lacking) + magenta * lacking


def _enlarged(maps: Tensor, size: int) -> Tensor:
    return interpolate(maps.float(), size=(size, size), mode="nearest")


def from_run(run: Path) -> tuple[Describe, ModelConfig, MatchConfig, str, dict[str, Matcher]]:
    """Descriptors of a trained run: function, settings of model and matching, condition, its own matcher."""
    from .translate import load_model

    model, config = load_model(run)

    def describe(batch: Batch) -> tuple[Tensor, Tensor, Shared]:
        features = model.extractor_x(batch.condition), model.extractor_z(batch.exemplar)
        shared = model.descriptors.shared_features(*features, batch.condition, batch.exemplar_condition)
        return *model.descriptors.project(*shared), shared

    own = {config.match.matcher: model.matcher}
    return describe, config.model, config.match, config.data.condition or "mask", own


def make_matchers(model: ModelConfig, match: MatchConfig, own: dict[str, Matcher]) -> dict[str, Matcher]:
    """One of each kind; masses that were learned for one are of no use to another, which has Eq. 3 instead."""
    masses = match.masses if match.masses in ("eq3", "uniform") else "eq3"
    return {name: own.get(name) or Matcher(model, dataclasses.replace(match, matcher=name, masses=masses)).eval()
            for name in MATCHERS}


def passes_for(eta: float, match: MatchConfig) -> int:
    """`PASSES` for an eta, or those of the settings if they are more."""
    return max(match.passes_eval or match.passes, next(count for least, count in PASSES if eta >= least))


def table(means: dict[str, dict[str, float]]) -> str:
    """Measures as a table in Markdown."""
    head = ["matcher", *(title for title, _ in MEASURES.values())]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, found in means.items():
        cells = ["-" if value != value else f"{value:{FORMATS.get(key, '.2f')}}" for key, value in found.items()]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.compare", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="a run's folder or a checkpoint; none: fixed descriptors")
    parser.add_argument("--count", type=int, default=32, help="test pairs (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="without a checkpoint (%(default)s)")
    parser.add_argument("--stride", type=int, choices=(2, 4), default=2, help="without a checkpoint (%(default)s)")
    parser.add_argument("--eta", type=float, help="regularisation of ot and uot")
    parser.add_argument("--tau", type=float, help="penalty of uot's marginals")
    parser.add_argument("--passes", type=int,
                        help="of ot and uot (" + ", ".join(f"{count} from eta {eta:g} on" for eta, count in PASSES)
                        + "; a run's own if they are more)")
    parser.add_argument("--masses", choices=[kind for kind in CHOICES["masses"] if kind in ("eq3", "uniform")],
                        help="of uot, without a checkpoint")
    parser.add_argument("--root", default=None, help="the avatars' cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=8, help="pairs in the picture (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/unite/compare"))
    options = parser.parse_args(argv)
    try:
        if options.checkpoint is None:
            model, match = ModelConfig(size=options.size, stride=options.stride), MatchConfig()
            describe, condition, own = fixed_descriptors(options.stride), "mask", {}
            if options.masses is not None:
                match = dataclasses.replace(match, masses=options.masses)
        else:
            describe, model, match, condition, own = from_run(options.checkpoint)
        changes = {"eta_eval": options.eta, "tau_eval": options.tau}
        changes = {key: value for key, value in changes.items() if value is not None}
        eta = changes.get("eta_eval", match.eta_eval)
        changes["passes_eval"] = passes_for(eta, match) if options.passes is None else options.passes
        match = dataclasses.replace(match, **changes)
        for matcher in own.values():
            matcher.match = dataclasses.replace(matcher.match, **changes)
        pairs = data.make("avatars", root=options.root, size=model.size, split="test", condition=condition,
                          seed=options.seed, count=options.count)
        means, tiles = compare(pairs, describe, make_matchers(model, match, own), model.stride)
    except (ValueError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    write_png(options.out / "compare.png", grid({name: images[:options.rows] for name, images in tiles.items()}, 2))
    settings = {"descriptors": str(options.checkpoint or "fixed"), "size": model.size, "stride": model.stride,
                "condition": condition, "pairs": len(pairs), "eta": match.eta_eval, "tau": match.tau_eval,
                "masses": match.masses, "temperature": match.temperature, "passes": match.passes_eval,
                "seed": options.seed}
    (options.out / "compare.json").write_text(json.dumps({"settings": settings, "measures": means}, indent=1) + "\n")
    (options.out / "compare.md").write_text(table(means) + "\n")
    print(", ".join(f"{key} {value}" for key, value in settings.items()))
    print(table(means))
    print("\n".join(f"{title}: {meaning}" for title, meaning in MEASURES.values()))
    print(options.out / "compare.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
