r"""POT's unbalanced Sinkhorn functions, computed by uotlib: same arguments, same kind of array back.

Put ``from uotlib.compat.pot import sinkhorn_unbalanced, sinkhorn_unbalanced2`` in place of the import from
``ot.unbalanced``.  Where POT solves another problem than the arguments say, this does too, with a UserWarning:

- Several histograms ``b`` (m, k) are always solved with ``reg_type="entropy"``, whatever ``reg_type`` and ``c`` say.
- With both marginals exact and different totals the plan's column sums are ``b``, its row sums proportional to ``a``.

What differs from POT 0.9.7, each time because the answer would be wrong or missing there:

- ``total_cost`` is the objective that is minimised.  POT's leaves out the terms of total mass of every divergence.
- ``stopThr`` bounds the violation of `uotlib.Solution`, in place of POT's relative change of the scalings.
- Zero masses take their point out of the problem, tiny ``reg`` works, bad input and unknown keyword arguments raise,
  and a run that ends before ``stopThr`` warns (`uotlib.ConvergenceWarning`).
- Gradients for torch input are those of the solution itself, by implicit differentiation; POT differentiates through
  the iterations.  What ``log`` returns is constant.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..api import unbalanced_sinkhorn
from ..options import Progress, SolverOptions
from ..problem import TOTALS_RTOL
from ..solution import Solution

#: POT's methods, and which of uotlib's runs for each.
METHODS = {"sinkhorn": "sinkhorn", "sinkhorn_stabilized": "auto", "sinkhorn_translation_invariant": "auto",
           "sinkhorn_reg_scaling": "auto"}

#: NumPy array, torch tensor, or (nested) list of numbers.
Array = Any


def sinkhorn_unbalanced(a: Array, b: Array, M: Array, reg: float, reg_m: Any, method: str = "sinkhorn",
                        reg_type: str = "kl", c: Array = None, warmstart: tuple[Array, Array] | None = None,
                        numItermax: int = 1000, stopThr: float = 1e-6, verbose: bool = False, log: bool = False, *,
                        tau: float | None = None) -> Any:
    r"""Plan of entropic unbalanced transport; ``ot.unbalanced.sinkhorn_unbalanced`` by uotlib.

    .. math::
        \min_{T \ge 0} \langle M, T\rangle + \mathtt{reg}\,\mathrm{KL}(T\,|\,c)
        + \mathtt{reg\_m}_1 \mathrm{KL}(T\mathbf 1\,|\,a) + \mathtt{reg\_m}_2 \mathrm{KL}(T^\top\mathbf 1\,|\,b)

    Args:
        a: Masses (n,), non-negative; None or empty is uniform with total 1.
        b: Masses (m,), or k histograms (m, k) for as many problems; None or empty is uniform with total 1.
        M: Cost (n, m), +inf for a forbidden pair.  All arrays are NumPy or all are torch; lists follow the others.
        reg: eps > 0, in units of the cost.
        reg_m: tau > 0 of both marginals, or one or two of them in any indexable; inf makes a marginal exact.  Both
            exact with different totals, a counts times sum(b)/sum(a), which is the plan that POT ends with.
        method: "sinkhorn" is the textbook iteration, step for step POT's.  "sinkhorn_stabilized",
            "sinkhorn_translation_invariant" and "sinkhorn_reg_scaling" run uotlib's ``method="auto"``, which does what
            each of them is for.
        reg_type: "kl", or "entropy" for :math:`\mathtt{reg}\sum T(\log T - 1)`.  As in POT, several histograms are
            solved with "entropy"; for "kl", call `uotlib.unbalanced_sinkhorn` with b of shape (k, m).
        c: Reference measure (n, m) of the "kl" term, non-negative; None is :math:`ab^\top`.  As in POT, it has no
            effect with "entropy" or several histograms (with a warning, unless it is all ones).
        warmstart: (log u, log v) with T = u K v, of shapes (n,) and (m,) or (n, k) and (m, k): what ``log`` returns.
        numItermax: Most iterations (passes over the cost, for methods other than "sinkhorn").
        stopThr: Violation at which to stop; 0 runs ``numItermax`` iterations.
        verbose: Print the violation every 50 passes.
        log: Return (result, dict) instead of the result.
        tau: Absorption threshold of "sinkhorn_stabilized", and no other method; without effect: all is logarithms.

    Returns:
        The plan (n, m); for several histograms the transport costs <M, T>, (k,).  NumPy for NumPy, torch on the same
        device for torch, in the inputs' common type (solved in float32 or float64).  With ``log``, also a dict:
        "err", the violation at every check; "logu" (n,) and "logv" (m,), or (n, k) and (m, k); "cost", <M, T>; and
        "total_cost", the whole objective of the a that was given, divergences with their terms of total mass.

    Raises:
        TypeError: for unknown keywords, arrays that are neither NumPy, torch nor lists, or mixed.
        ValueError: for shapes, signs, NaN, and settings that do not exist (messages of the solver call M ``cost``),
            and for one empty marginal where both are exact.

    Warns:
        UserWarning: where POT solves another problem than the arguments say, and this does too (see above).
        ConvergenceWarning: if ``numItermax`` ends before ``stopThr``.

    Example:
        >>> import numpy as np
        >>> from uotlib.compat.pot import sinkhorn_unbalanced
        >>> plan = sinkhorn_unbalanced([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 1.0, 1.0)
        >>> np.round(plan, 4).tolist()
        [[0.3221, 0.1185], [0.1185, 0.3221]]

    Source: the interface is POT 0.9.7's, Flamary et al. 2021, *POT: Python Optimal Transport*; the algorithms are
    those of `uotlib.unbalanced_sinkhorn`.
    """
    run = _solve(a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, log, tau)
    result = run.back(run.linear_cost(run.solution) if run.histograms else run.solution.plan)
    return (result, run.log()) if log else result


def sinkhorn_unbalanced2(a: Array, b: Array, M: Array, reg: float, reg_m: Any, method: str = "sinkhorn",
                         reg_type: str = "kl", c: Array = None, warmstart: tuple[Array, Array] | None = None,
                         returnCost: str = "linear", numItermax: int = 1000, stopThr: float = 1e-6,
                         verbose: bool = False, log: bool = False, *, tau: float | None = None) -> Any:
    r"""Cost of entropic unbalanced transport; ``ot.unbalanced.sinkhorn_unbalanced2`` by uotlib.

    Arguments, dict and errors are those of `sinkhorn_unbalanced`, and

    Args:
        returnCost: "linear" for <M, T>; "total" for the whole objective, also where b is several histograms (POT
            returns the linear cost there).

    Returns:
        A scalar, or (k,) for several histograms; for torch input differentiable in a, b, M, reg, reg_m and c.

    Example:
        >>> import torch
        >>> from uotlib.compat.pot import sinkhorn_unbalanced2
        >>> M = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
        >>> sinkhorn_unbalanced2([], [], M, 1.0, 1.0, returnCost="total").backward()
        >>> M.grad  # the plan
        tensor([[0.3221, 0.1185],
                [0.1185, 0.3221]], dtype=torch.float64)
    """
    if returnCost not in ("linear", "total"):
        raise ValueError(f"returnCost must be 'linear' or 'total', got {returnCost!r}")
    run = _solve(a, b, M, reg, reg_m, method, reg_type, c, warmstart, numItermax, stopThr, verbose, log, tau)
    result = run.back(run.linear_cost(run.solution) if returnCost == "linear" else run.total_cost(run.solution))
    return (result, run.log()) if log else result


@dataclass
class _Run:
    """A solved problem, and the way back to the user's arrays."""

    solution: Solution  # of the problem with cost M, or M - reg log c where there is a reference measure c
    cost: Tensor  # M
    measured: bool  # whether there is a c
    reg: float | Tensor  # eps, which may require grad
    constant: float | Tensor  # what the solver's objective lacks, in units of reg
    shifts: tuple[float | Tensor, float | Tensor]  # log u - f/reg and log v - g/reg
    histograms: bool  # whether b was two-dimensional
    back: Callable[[Tensor], Array]  # from a tensor to the kind and type of array that came in
    violations: list[float]  # at every check

    def linear_cost(self, solution: Solution) -> Tensor:
        """<M, T>, () or (k,); an empty entry of the plan costs nothing, be it forbidden."""
        if not self.measured:
            return solution.transport_cost
        plan = solution.plan
        cost = torch.where(torch.isfinite(self.cost), self.cost, 0.0)
        return torch.where(plan > 0, plan * cost, 0.0).sum(dtype=torch.float64).to(plan.dtype)

    def total_cost(self, solution: Solution) -> Tensor:
        """The whole objective, () or (k,)."""
        return solution.value + self.reg * self.constant

    def log(self) -> dict[str, Any]:
        """POT's dict, of constants."""
        with torch.no_grad():
            constant = self.solution._detached()
            log_u = constant.f / _number(self.reg) + self.shifts[0]
            log_v = constant.g / _number(self.reg) + self.shifts[1]
            return {"err": self.violations or [float(constant.violation.max())],
                    "logu": self.back(log_u.mT if self.histograms else log_u),
                    "logv": self.back(log_v.mT if self.histograms else log_v),
                    "cost": self.back(self.linear_cost(constant)),
                    "total_cost": self.back(self.total_cost(constant))}


def _solve(a: Array, b: Array, M: Array, reg: Any, reg_m: Any, method: str, reg_type: str, c: Array, warmstart: Any,
           numItermax: int, stopThr: float, verbose: bool, log: bool, tau: float | None) -> _Run:
    method, reg_type = _named("method", method, METHODS), _named("reg_type", reg_type, ("kl", "entropy"))
    _check_limits(method, numItermax, stopThr, tau)
    tensors, back = _tensors({"M": M, "a": a, "b": b, "c": c})
    cost, mass_a, mass_b, reference = tensors["M"], tensors["a"], tensors["b"], tensors["c"]
    if cost is None or cost.ndim != 2:
        raise ValueError(f"M must have shape (n, m), got {'nothing' if cost is None else tuple(cost.shape)}")
    n, m = cost.shape
    if mass_a is not None and tuple(mass_a.shape) != (n,):
        raise ValueError(f"a must have shape ({n},) to fit M, got {tuple(mass_a.shape)}")
    if mass_b is not None and (mass_b.ndim not in (1, 2) or len(mass_b) != m):
        raise ValueError(f"b must have shape ({m},) or ({m}, k) to fit M, got {tuple(mass_b.shape)}")
    histograms = False
    if mass_b is not None and mass_b.ndim == 2:
        histograms, mass_b = True, mass_b.mT
    if reference is not None:
        overruled = "several histograms" if histograms else "reg_type='entropy'" if reg_type == "entropy" else ""
        reference = _checked_reference(reference, cost, overruled)
    if histograms and reg_type == "kl":
        warnings.warn("several histograms are solved with reg_type='entropy', as POT does whatever reg_type says; for "
                      "'kl' call uotlib.unbalanced_sinkhorn with b of shape (k, m)", UserWarning, stacklevel=3)
        reg_type = "entropy"
    reg, penalties = _scalar("reg", reg), _pair(reg_m)
    by_product = reg_type == "kl" and reference is None
    constant: float | Tensor = 0.0 if reference is None else reference.sum()
    shifts: tuple[float | Tensor, float | Tensor] = (0.0, 0.0)
    rescaled = _rescaled(mass_a, mass_b, cost) if all(_number(tau) == math.inf for tau in penalties) else None
    if rescaled is not None:
        mass_a, total, scale = rescaled
        log_scale = scale.detach().log()[..., None]
        shifts = (0.0 if by_product else -log_scale, log_scale)  # POT's next u = a/(Kv), v = b/(K'u) from this v
        if by_product:  # KL(T|ab') - KL(T|s ab') = m(T) log s - (s - 1) m(a) m(b), with m(T) = m(b) = s m(a)
            constant = scale * total * (scale.log() - (scale - 1) * total)
    violations: list[float] = []

    def progress(state: Progress) -> None:
        if verbose and len(violations) % 50 == 0:
            print(f"pass {state.n_iter:5d}  eps {state.reg:.3g}  violation {state.violation:.3e}")
        violations.append(state.violation)

    # reg KL(T|c) is, up to the constant reg sum(c), the "entropy" term of the cost M - reg log c.
    solution = unbalanced_sinkhorn(
        cost if reference is None else _folded(cost, reference, reg), mass_a, mass_b, reg=reg, reg_m=penalties,
        reg_type="kl" if by_product else "entropy", method=METHODS[method], max_iter=int(numItermax),
        tol=float(stopThr), init=_start(warmstart, _number(reg), cost, histograms),
        options=SolverOptions(progress=progress if verbose or log else False))
    return _Run(solution, cost, reference is not None, reg, constant, shifts, histograms, back, violations)


def _named(name: str, value: object, known: Sequence[str] | dict[str, str]) -> str:
    """A setting in lower case, as POT reads it."""
    if not isinstance(value, str) or value.lower() not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value.lower()


def _check_limits(method: str, numItermax: object, stopThr: object, tau: object) -> None:
    if isinstance(numItermax, bool) or not isinstance(numItermax, int | np.integer):
        raise TypeError(f"numItermax must be an int, got {type(numItermax).__name__}")
    if numItermax < 1:
        raise ValueError(f"numItermax must be at least 1, got {numItermax}")
    for name, value in (("stopThr", stopThr), *([] if tau is None else [("tau", tau)])):
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if tau is not None and method != "sinkhorn_stabilized":
        raise ValueError(f"tau belongs to method='sinkhorn_stabilized', got it with method={method!r}")


def _tensors(arrays: dict[str, Array]) -> tuple[dict[str, Tensor | None], Callable[[Tensor], Array]]:
    """Tensors (sharing memory where they can), None for what is absent or empty, and the way back."""
    present = {name: array for name, array in arrays.items() if not _empty(array)}
    for name, array in present.items():
        if not isinstance(array, Tensor | np.ndarray | list | tuple):
            raise TypeError(f"{name} must be a NumPy array, a torch tensor or a list, got {type(array).__name__}")
    torches = {name: array for name, array in present.items() if isinstance(array, Tensor)}
    numpys = [name for name, array in present.items() if isinstance(array, np.ndarray)]
    if torches and numpys:
        raise TypeError(f"arrays must be all NumPy or all torch, got torch for {', '.join(torches)} "
                        f"and NumPy for {', '.join(numpys)}")
    tensors: dict[str, Tensor | None] = dict.fromkeys(arrays)
    if torches:
        like = torches.get("M", next(iter(torches.values())))
        for name, array in present.items():
            listed = not isinstance(array, Tensor)
            tensors[name] = torch.tensor(array, dtype=like.dtype, device=like.device) if listed else array
        dtype = functools.reduce(torch.promote_types, (array.dtype for array in torches.values()))
        return tensors, lambda answer: answer.to(dtype)
    for name, array in present.items():
        tensors[name] = _from_numpy(name, np.asarray(array))
    kinds = [np.asarray(array).dtype for array in present.values()]
    floating = [kind for kind in kinds if kind.kind == "f"]
    result = np.result_type(*(floating if len(floating) == len(kinds) else [*floating, np.float64]))
    return tensors, lambda answer: answer.numpy().astype(result, copy=False)[()]


def _empty(array: Array) -> bool:
    """POT's way to say uniform: an empty array or list; None too."""
    if array is None:
        return True
    if isinstance(array, Tensor | np.ndarray):
        return array.ndim > 0 and len(array) == 0
    return isinstance(array, list | tuple) and len(array) == 0


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold real numbers in at most double precision, got dtype {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not native.flags.writeable or any(stride < 0 for stride in native.strides):
        native = native.copy()
    return torch.from_numpy(native)


def _scalar(name: str, value: Any) -> float | Tensor:
    """A number, or a tensor of one element as a scalar (which may require grad)."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be a single number, got shape {tuple(value.shape)}")
        return value.reshape(())
    if isinstance(value, bool) or not (isinstance(value, int | float | np.integer | np.floating)
                                       or (isinstance(value, np.ndarray) and value.size == 1)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(np.asarray(value).reshape(()))


def _pair(reg_m: Any) -> tuple[float | Tensor, float | Tensor]:
    if isinstance(reg_m, Tensor | np.ndarray):
        reg_m = list(reg_m.reshape(-1))
    reg_m = reg_m if isinstance(reg_m, list | tuple) else [reg_m]
    if len(reg_m) not in (1, 2):
        raise ValueError(f"reg_m must be a number or hold one or two of them, got {len(reg_m)}")
    penalties = [_scalar("reg_m", value) for value in reg_m]
    return penalties[0], penalties[-1]


def _checked_reference(c: Tensor, cost: Tensor, overruled: str) -> Tensor | None:
    if c.shape != cost.shape:
        raise ValueError(f"c must have the shape of M, {tuple(cost.shape)}, got {tuple(c.shape)}")
    if c.device != cost.device:
        raise ValueError(f"c is on {c.device} but M is on {cost.device}")
    if not c.dtype.is_floating_point:
        raise TypeError(f"c must have a floating-point dtype, got {c.dtype}")
    values = c.detach()
    if overruled:
        if values.device.type != "cpu" or bool((values != 1).any()):
            warnings.warn(f"c has no effect with {overruled}, as in POT: the reference measure is all ones",
                          UserWarning, stacklevel=4)
        return None
    if values.device.type == "cpu":
        bad = ~(values >= 0) | torch.isinf(values)
        if bool(bad.any()):
            raise ValueError(f"c must be finite and non-negative, got {values[bad][0].item():g} "
                             f"({int(bad.sum())} such entries)")
    return c


def _rescaled(a: Tensor | None, b: Tensor | None, cost: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """a (..., n) with the total of b, its own total () and the ratio s (...), for marginals that are both exact.

    None where totals agree to rounding, or where there is something for the solver to refuse.
    """
    present = [tensor for tensor in (cost, a, b) if tensor is not None]
    if any(tensor.device != cost.device or not tensor.dtype.is_floating_point for tensor in present):
        return None
    dtype = _floating(*present)
    a, b = (torch.full((points,), 1 / max(points, 1), dtype=dtype, device=cost.device) if mass is None else mass
            for mass, points in zip((a, b), cost.shape, strict=True))
    total_a, total_b = a.double().sum(-1), b.double().sum(-1)
    for mass, total in ((a, total_a), (b, total_b)):
        if not bool((mass >= 0).all() & ((total > 0) & (total < math.inf)).all()):
            return None
    apart = (total_a - total_b).abs() > TOTALS_RTOL[dtype] * torch.maximum(total_a, total_b)
    if not bool(apart.any()):
        return None
    where = f" ({int(apart.sum())} of {apart.numel()} histograms)" if apart.ndim else ""
    warnings.warn(f"incompatible marginals: reg_m is infinite on both sides, sum(a) = {total_a.item():g} and sum(b) = "
                  f"{total_b[apart][0].item():g}{where}; as POT does, column sums are b and row sums proportional to a",
                  UserWarning, stacklevel=4)
    scale = torch.where(apart, total_b / total_a, 1.0)
    return (a * scale[..., None]).to(dtype), total_a, scale


def _floating(*tensors: Tensor) -> torch.dtype:
    """The type that these are solved in."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def _folded(cost: Tensor, reference: Tensor, reg: float | Tensor) -> Tensor:
    """M - reg log c, +inf where c is 0; differentiable without NaN there."""
    some, dtype = reference > 0, _floating(cost, reference)
    log = torch.where(some, reference, 1.0).to(dtype).log()
    return torch.where(some, cost.to(dtype) - reg * log, torch.inf)


def _start(warmstart: Any, reg: float, cost: Tensor, histograms: bool) -> tuple[Tensor, Tensor] | None:
    """POT's (log u, log v) as potentials at this reg, (..., n) and (..., m)."""
    if warmstart is None:
        return None
    if not isinstance(warmstart, tuple | list) or len(warmstart) != 2:
        raise TypeError("warmstart must be a pair (log u, log v)")
    start = []
    for index, (part, points) in enumerate(zip(warmstart, cost.shape, strict=True)):
        name = f"warmstart[{index}]"
        tensor = part if isinstance(part, Tensor) else _from_numpy(name, np.asarray(part)).to(cost.device)
        if tensor.ndim not in ((1, 2) if histograms else (1,)) or len(tensor) != points:
            shapes = f"({points},)" + (f" or ({points}, k)" if histograms else "")
            raise ValueError(f"{name} must have shape {shapes}, got {tuple(tensor.shape)}")
        if tensor.device != cost.device:
            raise ValueError(f"{name} is on {tensor.device} but M is on {cost.device}")
        potential = reg * tensor.detach().double()
        start.append(potential.mT if tensor.ndim == 2 else potential)
    return start[0], start[1]


def _number(reg: float | Tensor) -> float:
    return float(reg.detach()) if isinstance(reg, Tensor) else reg
