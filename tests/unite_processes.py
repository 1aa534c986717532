"""What each process of tests/test_unite_processes.py runs: `torchrun ... tests/unite_processes.py WORD OUT [flags]`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from unite_training import Blocks, small

from examples.unite import train, trainer
from examples.unite.config import Config
from examples.unite.diagnosis import Diverged
from examples.unite.structures import Batch, collate
from examples.unite.trainer import Trainer

#: A step whose every loss that takes a share is on, and the norm whose statistics are of all processes.
SHARES = {"loss": {"mask_nll": 1.0, "warp_self": 1.0}, "train": {"batch": 2}}
CASES: dict[str, Config] = {
    "seace": small(**SHARES),
    "batch norm": small(**SHARES, model={"norm": "spade", "spade_norm": "batch", "base": 4, "hidden": 8,
                                         "descriptor_dim": 16, "stride": 4, "residual_layers": 1, "discriminators": 1}),
    "recomputed": small(**SHARES, model={"norm": "spade", "spade_norm": "batch", "checkpointing": True, "base": 4,
                                         "hidden": 8, "descriptor_dim": 16, "stride": 4, "residual_layers": 1,
                                         "discriminators": 1}),
}
#: Of the examples 0, 2, 4, 6 are pseudo pairs: one process has two of them, the other none.
EXAMPLES = ([0, 2], [1, 3])
#: An Adam whose step does not turn over with the sign of a gradient that is nothing but rounding.
SETTINGS = {"train": {"adam_eps": 1e-3, "steps": 6, "checkpoint_every": 2, "sample_every": 100, "validation": 2},
            "loss": {"pseudo": 10.0}}


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


def batch(indices: list[int]) -> Batch:
    return collate([Blocks(7)[index] for index in indices])


def record_examples(path: Path) -> None:
    """From now on each step writes the names of this process's examples into a file."""
    whole = Trainer.step

    def step(self: Trainer, group: list[Batch]) -> dict[str, float]:
        with path.open("a") as file:
            file.write(json.dumps([self.done + 1, [name for part in group for name in part.names]]) + "\n")
        return whole(self, group)
    Trainer.step = step


def facts(out: Path) -> None:
    """One step of each case, and what both processes say of a loss that is no number on one of them."""
    rank = int(os.environ["RANK"])
    found = {name: one_step(config, out / name, [batch(EXAMPLES[rank])]) for name, config in CASES.items()}
    run = Trainer(CASES["seace"], out / "nan", device="cpu")
    whole = run.learner.losses.generator
    if rank == 1:
        run.learner.losses.generator = lambda *given: {
            name: term * torch.nan if name == "cycle" else term for name, term in whole(*given).items()}
    try:
        run.step([batch(EXAMPLES[rank])])
    except Diverged as error:
        found["nan"] = str(error)
    torch.save(found, out / f"facts-{rank}.pt")
    run.accelerator.end_training()


def main(word: str, out: Path, flags: list[str]) -> int:
    rank = os.environ["RANK"]
    broken = 3 if word == "broken" else None
    trainer.make_data = lambda config: (Blocks(7, broken), [Blocks(2)[index] for index in range(2)])
    if word == "facts":
        facts(out)
        return 0
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{rank}.pid").write_text(str(os.getpid()))
    record_examples(out / f"examples-{rank}.jsonl")
    return train.main(["--device", "cpu", "--out", str(out), *flags])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
