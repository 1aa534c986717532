"""What is measured, in order of worth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A module of this package with ``measure(stage)``.

    Args:
        name: Of the module and in the record.
        limit: Seconds that it may take.
        purpose: One line for --help.
    """

    name: str
    limit: float
    purpose: str

    @property
    def module(self) -> str:
        return f"{__package__}.{self.name}"


SECTIONS = (
    Section("build", 130, "the compiled extension, and what python -m uotlib.info says"),
    Section("ceilings", 30, "copy, read, L2, exponentials, a barrier, matrix products: what the device can do"),
    Section("correctness", 60, "every operation of the backend against the float64 reference"),
    Section("dense", 110, "an iteration on dense costs, beside torch, GeomLoss, POT and OTT-JAX"),
    Section("resident", 150, "the cuda backend beside triton, and what its barrier and its memories take"),
    Section("features", 110, "a matrix-free iteration, beside flash-sinkhorn, torch and GeomLoss"),
    Section("native_tests", 120, "pytest -m gpu"),
    Section("backward", 90, "gradients through the plan, to features and to a dense cost; peak memory"),
    Section("small", 60, "batches of small problems"),
    Section("arrival", 100, "time to a violation"),
    Section("sweep", 60, "the backend's sweep beside one read of the cost, and its fallback"),
    Section("unite", 300, "training of examples/unite at 256 px: images a second, memory, matching's share of a step"),
    Section("soak", 560, "the cuda backend: compute-sanitizer, and 10,000 launches of random shapes"),
)
