"""The public solver: what it takes, what it promises, what it refuses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .backends import choose
from .backends.base import Backend
from .costs import Cost
from .exceptions import ConvergenceWarning
from .options import SolverOptions
from .outcome import Outcome
from .problem import Problem, build_problem
from .settings import Run, Settings, kernel_of
from .solution import Solution
from .solve_operator import solve_as_operator, whole_matrix
from .solver import solve
from .tracing import values_hidden

Scalar = float | Tensor

_DEFAULTS = SolverOptions()


def unbalanced_sinkhorn(cost: Tensor | Cost, a: Tensor | None = None, b: Tensor | None = None, *,
                        reg: Scalar, reg_m: Scalar | Sequence[Scalar], reg_type: str = "kl", method: str = "auto",
                        max_iter: int = 1000, tol: float | None = None, init: tuple[Tensor, Tensor] | None = None,
                        grad: str = "implicit", backend: str = "auto",
                        options: SolverOptions | None = None) -> Solution:
    r"""Entropic unbalanced optimal transport between batches of measures, with a certificate.

    .. math::
        \min_{T \ge 0} \langle C, T\rangle + \tau_a \mathrm{KL}(T\mathbf 1\,|\,a)
        + \tau_b \mathrm{KL}(T^\top\mathbf 1\,|\,b) + \varepsilon\,\mathrm{KL}(T\,|\,a b^\top),
        \qquad \mathrm{KL}(p|q) = \sum p\log(p/q) - p + q

    With ``reg_type="entropy"`` the last term is :math:`\varepsilon\sum T(\log T - 1)`.  The plan is
    :math:`T_{ij} = a_i b_j e^{(f_i+g_j-C_{ij})/\varepsilon}` ("kl") or :math:`e^{(f_i+g_j-C_{ij})/\varepsilon}`
    ("entropy"); the two differ where a penalty is finite.

    Args:
        cost: Tensor (..., n, m), +inf for a forbidden pair, or a cost object (`CosineCost`, `SqEuclideanCost`,
            `DotCost`) with features (..., n, d) and (..., m, d).  Any strides.
        a, b: Masses (..., n) and (..., m), finite and >= 0, never renormalised; a zero takes its point out of the
            problem, which is how ragged batches are padded.  None is uniform with total 1.  Batch dimensions of every
            argument broadcast.
        reg: eps > 0, in units of the cost: a float, or a tensor over the batch.
        reg_m: tau > 0, in units of the cost: a float, a tensor over the batch, or a pair of these for (a, b);
            ``math.inf`` makes that marginal exact.
        reg_type: "kl" or "entropy", as POT calls them.
        method: "sinkhorn" is the textbook iteration, step for step POT's.  "auto" anneals eps, translates and
            accelerates: the same fixed point in far fewer passes over the cost.
        max_iter: Most passes over the cost, annealing included (iterations, for "sinkhorn").
        tol: Violation at which an item of the batch is finished: the L1 norm of the dual's gradient over the mass of
            the plan.  None is max(1e-5, u max|f, g| / (4 eps)), u the unit roundoff of the type, and at most 1e-2.  0
            runs exactly ``max_iter`` passes and never waits for the device.
        init: Potentials (f, g), (..., n) and (..., m), to start from at the target eps; the first half-step computes f
            from g.  Constants: no gradient reaches them.
        grad: How outputs depend on cost, masses, ``reg`` and ``reg_m``.  "implicit" (default): as the solution does, by
            the equations that define it, linearised at the pair that was found: exact at convergence, and otherwise
            wrong by a multiple of the violation, 10 to 300 times it at small eps (the default ``tol`` in float32 at eps
            1e-4: typically by 1e-2 or less).  One linear solve, whatever the loss is made of.  "unrolled": as the
            iterations of ``method="sinkhorn"`` do that were run, keeping vectors only.  "envelope": for ``value``
            only, any other output raises.  "none": every output is a constant.  ``value`` has second derivatives
            under "implicit" (not through a compiled function, whose backward PyTorch keeps as a constant).  At a mass
            of zero, gradients are one-sided derivatives ("kl", but for what passes between a row and a column that
            both have none, which is left out) or 0 ("entropy", and a point without allowed pairs whose marginal is
            exact, where the limit is infinite).  With both marginals exact, float32 and eps 1e-3 or less the linear
            solve ends early, with a warning: use float64 there.
        backend: "auto", "native" (C++ on the CPU), "triton" (GPU), "cuda" (one launch a solve on an NVIDIA GPU,
            float32, up to 2^24 columns; not part of "auto") or "reference" (torch, float64 arithmetic).
        options: Schedule, acceleration, the backward's tolerance, memory, progress: `SolverOptions`.

    Returns:
        `Solution`, in float64 if the cost or a mass is, else in float32 (half precision is solved in float32).

    Raises:
        TypeError: for an argument of a wrong type or dtype.
        ValueError: for shapes that do not fit, signs, NaN or -inf (on the CPU; on a GPU looking at values would wait
            for the device, and torch.compile and torch.func.vmap have none to look at: there a NaN shows in the
            potentials and in ``converged``), devices that differ, and different totals with both marginals exact.
        BackendUnavailable: if the backend that was asked for cannot run, with the reason.
        RuntimeError: for inputs with a forward-mode tangent, and under torch.compile of a torch.func transform.

    Warns:
        ConvergenceWarning: if an item is not within ``tol`` after ``max_iter`` passes, or stopped because rounding
            lets the violation fall no further (not under torch.compile and torch.func); from a backward, if its linear
            solve is not within ``adjoint_tol``.

    Example:
        >>> import torch
        >>> from uotlib import unbalanced_sinkhorn
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> solution = unbalanced_sinkhorn(cost, reg=0.5, reg_m=1.0)
        >>> solution.plan
        tensor([[0.3932, 0.0532],
                [0.0532, 0.3932]], dtype=torch.float64)
        >>> bool(solution.converged)
        True

    Source: Chizat et al. 2018, *Scaling algorithms for unbalanced optimal transport problems*, Algorithm 1;
    translation: Sejourne et al. 2022 (arXiv 2201.00730), here for any pair of penalties; acceleration: Walker and Ni
    2011; gradients: Blondel et al. 2022, *Efficient and modular implicit differentiation*, section 2.
    """
    options = _check_settings(method, max_iter, tol, grad, backend, options)
    problem = build_problem(cost, a, b, reg, reg_m, reg_type)
    chosen = choose(backend, problem.device, problem.dtype)
    start = _check_init(init, problem)
    how = Settings(problem.cost.key, reg_type, problem.dtype, chosen.name, options.block_bytes, options.adjoint_tol,
                   options.adjoint_max_iter, _check_storage(options.storage, problem, chosen))
    # A dense cost that is kept in another type stays what it is for its gradient.
    own = problem.cost.dense and how.storage is not None
    prepared = problem.cost.prepare(problem.named[0][1].dtype if own else problem.dtype, problem.smallest_reg)
    constant = tuple([tensor.detach() if tensor.requires_grad or problem.hidden else tensor for tensor in prepared])
    matrix = whole_matrix(problem.cost, constant, how)
    if (matrix is not None and how.storage is not None and problem.device.type == "cpu" and not problem.hidden
            and bool(matrix.isnan().any())):
        raise ValueError(f"cost has finite entries that SolverOptions.storage={how.storage!r} cannot hold: at most "
                         f"{torch.finfo(how.kept).max:g}")
    offered = chosen.product_precisions(problem.device) if matrix is None else ()
    how = replace(how, precision=problem.cost.product_precision(constant, problem.smallest_reg, offered))
    if problem.hidden or (start is not None and values_hidden(*start)):
        if options.progress is not False:
            raise ValueError("SolverOptions.progress must be False under torch.compile and torch.func")
        outcome = solve_as_operator(problem, constant, matrix, start, how, Run(method, tol, options), max_iter)
    else:
        outcome = solve(problem, kernel_of(problem, constant, matrix, how), method, max_iter, tol, start, options)
        _warn(problem, outcome, max_iter, tol)
    return Solution(problem, prepared, matrix, how, outcome, grad, max_iter if tol == 0 else None, start)


def _check_settings(method: object, max_iter: object, tol: object, grad: object, backend: object,
                    options: object) -> SolverOptions:
    if method not in ("auto", "sinkhorn"):
        raise ValueError(f"method must be 'auto' or 'sinkhorn', got {method!r}")
    if isinstance(max_iter, bool) or not isinstance(max_iter, int):
        raise TypeError(f"max_iter must be an int, got {type(max_iter).__name__}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    if tol is not None:
        if isinstance(tol, bool) or not isinstance(tol, int | float):
            raise TypeError(f"tol must be None or a number, got {type(tol).__name__}")
        if not 0 <= tol < math.inf:
            raise ValueError(f"tol must be finite and not negative, got {tol}")
    if grad not in ("implicit", "unrolled", "envelope", "none"):
        raise ValueError(f"grad must be 'implicit', 'unrolled', 'envelope' or 'none', got {grad!r}")
    if grad == "unrolled" and method != "sinkhorn":
        raise ValueError(f"grad='unrolled' differentiates the iterations of method='sinkhorn', got method={method!r}, "
                         "whose acceleration has no clean derivative: use grad='implicit'")
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a str, got {type(backend).__name__}")
    if options is None:
        return _DEFAULTS
    if not isinstance(options, SolverOptions):
        raise TypeError(f"options must be a SolverOptions, got {type(options).__name__}")
    return options


def _check_storage(storage: str | None, problem: Problem, backend: Backend) -> str | None:
    if storage is not None and storage not in backend.storages:
        raise ValueError(f"SolverOptions.storage={storage!r}: the {backend.name} backend keeps costs in the solver's "
                         "type; the triton backend has it")
    if storage is not None and problem.dtype != torch.float32:
        raise ValueError(f"SolverOptions.storage={storage!r} is for costs and masses of float32 or less, got float64")
    return storage


def _check_init(init: object, problem: Problem) -> tuple[Tensor, Tensor] | None:
    if init is None:
        return None
    if not isinstance(init, tuple | list) or len(init) != 2 or not all(isinstance(part, Tensor) for part in init):
        raise TypeError("init must be a pair (f, g) of tensors")
    _, n, m = problem.cost.shape
    start = []
    for name, part, points, side in (("init[0]", init[0], n, problem.rows), ("init[1]", init[1], m, problem.cols)):
        if not part.dtype.is_floating_point:
            raise TypeError(f"{name} must have a floating-point dtype, got {part.dtype}")
        if part.device != problem.device:
            raise ValueError(f"{name} is on {part.device} but the cost is on {problem.device}")
        if part.ndim == 0 or part.shape[-1] != points:
            raise ValueError(f"{name} must have shape (..., {points}), got {tuple(part.shape)}")
        try:
            flat = part.detach().double().expand(*problem.batch_shape, points).reshape(problem.batch, points)
        except RuntimeError as error:
            raise ValueError(f"{name}: batch dimensions {tuple(part.shape[:-1])} do not broadcast to "
                             f"{tuple(problem.batch_shape)}") from error
        if problem.device.type == "cpu" and not values_hidden(part) and bool(torch.isnan(flat).any()):
            raise ValueError(f"{name} must not contain NaN, got {int(torch.isnan(flat).sum())} of them")
        usable = torch.isfinite(flat) & (side.mass > 0)
        start.append(torch.where(usable, flat, 0.0))
    return start[0], start[1]


def _warn(problem: Problem, outcome: Outcome, max_iter: int, tol: float | None) -> None:
    """One warning a call; none with tol = 0, which asked for no test (and must not wait for the device)."""
    if tol == 0 or outcome.all_converged:
        return
    open_items = ~outcome.converged
    worst = float(outcome.violation[open_items].max())  # NaN if any is
    count = f"{int(open_items.sum())} of {problem.batch} problems" if problem.batch_shape else "the problem"
    kind = str(problem.dtype).removeprefix("torch.")
    if math.isnan(worst):
        lost = int(outcome.violation.isnan().sum())
        text = (f"numbers left the range of {kind} in {lost} of {problem.batch} problems: cost / reg is too large for "
                "its precision; raise reg, use float64, or mark forbidden pairs by inf")
    elif bool(outcome.at_floor[open_items].all()):
        text = (f"stopped at the rounding floor of {kind}: {count} reached a "
                f"violation of {worst:.2e}, and tol is below what this precision can show; raise tol or use float64")
    else:
        text = (f"{count} did not reach tol within max_iter={max_iter} passes: violation {worst:.2e}; "
                "raise max_iter or tol")
    warnings.warn(text, ConvergenceWarning, stacklevel=3)
