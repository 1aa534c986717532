r"""OTT-JAX's Sinkhorn.  Its unbalanced fixed point is the entropy convention, with ``tau = rho / (rho + eps)``.

The loop is OTT's own ``one_iteration`` (momentum, Anderson, recentring, scheduler and all) in a ``fori_loop`` of
variable length: compiled once a problem, no errors computed.  `Sinkhorn` itself compiles anew for every
``max_iterations`` and computes an error every ``inner_iterations``; its potentials are the same (tested).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..case import Problem
from .base import Answer, Method, Runner, need


@dataclass(frozen=True)
class Setting:
    """What OTT offers to be faster.

    Args:
        lse_mode: Log-sum-exps, or scalings with a stored kernel.
        momentum: 1 is none; 1.5 overrelaxes.
        anderson: Iterates mixed; 0 is off.
        recenter: Translate the potentials at every step.
        decay: Factor of eps an iteration from ``start`` down to the target; 1 is no schedule.
    """

    lse_mode: bool = True
    momentum: float = 1.0
    anderson: int = 0
    recenter: bool = False
    decay: float = 1.0
    start: float = 0.3
    x64: bool = False

    def __str__(self) -> str:
        parts = ["lse" if self.lse_mode else "scalings", "float64" if self.x64 else "float32"]
        parts += [f"momentum {self.momentum:g}"] * (self.momentum != 1) + [f"Anderson {self.anderson}"] * (
            self.anderson > 0) + ["recentred"] * self.recenter + [f"eps decay {self.decay:g}"] * (self.decay < 1)
        return ", ".join(parts)


def linear_problem(problem: Problem, setting: Setting) -> Any:
    """The problem in OTT's terms."""
    import jax.numpy as jnp
    from ott.geometry import epsilon_scheduler, geometry
    from ott.problems.linear import linear_problem as linear

    cost, a, b = (jnp.asarray(tensor.cpu().numpy()) for tensor in problem.arguments(
        torch.float64 if setting.x64 else torch.float32))
    eps = problem.reg
    schedule = epsilon_scheduler.Epsilon(eps, init=max(1.0, setting.start / eps), decay=setting.decay)
    tau = problem.reg_m / (problem.reg_m + eps)
    return linear.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=schedule if setting.decay < 1 else eps),
                                a=a, b=b, tau_a=tau, tau_b=tau)


def solver(setting: Setting, iterations: int, **how: Any) -> Any:
    """OTT's solver for at most this many iterations, with one look at the error after the last.

    Args:
        how: What else OTT's class takes: how it is differentiated.
    """
    from ott.solvers.linear import acceleration, sinkhorn

    return sinkhorn.Sinkhorn(
        lse_mode=setting.lse_mode, threshold=0.0, inner_iterations=iterations, min_iterations=iterations,
        max_iterations=iterations, recenter_potentials=setting.recenter,
        momentum=acceleration.Momentum(value=setting.momentum) if setting.momentum != 1 else None,
        anderson=acceleration.AndersonAcceleration(memory=setting.anderson) if setting.anderson else None, **how)


def ott_method(setting: Setting) -> Method:
    def prepare(problem: Problem) -> Runner:
        jax = need("jax", "ott-jax")
        need("ott", "ott-jax")
        ours = solver(setting, 1 << 30)
        with jax.enable_x64(setting.x64):
            linear = linear_problem(problem, setting)

            def loop(linear: Any, iterations: Any) -> Any:
                init = ours.initializer(linear, lse_mode=setting.lse_mode)
                state = ours.init_state(linear, init)
                state = jax.lax.fori_loop(
                    0, iterations, lambda index, state: ours.one_iteration(linear, state, index, False), state)
                output = ours.output_from_state(linear, state)
                return output.f, output.g

            compiled = jax.jit(loop).lower(linear, 1).compile()

        def run(iterations: int) -> Any:
            with jax.enable_x64(setting.x64):
                return jax.block_until_ready(compiled(linear, iterations))

        def answer(raw: Any, _: int) -> Answer:
            import numpy as np

            f, g = (torch.from_numpy(np.array(part, dtype=np.float64)) for part in raw)
            return Answer(f, g)

        return Runner(run, answer)

    return Method("OTT-JAX", str(setting), prepare, convention="entropy", package="ott-jax")


SETTINGS = [Setting(), Setting(momentum=1.3), Setting(momentum=1.5), Setting(momentum=1.8), Setting(recenter=True),
            Setting(momentum=1.5, recenter=True), Setting(anderson=3), Setting(anderson=5), Setting(anderson=10),
            Setting(anderson=3, recenter=True), Setting(anderson=3, decay=0.9),
            Setting(decay=0.9), Setting(decay=0.9, momentum=1.5), Setting(decay=0.9, momentum=1.5, recenter=True),
            Setting(decay=0.97, momentum=1.5), Setting(lse_mode=False), Setting(lse_mode=False, momentum=1.5),
            Setting(x64=True, momentum=1.5), Setting(decay=0.9, momentum=1.5, x64=True)]
#: The first is the best where eps is not tiny, the second at eps 1e-4.
OTT = (ott_method(Setting(anderson=3, recenter=True)), ott_method(Setting(momentum=1.5, recenter=True)))
