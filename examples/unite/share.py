"""`python -m examples.unite.share`: what matching takes of a training step, and of memory, with and without uotlib."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import json
import re
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from .config import PRESETS, Config, MatchConfig, ModelConfig, preset
from .dense import GeomLossMatcher, LogSumExpMatcher
from .discriminator import Discriminator
from .losses import Losses
from .matching import Matcher
from .model import Unite
from .optimisation import optimisers
from .perceptual import load_perceptual
from .structures import Batch, Features, Output

#: Stages of a step, in order.
STAGES = ("features", "matching", "translation, losses", "matching, backward", "features, backward", "discriminator",
          "optimisers")
GEOMLOSS = "geomloss, released"
#: Channels of all levels of the default preset but the image, and of a condition, for memory at 256 px.
LEVEL_CHANNELS, CONDITION_CHANNELS = {"f2": 128, "f3": 256, "f4": 512, "f5": 512}, 9


def methods(device: str) -> dict[str, tuple[type[Matcher], str]]:
    """What can run here: name to class of the matcher and uotlib's backend."""
    found: dict[str, tuple[type[Matcher], str]] = {}
    if device == "cpu":
        found["native"] = Matcher, "native"
    else:
        found["triton"] = Matcher, "triton"
        found["cuda"] = Matcher, "cuda"
    found["torch log-sum-exp"] = LogSumExpMatcher, "auto"
    if importlib.util.find_spec("geomloss") is not None:
        found[GEOMLOSS] = GeomLossMatcher, "auto"
    return found


class Cut:
    """Places where a graph is cut, so that each part's backward can be timed by itself."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        leaf = tensor.detach().requires_grad_(tensor.requires_grad)
        if tensor.requires_grad:
            self._pairs.append((tensor, leaf))
        return leaf

    def backward(self) -> None:
        """Hand the leaves' gradients to what they were cut from."""
        reached = [(tensor, leaf.grad) for tensor, leaf in self._pairs if leaf.grad is not None]
        torch.autograd.backward([tensor for tensor, _ in reached], [grad for _, grad in reached])


def examples(model: ModelConfig, count: int) -> Batch:
    """Random masks of 8 x 8 pixels a class, and random images; all are pseudo pairs."""
    size, classes = model.size, model.condition_channels
    masks = [functional.one_hot(torch.randint(classes, (count, size // 8, size // 8)), classes).permute(0, 3, 1, 2)
             .float().repeat_interleave(8, 2).repeat_interleave(8, 3) for _ in range(2)]
    images = [torch.rand(count, 3, size, size) * 2 - 1 for _ in range(2)]
    return Batch(masks[0], images[0], images[1], masks[1], torch.ones(count))


class Step:
    """One training step of a configuration on random data, cut into `STAGES`."""

    def __init__(self, config: Config, method: str, device: str, batch: int) -> None:
        matcher, backend = methods(device)[method]
        config = config.replace("match", backend=backend)
        torch.manual_seed(0)
        self.device, self.config = torch.device(device), config
        self.unite = Unite(config.model, config.match)
        self.unite.matcher = matcher(config.model, config.match)
        self.unite.to(device).train()
        self.discriminator = Discriminator(config.model).to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the table names the judge
            self.judge = load_perceptual(config.loss.perceptual, config.loss.perceptual_file, device)
        self.losses = Losses(config, self.judge)
        self.optimisers = optimisers(self.unite, self.discriminator, config.train)
        self.batch = examples(config.model, batch).to(device)

    @contextmanager
    def _clock(self, spent: dict[str, float], stage: str) -> Iterator[None]:
        begun = self._now()
        yield
        spent[stage] += self._now() - begun

    def _now(self) -> float:
        return _now(self.device.type)

    def __call__(self) -> dict[str, float]:
        """Seconds by stage."""
        spent: dict[str, float] = defaultdict(float)
        batch, unite, count = self.batch, self.unite, len(self.batch.image)
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        early, late = Cut(), Cut()
        with self._clock(spent, "features"):
            of_x = unite.extractor_x(batch.condition)
            both = unite.extractor_z(torch.cat([batch.exemplar, batch.image]))
            of_z = Features(*(level[:count] for level in both))
            shared = unite.descriptors.shared_features(of_x, of_z, batch.condition, batch.exemplar_condition)
            x, z = unite.descriptors.project(*shared)
        with self._clock(spent, "matching"):
            levels = {name: early(getattr(of_z, name)) for name in self.config.model.levels if name != "rgb"}
            carried = unite.matcher(early(x), early(z), batch.exemplar, levels, batch.exemplar_condition,
                                    (early(shared[0]), early(shared[1])))
        self.discriminator.requires_grad_(False)
        with self._clock(spent, "translation, losses"):
            parts = {item.name: late(value) for item in dataclasses.fields(carried)
                     if isinstance(value := getattr(carried, item.name), Tensor)}
            levels = {name: late(part) for name, part in carried.levels.items()}
            carried = dataclasses.replace(carried, levels=levels, **parts)
            seen = Features(*map(early, of_x))
            image = unite.generator(batch.condition, seen, carried)
            output = Output(image, carried, seen, early(both.f6[count:]))
            fake = self.discriminator(batch.condition, image)
            with torch.no_grad():
                real = self.discriminator(batch.condition, batch.image)
            sum(self.losses.generator(output, batch, fake, real).values()).backward()
        with self._clock(spent, "matching, backward"):
            late.backward()
        with self._clock(spent, "features, backward"):
            early.backward()
        self.discriminator.requires_grad_(True)
        with self._clock(spent, "discriminator"):
            maps = self.discriminator(torch.cat([batch.condition] * 2), torch.cat([image.detach(), batch.image]))
            halves = [[[layer.chunk(2)[half] for layer in scale] for scale in maps] for half in (0, 1)]
            sum(self.losses.discriminator(*halves).values()).backward()
        with self._clock(spent, "optimisers"):
            for optimiser in self.optimisers:
                optimiser.step()
        return dict(spent)


def _now(device: str) -> float:
    """Seconds: of this process's processors on a CPU, which others that are busy do not change; else of the clock."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(config: Config, method: str, device: str, batch: int, repeats: int) -> dict[str, float]:
    """Median seconds of each stage, after one step that is not counted."""
    step = Step(config, method, device, batch)
    step()
    runs = [step() for _ in range(repeats)]
    return {stage: median(run[stage] for run in runs) for stage in STAGES}


def matching_share(stages: dict[str, float]) -> float:
    return (stages["matching"] + stages["matching, backward"]) / sum(stages.values())


def memory(method: str, device: str, side: int, passes: int) -> dict[str, float]:
    """Most MiB that forward and backward of matching alone take, with what goes in, comes out and their gradients."""
    matcher, backend = methods(device)[method]
    torch.manual_seed(0)
    made = matcher(ModelConfig(condition_channels=CONDITION_CHANNELS), MatchConfig(passes=passes, backend=backend)).to(
        device)

    def run(side: int) -> float:
        x, z = (functional.normalize(torch.randn(1, 128, side, side, device=device) + 0.2, dim=1).requires_grad_()
                for _ in range(2))
        levels = {name: torch.randn(1, channels, side, side, device=device, requires_grad=True)
                  for name, channels in LEVEL_CHANNELS.items()}
        images = [torch.rand(1, channels, 4 * side, 4 * side, device=device) for channels in (3, CONDITION_CHANNELS)]
        begun = _now(device)
        carried = made(x, z, images[0], levels, images[1])
        (sum(part.square().mean() for part in carried.levels.values()) + carried.cycle.square().mean()).backward()
        return _now(device) - begun

    run(8)  # what importing and threads take is not the matching's
    before, how = _start(device)
    seconds = run(side)
    return {"mib": max(0, _peak(device, how) - before) / 2**20, "seconds": seconds, "how": how}


def _status(field: str) -> int:
    """Bytes, from a line of /proc/self/status."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def _start(device: str) -> tuple[int, str]:
    """Bytes now, and how the peak will be known."""
    gc.collect()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated(), "torch's allocator"
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS"), "VmHWM since the call"
    except OSError:
        return _most(), "growth of the process's peak"


def _peak(device: str, how: str) -> int:
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") if how.startswith("VmHWM") else _most()


def _most() -> int:
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _available() -> float:
    """MiB that this machine could still give, where it says so."""
    try:
        return int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / 1024  # type: ignore[index]
    except (OSError, TypeError):
        return float("inf")


def kept_by_autograd(n: int, passes: int, batch: int) -> float:
    """MiB of matrices that log-sum-exps under autograd keep: one a half-step, and some for what is carried."""
    return 4 * batch * n * n * (2 * passes + 6) / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    options = _parse(argv)
    if options.child is not None:
        print(json.dumps(memory(options.child, options.device, options.side, options.passes)))
        return 0
    machine = {"device": options.device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(", ".join(f"{name} {value}" for name, value in machine.items()) + f"; medians of {options.repeats} steps, "
          + ("seconds of processor time" if options.device == "cpu" else "seconds"))
    if importlib.util.find_spec("geomloss") is None:
        print(f"{GEOMLOSS} is left out: the package geomloss is not installed")
    steps = [row for name in options.presets for row in _steps(name, options)]
    peaks = _peaks(options) if options.side else []
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "share.json"
    path.write_text(json.dumps({**machine, "steps": steps, "memory": peaks}, indent=1))
    print(f"\nwrote {path}")
    return 0


def _steps(name: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """The table of one preset."""
    config, rows = preset(name), []
    if options.passes is not None:
        config = config.replace("match", passes=options.passes)
    model, passes = config.model, config.match.passes
    batch = options.batch or (config.train.batch if model.size <= 64 else 1)
    n = (model.size // model.stride) ** 2
    print(f"\n{name}: {model.size} px, n = {n}, batch {batch}, {passes} passes, eta {config.match.eta_train:g}, judge "
          f"{config.loss.perceptual}; ms by stage")
    print(f"{'matching by':<20}" + "".join(f"{stage:>{len(stage) + 2}}" for stage in STAGES) + f"{'step':>8}"
          + f"{'matching':>10}")
    for method in _that_fit(n, passes, batch, options.device):
        stages = measure(config, method, options.device, batch, options.repeats)
        share = matching_share(stages)
        rows.append({"preset": name, "n": n, "batch": batch, "passes": passes, "method": method, "seconds": stages,
                     "share": share})
        print(f"{method:<20}" + "".join(f"{1e3 * stages[stage]:{len(stage) + 2}.0f}" for stage in STAGES)
              + f"{1e3 * sum(stages.values()):8.0f}{100 * share:9.1f}%", flush=True)
    return rows


def _peaks(options: argparse.Namespace) -> list[dict[str, object]]:
    """The table of memory."""
    n, rows = options.side**2, []
    passes = MatchConfig.passes if options.passes is None else options.passes
    matrix = 4 * n * n / 2**20
    print(f"\nmatching alone, forward and backward, n = {n} (one n x n float32 matrix: {matrix:.0f} MiB), batch 1, "
          f"{passes} passes, a process each")
    print(f"{'matching by':<20}{'peak MiB':>10}{'matrices':>10}{'seconds':>9}")
    for method in _that_fit(n, passes, 1, options.device):
        answer = subprocess.run(
            [sys.executable, "-m", "examples.unite.share", "--child", method, "--device", options.device, "--side",
             str(options.side), "--passes", str(passes)], check=True, stdout=subprocess.PIPE, text=True)
        peak = json.loads(answer.stdout)
        rows.append({"n": n, "passes": passes, "method": method} | peak)
        print(f"{method:<20}{peak['mib']:10.0f}{peak['mib'] / matrix:10.1f}{peak['seconds']:9.2f}", flush=True)
    return rows


def _that_fit(n: int, passes: int, batch: int, device: str) -> Iterator[str]:
    """Methods, without what would fill this machine's memory; that is said."""
    for method in methods(device):
        needed, free = kept_by_autograd(n, passes, batch), _available()
        if device == "cpu" and method == "torch log-sum-exp" and needed > 0.8 * free:
            print(f"{method:<20}  left out: it would keep {needed / 1024:.1f} GiB, and {free / 1024:.1f} are free")
        else:
            yield method


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.unite.share", description=__doc__.split(": ", 1)[1])
    parser.add_argument("--out", type=Path, default=Path("out/unite"), help="folder (%(default)s)")
    parser.add_argument("--presets", nargs="*", choices=PRESETS, default=["tiny"], help="steps to measure (tiny)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=0, help="of a step (the preset's at 64 px, else 1)")
    parser.add_argument("--repeats", type=int, default=3, help="steps that count (%(default)s)")
    parser.add_argument("--side", type=int, default=64, help="of the grid for memory; 0 leaves it out (%(default)s)")
    parser.add_argument("--passes", type=int,
                        help=f"of every solve (the preset's; of memory's {MatchConfig.passes})")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
