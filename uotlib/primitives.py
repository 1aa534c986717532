r"""The operators that PyTorch sees, torch.ops.uotlib.*: fake kernels, gradients, batching rules.

Every operator begins with the same five arguments: the inputs of `uotlib.gradients.solved` and a `State`, whose tensors
have one flat batch dimension.  Gradients are one operator, `pull_back`, that is told whose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import batching, matches
from .gradients import joined, potentials, products, second, unrolled, value
from .gradients.solved import COST, Solved
from .primitive import Backward, Primitive
from .problem import Problem
from .settings import Settings, flat_problem

_STATE = "Tensor[] inputs, Tensor[] scalings, Tensor? matrix, Tensor? items, str settings"

#: Gradients to the inputs and own tensors of each operator: of the problem, of ``given``, which are incoming gradients
#: and own tensors (and, for some, results), of the operator's own numbers, and of which are needed.
_GRADIENTS: dict[str, Callable[[Solved, Sequence[Tensor], Sequence[int], Sequence[bool]], list[Tensor | None]]] = {
    "potentials": lambda solved, given, numbers, needs:
        potentials.potential_gradients(solved, given[0], given[1], needs),
    "value": lambda solved, given, numbers, needs: value.envelope_gradients(solved, given[0], needs),
    "product": lambda solved, given, numbers, needs:  # given[1] would be the gradient of the sums, a constant
        products.product_gradients(solved, given[0], given[2], given[3], given[4], numbers[0], bool(numbers[1]), needs),
    "potentials_and_product": lambda solved, given, numbers, needs:
        joined.potentials_and_product_gradients(solved, given[0], given[1], given[2], given[4], given[7], given[8],
                                                numbers[0], bool(numbers[1]), needs),
    "marginal": lambda solved, given, numbers, needs:
        products.marginal_gradients(solved, given[0], numbers[0], needs),
    "plan": lambda solved, given, numbers, needs: products.dense_plan_gradients(solved, given[0], needs),
    "transport_cost": lambda solved, given, numbers, needs:
        products.transport_cost_gradients(solved, given[0], needs),
    "cost_gradient": lambda solved, given, numbers, needs:
        second.cost_gradient_gradients(solved, given[:-1], given[-1], needs),
    "log_sum_exp": lambda solved, given, numbers, needs:
        unrolled.log_sum_exp_gradients(solved, given[0], given[1], given[2], numbers[0], needs),
}


class _Shapes:
    """Empty tensors of the shapes that results have."""

    def __init__(self, inputs: Sequence[Tensor], settings: str) -> None:
        self.inputs, self.dtype = inputs, Settings.decode(settings).dtype
        (self.batch, self.n), self.m = inputs[0].shape, inputs[1].shape[1]

    def vector(self, *shape: int) -> Tensor:
        return self.inputs[0].new_empty(shape)

    def matrix(self, *shape: int) -> Tensor:
        return self.inputs[0].new_empty(shape, dtype=self.dtype)

    def points(self, side: int) -> int:
        return self.m if side else self.n


def _primitive(name: str, own: str, returns: str, compute: Callable[..., Any], empty: Callable[..., Any],
               backward: Backward | None = None, keeps_results: bool = False) -> Primitive:
    """A primitive of a solved problem.

    Args:
        own, returns: Its own arguments, behind the state's, and its results, as a schema.
        compute: Of `Solved` and the own arguments.
        empty: Of `_Shapes` and the own arguments: results without values.
        backward, keeps_results: As of `Primitive`.
    """
    def run(inputs: Sequence[Tensor], scalings: Sequence[Tensor], matrix: Tensor | None, items: Tensor | None,
            settings: str, *arguments: Any) -> Any:
        return compute(Solved.of(inputs, scalings, matrix, items, settings), *arguments)

    def fake(inputs: Sequence[Tensor], scalings: Sequence[Tensor], matrix: Tensor | None, items: Tensor | None,
             settings: str, *arguments: Any) -> Any:
        return empty(_Shapes(inputs, settings), *arguments)

    rule = batching.rule_for_every_cost if name in ("pull_back", "cost_gradient") else batching.rule
    return Primitive(name, f"({_STATE}{own}) -> {returns}", run, fake, rule, backward, keeps_results)


def _complete(gradients: Sequence[Tensor | None], like: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """The gradients that are needed, each a tensor of its own."""
    return [torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device) if gradient is None
            else gradient.to(tensor.dtype).contiguous()
            for gradient, tensor, need in zip(gradients, like, needs, strict=True) if need]


def _pull_back(solved: Solved, of: str, given: Sequence[Tensor], own: Sequence[Tensor], numbers: Sequence[int],
               needs: Sequence[bool]) -> list[Tensor]:
    problem, pair = solved.problem, solved.pair
    inputs = [*problem.inputs, pair.f, pair.g, *solved.kernel.prepared]
    return _complete(_GRADIENTS[of](solved, given, numbers, needs), [*inputs, *own], needs)


def _no_second_derivative(*_: Any) -> NoReturn:
    raise RuntimeError("trying to differentiate twice what cannot be: of a Solution's outputs, value alone has second "
                       "derivatives, with grad='implicit'")


pull_back = _primitive(
    "pull_back", ", str of, Tensor[] given, Tensor[] own, int[] numbers, bool[] needs", "Tensor[]", _pull_back,
    lambda shapes, of, given, own, numbers, needs: [
        tensor.new_empty(tensor.shape) for tensor, need in zip([*shapes.inputs, *own], needs, strict=True) if need],
    _no_second_derivative)


def _differentiable(name: str, own: str, returns: str, compute: Callable[..., Any], empty: Callable[..., Any],
                    keeps_results: bool = False) -> Primitive:
    """`_primitive` with the gradient of that name in `_GRADIENTS`; own tensors come before numbers."""
    def backward(arguments: Sequence[Any], results: Sequence[Tensor], grads: Any, needs: Any) -> Sequence[Any]:
        inputs, scalings, matrix, items, settings, *rest = arguments
        tensors = [argument for argument in rest if isinstance(argument, Tensor)]
        numbers = [argument for argument in rest if not isinstance(argument, Tensor)]
        needed = [*needs[0], *needs[5 : 5 + len(tensors)]]
        incoming = grads[0] if isinstance(grads[0], list) else grads
        state = State(scalings, matrix, items, settings)
        if name == "value" and numbers[0] and torch.is_grad_enabled():
            gradients = second.differentiable_envelope(state, incoming[0], inputs, needed)
        else:
            given = [*incoming, *tensors, *results]
            found = iter(pull_back(inputs, *state.arguments, name, given, tensors, list(map(int, numbers)), needed))
            gradients = [next(found) if need else None for need in needed]
        count = len(inputs)
        to_own = *gradients[count:], *(None for _ in numbers)
        return gradients[:count], [None] * len(scalings), None, None, None, *to_own

    return _primitive(name, own, returns, compute, empty, backward, keeps_results)


_potentials = _differentiable(
    "potentials", "", "(Tensor, Tensor)", lambda solved: (solved.pair.f.clone(), solved.pair.g.clone()),
    lambda shapes: (shapes.vector(shapes.batch, shapes.n), shapes.vector(shapes.batch, shapes.m)))
_value = _differentiable(
    "value", ", bool twice", "Tensor", lambda solved, twice: value.primal_value(solved.problem, solved.pair),
    lambda shapes, twice: shapes.vector(shapes.batch))
_product = _differentiable(
    "product", ", Tensor v, int side, bool normalised", "(Tensor, Tensor)", products.product,
    lambda shapes, v, side, normalised: (v.new_empty(shapes.batch, shapes.points(side), v.shape[2]),
                                         v.new_empty(shapes.batch, shapes.points(side))), keeps_results=True)
_potentials_and_product = _differentiable(
    "potentials_and_product", ", Tensor v, int side, bool normalised", "(Tensor, Tensor, Tensor, Tensor)",
    joined.potentials_and_product,
    lambda shapes, v, side, normalised: (
        shapes.vector(shapes.batch, shapes.n), shapes.vector(shapes.batch, shapes.m),
        v.new_empty(shapes.batch, shapes.points(side), v.shape[2]), v.new_empty(shapes.batch, shapes.points(side))),
    keeps_results=True)
_marginal = _differentiable(
    "marginal", ", int side", "Tensor", products.marginal,
    lambda shapes, side: shapes.vector(shapes.batch, shapes.points(side)))
_plan = _differentiable(
    "plan", "", "Tensor", products.dense_plan, lambda shapes: shapes.matrix(shapes.batch, shapes.n, shapes.m))
_transport_cost = _differentiable(
    "transport_cost", "", "Tensor", products.transport_cost, lambda shapes: shapes.vector(shapes.batch))
_cost_gradient = _differentiable(
    "cost_gradient", ", Tensor weight", "Tensor[]", second.cost_gradient,
    lambda shapes, weight: [tensor.new_empty(tensor.shape) for tensor in shapes.inputs[COST:]])
_log_sum_exp = _differentiable(
    "log_sum_exp", ", Tensor log_scaling, int side", "Tensor", unrolled.log_sum_exp,
    lambda shapes, log_scaling, side: shapes.vector(shapes.batch, shapes.points(side)), keeps_results=True)
_best = _primitive(
    "best", ", int k, int side", "(Tensor, Tensor)", matches.best,
    lambda shapes, k, side: (shapes.matrix(shapes.batch, shapes.points(side), k),
                             shapes.vector(shapes.batch, shapes.points(side), k).long()))


class State:
    """A solved problem but for the inputs that outputs are functions of; its methods are the operators.

    Args:
        scalings: log u (B, n), log v (B, m), and the log-sum-exps of rows and columns.
        matrix: The whole cost where it was built from features, (B', n, m).
        items: Entry of the cost's batch that each problem uses, (B,).
        settings: `Settings.encode`.
    """

    def __init__(self, scalings: Sequence[Tensor], matrix: Tensor | None, items: Tensor | None, settings: str) -> None:
        self.arguments = list(scalings), matrix, items, settings

    def problem(self, inputs: Sequence[Tensor]) -> Problem:
        """The problem of the inputs, detached."""
        _, _, items, settings = self.arguments
        a, b, reg, tau_a, tau_b = (tensor.detach() for tensor in inputs[:5])
        return flat_problem(Settings.decode(settings), a, b, reg, tau_a, tau_b, items)

    def potentials(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return _potentials(list(inputs), *self.arguments)

    def value(self, inputs: Sequence[Tensor], twice: bool) -> Tensor:
        return _value(list(inputs), *self.arguments, twice)

    def product(self, inputs: Sequence[Tensor], v: Tensor, side: int, normalised: bool) -> Tensor:
        return _product(list(inputs), *self.arguments, v, side, normalised)[0]

    def potentials_and_product(self, inputs: Sequence[Tensor], v: Tensor, side: int,
                               normalised: bool) -> tuple[Tensor, Tensor, Tensor]:
        """f, g and the product: one node of the graph, whose backward is one adjoint solve for what is made of them."""
        return _potentials_and_product(list(inputs), *self.arguments, v, side, normalised)[:3]

    def marginal(self, inputs: Sequence[Tensor], side: int) -> Tensor:
        return _marginal(list(inputs), *self.arguments, side)

    def plan(self, inputs: Sequence[Tensor]) -> Tensor:
        return _plan(list(inputs), *self.arguments)

    def transport_cost(self, inputs: Sequence[Tensor]) -> Tensor:
        return _transport_cost(list(inputs), *self.arguments)

    def cost_gradient(self, inputs: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
        return _cost_gradient(list(inputs), *self.arguments, weight)

    def log_sum_exp(self, inputs: Sequence[Tensor], log_scaling: Tensor, side: int) -> Tensor:
        return _log_sum_exp(list(inputs), *self.arguments, log_scaling, side)

    def best(self, inputs: Sequence[Tensor], k: int, side: int) -> tuple[Tensor, Tensor]:
        return _best(list(inputs), *self.arguments, k, side)
