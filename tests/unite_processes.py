"""What each process of tests/test_unite_processes.py runs: `torchrun ... tests/unite_processes.py WORD OUT [flags]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from unite_training import SMALL, Blocks, small

from examples.unite import train, trainer
from examples.unite.config import Config
from examples.unite.diagnosis import Diverged
from examples.unite.layers import BatchNorm
from examples.unite.structures import Batch, collate
from examples.unite.trainer import Trainer

#: A step whose every loss that takes a share is on, and the norm whose statistics are of all processes.
SHARES = {"loss": {"mask_nll": 1.0, "warp_self": 1.0}, "train": {"batch": 2}}
BATCH_NORM = SMALL["model"] | {"norm": "spade", "spade_norm": "batch"}
CASES: dict[str, Config] = {
    "seace": small(**SHARES),
    "seace, accumulated": small(**SHARES | {"train": {"batch": 1, "accumulate": 2}}),
    "batch norm": small(**SHARES, model=BATCH_NORM),
    "batch norm, recomputed": small(**SHARES, model=BATCH_NORM | {"checkpointing": True}),
}
#: Of the examples 0, 2, 4, 6 are pseudo pairs: one process has two of them, the other none.
EXAMPLES = ([0, 2], [1, 3])
#: Rates at which rounding grows little from step to step (a tenfold at the preset's), and an Adam whose step does not
#: turn over with the sign of a gradient that is nothing but rounding.
SETTINGS = {"model": SMALL["model"], "match": SMALL["match"],
            "train": SMALL["train"] | {"generator_rate": 1e-5, "discriminator_rate": 1e-5, "adam_eps": 1e-3,
                                       "decay_share": 0.0, "checkpoint_every": 2}}


def one_step(config: Config, out: Path, group: list[Batch]) -> dict[str, dict]:
    """Losses, gradients and buffers of the first step of a run."""
    run = Trainer(config, out, device="cpu")
    values = run.step(group)
    networks = {"generator": run.learner.unite, "discriminator": run.learner.discriminator}
    return {"values": values,
            "gradients": {f"{part}.{name}": parameter.grad for part, network in networks.items()
                          for name, parameter in network.named_parameters()},
            "buffers": {f"{part}.{name}": buffer for part, network in networks.items()
                        for name, buffer in network.named_buffers()}}


def normalised(norm: torch.nn.Module, samples: slice) -> list[torch.Tensor]:
    """In float64: what a norm makes of samples, their gradient, and its averages after two batches."""
    drawn = torch.Generator().manual_seed(3)
    for _ in range(2):
        x = (100 + torch.randn(4, 3, 5, 6, dtype=torch.float64, generator=drawn))[samples].requires_grad_()
        out = norm(x)
        out.pow(3).sum().backward()
    return [out.detach(), x.grad, norm.running_mean, norm.running_var]


def batch(indices: list[int]) -> Batch:
    return collate([Blocks(7)[index] for index in indices])


def group(config: Config, *ranks: int) -> list[Batch]:
    """The batches of one step of `EXAMPLES`: of one process, or in one process those of both."""
    size = config.train.batch
    return [batch([index for rank in ranks for index in EXAMPLES[rank][first:first + size]])
            for first in range(0, 2, size)]


def recorded(path: Path) -> type[Trainer]:
    """A trainer each of whose steps writes the names of this process's examples into a file."""
    class Recorded(Trainer):
        def step(self, group: list[Batch]) -> dict[str, float]:
            with path.open("a") as file:
                file.write(json.dumps([self.done + 1, [name for part in group for name in part.names]]) + "\n")
            return super().step(group)
    return Recorded


def facts(out: Path) -> None:
    """One step of each case, the batch norm alone, and what is said of a loss that is no number on one process."""
    rank = int(os.environ["RANK"])
    found = {name: one_step(config, out / name, group(config, rank)) for name, config in CASES.items()}
    run = Trainer(CASES["seace"], out / "nan", device="cpu")
    found["held"] = [len(each.image) for each in run.held]
    whole = run.learner.losses.generator
    if rank == 1:
        run.learner.losses.generator = lambda *given: {
            name: term * torch.nan if name == "cycle" else term for name, term in whole(*given).items()}
    try:
        run.step([batch(EXAMPLES[rank])])
    except Diverged as error:
        found["nan"] = str(error)
    found["norm"] = normalised(BatchNorm(3).double(), slice(2 * rank, 2 * rank + 2))
    torch.save(found, out / f"facts-{rank}.pt")
    run.accelerator.end_training()


def main(word: str, out: Path, flags: list[str]) -> int:
    trainer.make_data = lambda config: (Blocks(7), [Blocks(2)[index] for index in range(2)])
    if word == "facts":
        facts(out)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    train.Trainer = recorded(out / f"examples-{os.environ['RANK']}.jsonl")
    settings = [f"{section}.{name}={value}" for section, values in SETTINGS.items() for name, value in values.items()]
    return train.main(["--device", "cpu", "--out", str(out), *(part for text in settings for part in ("--set", text)),
                       *flags])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
