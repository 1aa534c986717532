"""OTT-JAX's gradients, by its implicit differentiation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..case import Target
from ..methods.base import need
from ..methods.ott import OTT as FORWARD
from ..methods.ott import Setting, linear_problem, solver
from ..search import search
from .base import LOSSES, Differentiable, Pass, Task, draw_task

#: The setting of its forward that is the best at eps 1e-2.
SETTING = Setting(anderson=3, recenter=True)
#: Residual of its linear system: what the library is asked for.
RESIDUAL = 1e-4


def ott_pass(task: Task, iterations: int) -> Pass:
    """Compiled, forward and backward apart.

    With a multiple of the identity as ``precondition_fun`` and equal penalties its system is symmetric, which it is
    told: conjugate gradients then do without the normal equations, its default, which at n = 256 took three times as
    long for a gradient with nine times the error.
    """
    jax = need("jax", "ott-jax")
    need("ott", "ott-jax")
    import jax.numpy as jnp
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem as linear
    from ott.solvers.linear import implicit_differentiation

    one, points = task.problem, len(task.x)
    given = linear_problem(one, SETTING)
    # The system is scaled, and its tolerance to its right-hand side: lineax calls small numbers a singular matrix.
    solve = solver(SETTING, iterations, implicit_diff=implicit_differentiation.ImplicitDiff(
        symmetric=True, precondition_fun=lambda marginal: points * marginal,
        solver_kwargs={"rtol": RESIDUAL, "atol": RESIDUAL / one.reg}))

    def unit(points: Any) -> Any:
        return points / jnp.linalg.norm(points, axis=-1, keepdims=True)

    def loss(leaf: Any, a: Any, b: Any, z: Any, v: Any) -> Any:
        cost = 1 - unit(leaf) @ unit(z).T if task.to_features else leaf
        output = solve(linear.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=one.reg), a=a, b=b,
                                            tau_a=given.tau_a, tau_b=given.tau_b))
        return task.loss_of(output.matrix, v) if task.of_plan else output.reg_ot_cost

    leaf, z, v = (jnp.asarray(part.numpy()) for part in (task.x if task.to_features else one.cost, task.z, task.v))
    inputs = leaf, given.a, given.b, z, v
    both = jax.jit(lambda leaf, *rest: jax.vjp(lambda leaf: loss(leaf, *rest), leaf))
    forward = both.lower(*inputs).compile()
    # Of constants, XLA would compute the first product of the solver by an interpreter: minutes at 4096 points.
    backward = jax.jit(lambda pull: pull(jnp.ones(()))[0]).lower(jax.eval_shape(both, *inputs)[1]).compile(
        compiler_options={"xla_disable_hlo_passes": "constant_folding"})

    def tensor(gradient: Any) -> Tensor:
        return torch.from_numpy(np.array(gradient, dtype=np.float64))

    wait = jax.block_until_ready
    return Pass(lambda _: wait(forward(*inputs)), lambda made: wait(backward(made[1])), tensor)


@lru_cache
def ott_iterations(n: int, target: Target) -> int:
    """To the target's violation, as the judge sees it."""
    drawn = draw_task(LOSSES[0], n, target).problem.but(reg_type="entropy")
    return search(FORWARD[0].prepare(drawn), drawn, target.violation, budget=5.0).iterations


OTT = Differentiable("OTT-JAX", "Anderson 3, ImplicitDiff", ott_pass, ott_iterations, convention="entropy",
                     package="ott-jax", affine=False)
