"""The solve itself as an operator, for who cannot call it directly: torch.compile, and transforms of torch.func."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import batching
from .backends import BACKENDS
from .costs import MATERIALIZE_BYTES, Cost, cost_of_kind
from .operators import cost_matrix, kept_in
from .outcome import Outcome, Pair
from .primitive import Primitive
from .problem import Problem
from .settings import Run, Settings, flat_problem, kernel_of
from .solver import solve


def _run_cost_matrix(prepared: Sequence[Tensor], n: int, m: int, settings: str) -> Tensor:
    how = Settings.decode(settings)
    return cost_matrix(cost_of_kind(how.cost), tuple(prepared), n, m, how.dtype, BACKENDS[how.backend],
                       how.block_bytes, how.kept)


def _empty_cost_matrix(prepared: Sequence[Tensor], n: int, m: int, settings: str) -> Tensor:
    return prepared[0].new_empty(len(prepared[0]), n, m, dtype=Settings.decode(settings).kept)


_cost_matrix = Primitive("cost_matrix", "(Tensor[] prepared, int n, int m, str settings) -> Tensor", _run_cost_matrix,
                         _empty_cost_matrix, batching.rule_of_cost)


def _run_solve(inputs: Sequence[Tensor], matrix: Tensor | None, items: Tensor | None, start: Sequence[Tensor],
               settings: str, run: str, max_iter: int) -> tuple[Tensor, ...]:
    how, order = Settings.decode(settings), Run.decode(run)
    a, b, reg, tau_a, tau_b, *prepared = inputs
    problem = flat_problem(how, a, b, reg, tau_a, tau_b, items)
    kernel = kernel_of(problem, tuple(prepared), matrix, how)
    outcome = solve(problem, kernel, order.method, max_iter, order.tol, (start[0], start[1]) if start else None,
                    order.options)
    pair = outcome.pair
    answers = (pair.f, pair.g, pair.log_u, pair.log_v, pair.row_lse, pair.col_lse, outcome.violation, outcome.gap,
               outcome.n_iter, outcome.converged, outcome.at_floor)
    return tuple(answer.clone(memory_format=torch.contiguous_format) for answer in answers)


def _empty_solve(inputs: Sequence[Tensor], matrix: Tensor | None, items: Tensor | None, start: Sequence[Tensor],
                 settings: str, run: str, max_iter: int) -> tuple[Tensor, ...]:
    a, b, reg = inputs[:3]
    f, g = (lambda: a.new_empty(a.shape)), (lambda: b.new_empty(b.shape))
    item = reg.new_empty
    return (f(), g(), f(), g(), f(), g(), item(reg.shape), item(reg.shape), item(reg.shape, dtype=torch.int64),
            item(reg.shape, dtype=torch.bool), item(reg.shape, dtype=torch.bool))


_solve = Primitive(
    "solve", "(Tensor[] inputs, Tensor? matrix, Tensor? items, Tensor[] start, str settings, str run, int max_iter) -> "
    f"({', '.join(['Tensor'] * 11)})", _run_solve, _empty_solve, batching.rule_of_solve)


def whole_matrix(cost: Cost, prepared: tuple[Tensor, ...], how: Settings) -> Tensor | None:
    """A cost as one tensor (B', n, m) beside the prepared ones; None if it is one of these, or to be streamed."""
    if cost.dense:
        return None if how.storage is None else kept_in(prepared[0], how.kept)
    _, n, m = cost.shape
    size = len(prepared[0]) * n * m * how.kept.itemsize
    if cost.materialize is False or (cost.materialize is None and size > MATERIALIZE_BYTES):
        if how.storage is not None:
            raise ValueError(f"SolverOptions.storage={how.storage!r} is for costs in memory, and this one of {size} "
                             "bytes is streamed: leave storage out, or set materialize=True")
        return None
    return _cost_matrix(list(prepared), n, m, how.encode())


def solve_as_operator(problem: Problem, prepared: tuple[Tensor, ...], matrix: Tensor | None,
                      start: tuple[Tensor, Tensor] | None, how: Settings, run: Run,
                      max_iter: int) -> Outcome:
    """`uotlib.solver.solve` through torch.ops.uotlib.solve."""
    inputs = [*(tensor.detach() for tensor in problem.inputs), *prepared]
    f, g, log_u, log_v, row_lse, col_lse, *rest = _solve(
        inputs, matrix, problem.cost_items, list(start or ()), how.encode(), run.encode(), max_iter)
    return Outcome(Pair(f, g, log_u, log_v, row_lse, col_lse), *rest)
