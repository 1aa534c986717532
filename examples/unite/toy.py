"""`python -m examples.unite.toy`: which eta learns a match through UNITE's matcher, and with which gradients."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor, nn

from examples.toy_matching.clouds import CLASSES, SEEN, Clouds, World, one_hot

from .config import MatchConfig, ModelConfig
from .matching import Matcher

#: Positions a side of the matching grid, and features that both sides are projected to.
SIDE, WIDTH = 14, 16
#: eta of the trainings; the second of a pair is what it is annealed to.
ETAS: tuple[float | tuple[float, float], ...] = (0.05, 0.025, 0.01, 1e-3, 1e-4, (0.05, 1e-4))
#: Where every match is judged besides its own eta, and passes of such a solve.
SHARP, SHARP_PASSES = 1e-4, 2000
RATE, FRESH = 3e-3, 4


@dataclass(frozen=True)
class Learned:
    """One training: share of the plan's mass on right pairs, of fresh clouds at the last eta, and at `SHARP`.

    ``rows`` is the same for the average row, so that a class that the masses have dropped counts like any other;
    ``violation`` is the largest that the fixed passes left in the training's last solve.
    """

    eta: str
    gradients: str
    seed: int
    share: float
    share_sharp: float
    rows: float
    violation: float
    seconds: float
    curve: list[float]


class Toy(nn.Module):
    """A linear map a side, and the matcher."""

    def __init__(self, match: MatchConfig) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(SEEN, WIDTH, bias=False) for _ in range(2))
        self.matcher = Matcher(ModelConfig(descriptor_dim=WIDTH), match)

    def plan(self, clouds: Clouds):
        return self.matcher.plan(_maps(self.left(clouds.x.float())), _maps(self.right(clouds.z.float())))

    def loss(self, clouds: Clouds) -> tuple[Tensor, object]:
        """Squared error of labels that the plan carries, each way: (loss, plan)."""
        plan = self.plan(clouds)
        x, z = (_labels(labels) for labels in (clouds.x_class, clouds.z_class))
        return _error(plan.warp(z), x) + _error(plan.warp_back(x), z), plan


def train(eta: float | tuple[float, float], gradients: str, seed: int, *, steps: int, passes: int, tau: float,
          masses: str) -> Learned:
    """Learn the two maps on fresh clouds, and judge them on others."""
    torch.manual_seed(seed)
    world = World(seed, outliers=0.0)
    start, end = eta if isinstance(eta, tuple) else (None, eta)
    match = MatchConfig(eta_start=start, eta_train=end, eta_eval=end, tau_train=tau, tau_eval=tau, masses=masses,
                        passes=passes, gradients=gradients)
    toy = Toy(match)
    optimiser = torch.optim.Adam(toy.parameters(), lr=RATE)
    begun, curve = time.perf_counter(), []
    for step in range(steps):
        toy.matcher.progress = step / steps
        clouds = world.draw(SIDE * SIDE)
        loss, plan = toy.loss(clouds)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.append(_share(_dense(plan), clouds))
    seconds = time.perf_counter() - begun
    name = f"{start:g} -> {end:g}" if start is not None else f"{end:g}"
    return Learned(name, gradients, seed, *judge(toy, match, [world.draw(SIDE * SIDE) for _ in range(FRESH)]), seconds,
                   curve)


@torch.no_grad()
def judge(toy: Toy, match: MatchConfig, fresh: Sequence[Clouds]) -> tuple[float, float, float, float]:
    """From share to violation of `Learned`, means over clouds (the largest violation)."""
    toy.eval()
    sharp = Toy(MatchConfig(**(asdict(match) | {"eta_eval": SHARP, "passes": SHARP_PASSES}))).eval()
    sharp.load_state_dict(toy.state_dict())
    found = []
    for clouds in fresh:
        own, exact = toy.plan(clouds), sharp.plan(clouds)
        plan = _dense(own)
        rows = ((plan * clouds.right).sum(1) / plan.sum(1)).mean()
        found.append((_share(plan, clouds), _share(_dense(exact), clouds), float(rows),
                      float(own.solution.violation)))
    shares, sharps, rows, violations = zip(*found, strict=True)
    return mean(shares), mean(sharps), mean(rows), max(violations)


def _maps(points: Tensor) -> Tensor:
    """(n, d) as descriptors (1, d, h, w) of unit length."""
    return nn.functional.normalize(points, dim=1).T.unflatten(1, (SIDE, SIDE))[None]


def _labels(labels: Tensor) -> Tensor:
    return one_hot(labels).float().T.unflatten(1, (SIDE, SIDE))[None]


def _error(carried: Tensor, labels: Tensor) -> Tensor:
    """Squared error, a mean over positions; what is too small to be squared in float32 is none, nor has a gradient."""
    difference = carried - labels
    return torch.where(difference.abs() > 1e-18, difference, 0.0).square().sum(1).mean()


def _dense(plan) -> Tensor:
    """The plan's matrix; of half-steps, that of the columns."""
    return getattr(plan, "of_columns", plan).solution.plan[0].detach()


def _share(plan: Tensor, clouds: Clouds) -> float:
    return float((plan * clouds.right).sum() / plan.sum())


def table(runs: Sequence[Learned]) -> list[str]:
    """Markdown: an eta a line; for each kind of gradient every seed's share, and its mean at `SHARP` and over rows."""
    kinds = list(dict.fromkeys(run.gradients for run in runs))
    lines = ["| eta while training | " + " | ".join(kinds) + " |", "| --- |" + " --- |" * len(kinds)]
    for eta in dict.fromkeys(run.eta for run in runs):
        cells = []
        for kind in kinds:
            group = [run for run in runs if (run.eta, run.gradients) == (eta, kind)]
            cells.append(", ".join(f"{run.share:.2f}" for run in group)
                         + f" (rows {mean(run.rows for run in group):.2f}; "
                           f"at {SHARP:g}: {mean(run.share_sharp for run in group):.2f})" if group else "-")
        lines.append(f"| {eta} | " + " | ".join(cells) + " |")
    return lines


def draw(path: Path, runs: Sequence[Learned]) -> None:
    """Training curves, one panel a kind of gradient, means of seeds over 15 steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(run.gradients for run in runs))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.8 * len(kinds), 3.8), layout="constrained", squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for eta in dict.fromkeys(run.eta for run in runs):
            curves = [run.curve for run in runs if (run.eta, run.gradients) == (eta, kind)]
            shares = [mean(step) for step in zip(*curves, strict=True)]
            ax.plot([mean(shares[max(step - 14, 0):step + 1]) for step in range(len(shares))], label=eta)
        ax.set_ylim(0, 1)
        ax.set_xlabel("step of Adam")
        ax.set_ylabel("plan's mass on right pairs")
        ax.set_title(f"gradients: {kind}", fontsize=11)
    axes[0][-1].legend(title="eta", fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all trainings; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.unite.toy", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, default=Path("out/unite"), help="folder (%(default)s)")
    parser.add_argument("--steps", type=int, default=250, help="of Adam (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (%(default)s)")
    parser.add_argument("--passes", type=int, default=100, help="of every solve (%(default)s)")
    parser.add_argument("--tau", type=float, default=0.5, help="(%(default)s)")
    parser.add_argument("--masses", choices=("eq3", "eq3_proj", "softmax", "uniform"), default="uniform",
                        help="(%(default)s)")
    parser.add_argument("--gradients", nargs="+", choices=("implicit", "one_step", "unrolled"),
                        default=["implicit", "one_step"], help="(implicit one_step)")
    options = parser.parse_args(argv)
    for name in ("steps", "seeds", "passes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    begun = time.perf_counter()
    print(f"{SIDE * SIDE} positions a side, {CLASSES} classes, linear maps {SEEN} -> {WIDTH}; {options.masses} masses, "
          f"tau {options.tau:g}, {options.passes} passes a solve,")
    print(f"{options.steps} steps of Adam on fresh clouds, float32; right: share of the plan's mass on pairs of one "
          "class, fresh clouds")
    print(f"{'eta':<16}{'gradients':<11}{'seed':>4}{'right':>8}{f'at {SHARP:g}':>10}{'rows':>7}{'violation':>11}"
          f"{'ms a step':>11}", flush=True)
    runs = []
    for kind in options.gradients:
        for eta in ETAS:
            for seed in range(options.seeds):
                run = train(eta, kind, seed, steps=options.steps, passes=options.passes, tau=options.tau,
                            masses=options.masses)
                runs.append(run)
                print(f"{run.eta:<16}{kind:<11}{seed:>4}{run.share:8.2f}{run.share_sharp:10.2f}{run.rows:7.2f}"
                      f"{run.violation:11.1e}{1e3 * run.seconds / options.steps:11.0f}", flush=True)
    print()
    print("\n".join(table(runs)))
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    path = options.out / f"toy_{options.masses}.json"
    path.write_text(json.dumps({"settings": settings, "runs": [asdict(run) for run in runs]}, indent=1))
    draw(path.with_suffix(".png"), runs)
    print(f"\nwrote {path} and {path.with_suffix('.png').name}; {time.perf_counter() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
