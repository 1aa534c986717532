"""What the project wants of these figures, and whether the rows of a run show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .case import ORDER, TARGETS, Target
from .gradients import LOSSES
from .methods.ours import NAME
from .record import Row

#: Time to a violation over that of the best peer.
ARRIVALS = {TARGETS[1]: 20.0, TARGETS[2]: 50.0, TARGETS[3]: 100.0}
#: Forward and backward of autograd through 100 iterations in torch, over the library's: in time, and in memory.
AUTOGRAD, AUTOGRAD_TIMES, AUTOGRAD_MEMORY = "torch, two logsumexp", 10.0, 20.0
#: One iteration of a peer over one of the library.
PEER_ITERATIONS = {"OTT-JAX": 8.0, "POT stabilised": 25.0, "GeomLoss": 50.0}


@dataclass(frozen=True)
class Finding:
    """A target and what was found.

    Attributes:
        wanted, found: In words.
        reached: None where the run has no rows that could tell.
    """

    subject: str
    wanted: str
    found: str
    reached: bool | None


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Every target, at the largest size among the rows (the targets are meant at 4096)."""
    n = max((row.n for row in rows if row.case in ("iteration", "arrival") and row.batch == 1), default=0)
    single = [row for row in rows if row.n == n and row.batch == 1]
    found = [_floor(single, 0.05, ORDER, 1.8)]
    found += [_floor(single, 1e-3, order, 1.0) for order in ("clustered", "raster")]
    found += [_iterations(single, peer, least) for peer, least in PEER_ITERATIONS.items()]
    found += [_arrival(single, target, least) for target, least in ARRIVALS.items()]
    found.append(_memory([row for row in rows if row.case == "memory"]))
    for count, side in ((4096, 32), (256, 128)):
        batch = [row for row in rows if row.case == "batch" and (row.batch, row.n) == (count, side)]
        found += [_batch(batch, f"batch {count} x {side} x {side}", "a loop over POT",
                         lambda row: row.method.startswith("POT"), 10.0),
                  _batch(batch, f"batch {count} x {side} x {side}", "batched torch",
                         lambda row: row.method.startswith("torch"), 3.0)]
    return found + gradient_findings(rows)


def gradient_findings(rows: Sequence[Row]) -> list[Finding]:
    """Of the backward, at the largest size that has one."""
    n = max((row.n for row in rows if row.case == "gradient"), default=0)
    rows = [row for row in rows if row.case.startswith("gradient") and row.n == n]
    found = []
    for loss in (loss for loss in LOSSES if not loss.startswith("value")):
        ours = next((row for row in rows if row.case == "gradient" and row.method == NAME and row.loss == loss
                     and row.convention == "kl"), None)
        right = ours is not None and ours.status == "reached"
        found.append(_finding(f"backward, {loss}", "<= 1 forward, right", ours and backward_of_forward(ours),
                              lambda value, right=right: right and value <= 1.0, "{:.2f}"))  # type: ignore[misc]
    for case, subject, least in (("gradient", "forward and backward", AUTOGRAD_TIMES),
                                 ("gradient memory", "memory of forward and backward", AUTOGRAD_MEMORY)):
        ratio = next((row.of_ours for row in rows if row.case == case and row.method == AUTOGRAD
                      and row.loss == LOSSES[0]), None)
        found.append(_finding(subject, f">= {least:g} x autograd, 100 iterations", ratio,
                              lambda value, least=least: value >= least, "{:.1f}"))  # type: ignore[misc]
    return found


def backward_of_forward(row: Row) -> float | None:
    """The backward's time over the forward's."""
    if row.backward is None or row.seconds is None or row.seconds <= row.backward:
        return None
    return row.backward / (row.seconds - row.backward)


def peers_of(rows: Iterable[Row], target: Target, n: int, order: str = ORDER) -> list[Row]:
    """Rows of the peers that may reach this target."""
    return [row for row in rows if row.case == "arrival" and row.method != NAME and row.n == n and row.order == order
            and (row.eps, row.tau, row.target) == (target.reg, target.reg_m, target.violation)
            and row.status != "missing"]


def best(rows: Sequence[Row]) -> Row | None:
    """The peer that is nearest to the library: the quickest to arrive, else the one whose bound is the least.

    A row that did not arrive counts by its longest run, a lower bound.  Wrong answers do not count.
    """
    candidates = [row for row in rows if row.status in ("reached", "slow") and row.of_ours is not None]
    return min(candidates, key=lambda row: (row.of_ours, row.status != "reached"), default=None)


def _floor(rows: Sequence[Row], eps: float, order: str, most: float) -> Finding:
    row = next((row for row in rows if row.case == "iteration" and row.method == NAME and row.setting == "textbook"
                and row.eps == eps and row.order == order), None)
    return _finding(f"iteration, eps {eps:g}, {order}", f"<= {most:g} C.sum()", row and row.of_floor,
                    lambda value: value <= most, "{:.2f}")


def _iterations(rows: Sequence[Row], peer: str, least: float) -> Finding:
    ratios = [row.of_ours for row in rows if row.case == "iteration" and row.method == peer and row.of_ours]
    return _finding(f"iteration of {peer}", f">= {least:g} of ours", min(ratios, default=None),
                    lambda value: value >= least, "{:.1f}")


def _arrival(rows: Sequence[Row], target: Target, least: float) -> Finding:
    subject, wanted = str(target), f">= {least:g} x the best peer"
    peers = peers_of(rows, target, rows[0].n) if rows else []
    ours = [row for row in rows if row.case == "arrival" and row.method == NAME and row.order == ORDER
            and (row.eps, row.tau, row.target) == (target.reg, target.reg_m, target.violation)]
    if not peers or not ours:
        return Finding(subject, wanted, "not measured", None)
    if any(row.status != "reached" for row in ours):
        return Finding(subject, wanted, "the library itself did not arrive", False)
    nearest = best(peers)
    if nearest is None:
        return Finding(subject, wanted, "no peer arrives: every plan is wrong", True)
    assert nearest.of_ours is not None
    enough = nearest.of_ours >= least
    if nearest.status == "reached":
        return Finding(subject, wanted, f"{nearest.of_ours:.1f} ({nearest.method}, {nearest.setting})", enough)
    found = f"> {nearest.of_ours:.0f}: {nearest.method} not there, at {nearest.violation:.1e}"
    return Finding(subject, wanted, found, True if enough else None)


def _memory(rows: Sequence[Row]) -> Finding:
    row = max(rows, key=lambda row: row.n, default=None)
    return _finding("extra memory of a solve", "<= 10% of C", row and row.of_floor, lambda value: value <= 0.1,
                    "{:.1%}")


def _batch(rows: Sequence[Row], subject: str, rival: str, chosen: Callable[[Row], bool], least: float) -> Finding:
    ratios = [row.of_ours for row in rows if chosen(row) and row.of_ours and row.status in ("reached", "slow")]
    return _finding(subject, f">= {least:g} x {rival}", min(ratios, default=None), lambda value: value >= least,
                    "{:.1f}")


def _finding(subject: str, wanted: str, value: float | None, holds: Callable[[float], bool], form: str) -> Finding:
    if value is None:
        return Finding(subject, wanted, "not measured", None)
    return Finding(subject, wanted, form.format(value), holds(value))
