"""Memory that forward and backward take beside their inputs, the gradient included, in a process of its own.

    python -m benchmarks.cpu.gradient_memory [--n 4096] [--loss "plan to C"] [--method POT --iterations 6]
"""

from __future__ import annotations

import argparse
import json

import torch

from .backward import FEW, GRADIENT_TARGET, MORE
from .bench import Bench
from .gradients import DIFFERENTIABLE, LOSSES, Differentiable, Pass, draw_task
from .gradients.ours import our_pass
from .memory import ask, peak, start
from .methods import Missing
from .methods.ours import NAME
from .record import Row


def gradient_memory(bench: Bench, n: int, loss: str, peers: tuple[Differentiable, ...] = ()) -> list[Row]:
    """Rows of the library and of the peers, in multiples of the bytes of C."""
    rows = [_row(n, loss, NAME, "auto", "kl", _multiple(bench, n, loss, NAME, 0))]
    for method in peers:
        try:
            iterations = method.iterations(n, GRADIENT_TARGET)
        except Missing as absent:
            row = _row(n, loss, method.name, method.setting, method.convention, None)
            row.status, row.note = "missing", str(absent)
            rows.append(row)
            continue
        rows.append(_peer(bench, n, loss, method, iterations))
        rows[-1].iterations = iterations
    for row in rows:
        if row.of_floor is not None and rows[0].of_floor:
            row.of_ours = row.of_floor / rows[0].of_floor
    return [bench.recorder.add(row) for row in rows]


def _peer(bench: Bench, n: int, loss: str, method: Differentiable, iterations: int) -> Row:
    if not method.affine:
        multiple, note = _multiple(bench, n, loss, method.name, iterations), ""
    else:  # what is stored for each iteration is as large as what is stored for the next
        short, long = (_multiple(bench, n, loss, method.name, count) for count in (FEW, MORE))
        multiple = short + (iterations - FEW) * max(0.0, long - short) / (MORE - FEW)
        note = f"from {FEW} and {MORE} of {iterations} iterations"
    row = _row(n, loss, method.name, method.setting, method.convention, multiple)
    row.note = note
    return row


def _row(n: int, loss: str, name: str, setting: str, convention: str, multiple: float | None) -> Row:
    return Row("gradient memory", n, name, eps=GRADIENT_TARGET.reg, tau=GRADIENT_TARGET.reg_m,
               target=GRADIENT_TARGET.violation, setting=setting, convention=convention, loss=loss, of_floor=multiple)


def _multiple(bench: Bench, n: int, loss: str, name: str, iterations: int) -> float:
    found = ask("benchmarks.cpu.gradient_memory", n=n, threads=bench.threads, loss=loss, method=name,
                iterations=iterations)
    return found["extra"] / found["cost"]


def _prepared(name: str, n: int, loss: str, iterations: int) -> Pass:
    given = draw_task(loss, n, GRADIENT_TARGET)
    if name == NAME:
        return our_pass(given, GRADIENT_TARGET.violation)
    method = next(method for method in DIFFERENTIABLE if method.name == name)
    return method.prepare(given.but(reg_type=method.convention), iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--loss", choices=LOSSES, default=LOSSES[0])
    parser.add_argument("--method", choices=[NAME, *(method.name for method in DIFFERENTIABLE)], default=NAME)
    parser.add_argument("--iterations", type=int, default=MORE, help="of a peer")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = _prepared(arguments.method, 64, arguments.loss, FEW)
    small.backward(small.forward(FEW))  # what importing and threads take is not theirs
    run = _prepared(arguments.method, arguments.n, arguments.loss, arguments.iterations)
    before, how = start()
    gradient = run.backward(run.forward(arguments.iterations))
    print(json.dumps({"extra": max(0, peak(how) - before), "cost": 4 * arguments.n**2, "how": how,
                      "shape": list(gradient.shape)}))


if __name__ == "__main__":
    main()
