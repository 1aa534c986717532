"""An operator of PyTorch, torch.ops.uotlib.<name>, that can be called anywhere: eagerly, compiled, transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from .tracing import transformed

#: Gradients of a call, in the structure of its arguments: of these arguments, its results, the gradients that come in,
#: and which arguments need one.
Backward = Callable[[Sequence[Any], Any, Any, Sequence[Any]], Sequence[Any]]
#: From a callable and what torch.library.register_vmap passes on, its results and where their new dimension is.
Rule = Callable[..., tuple[Any, Any]]


class Primitive:
    """A function of tensors, lists of tensors and plain values, with gradient and batching rule.

    torch.func.grad does not pass through the gradients that an operator has registered; inside a transform the same
    rules are applied by an autograd Function instead.

    Args:
        name, schema: Of the operator, in the namespace uotlib.
        run: Computes it, below autograd.
        fake: Results without values.
        rule: Its batching rule.
        backward: Its gradient; None for results that are constants.
        keeps_results: Whether that looks at the results.
    """

    def __init__(self, name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any], rule: Rule,
                 backward: Backward | None = None, keeps_results: bool = False) -> None:
        self.name, self.rule, self.backward, self.keeps_results = name, rule, backward, keeps_results
        # Not by torch.library.custom_op, whose first call imports all of torch.compile: seconds of every process.
        full = f"uotlib::{name}"
        torch.library.define(full, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(full, "default", run)
        torch.library.register_fake(full, fake)
        torch.library.register_vmap(full, lambda info, dims, *arguments: rule(self, info, dims, *arguments))
        if backward is not None:
            torch.library.register_autograd(
                full, lambda ctx, *grads: tuple(self.gradients(ctx, grads, ctx.needs_input_grad)),
                setup_context=self.keep)
        self.operator = getattr(torch.ops.uotlib, name).default

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            raise RuntimeError("torch.compile of a function that transforms uotlib's operators (torch.func.grad, vmap) "
                               "would lose gradients: transform the compiled function, or compile what is inside")
        if not transformed(*_tensors(arguments)):
            return self.operator(*arguments)
        results = _Transformed.apply(self, _without_tensors(arguments), *_tensors(arguments))
        return results if isinstance(results, Tensor) else list(results) if self.returns_list else results

    @property
    def returns_list(self) -> bool:
        return str(self.operator._schema.returns[0].type) == "List[Tensor]"

    def keep(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        """Save a call for its backward."""
        results = [] if not self.keeps_results else [output] if isinstance(output, Tensor) else list(output)
        ctx.template = _without_tensors(inputs)
        ctx.save_for_backward(*_tensors(inputs), *results)

    def gradients(self, ctx: Any, grads: Sequence[Any], needs: Sequence[Any]) -> Sequence[Any]:
        """In the structure of the arguments of the call that was kept."""
        tensors = iter(ctx.saved_tensors)
        arguments = _filled(ctx.template, tensors)
        assert self.backward is not None  # it was registered
        return self.backward(arguments, list(tensors), grads, needs)


class _Transformed(torch.autograd.Function):
    """A call of a primitive as an autograd Function that transforms can take apart."""

    @staticmethod
    def forward(primitive: Primitive, template: list[Any], *tensors: Tensor) -> Any:
        results = primitive(*_filled(template, iter(tensors)))
        return tuple(results) if isinstance(results, list) else results

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.primitive, template, *tensors = inputs
        ctx.primitive.keep(ctx, _filled(template, iter(tensors)), output)
        if ctx.primitive.backward is None:
            ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        needs = _filled(ctx.template, iter(ctx.needs_input_grad[2:]))
        if ctx.primitive.returns_list:
            grads = (list(grads),)
        gradients = ctx.primitive.gradients(ctx, grads, needs)
        flat = [gradient for argument, parts in zip(ctx.template, gradients, strict=True)
                for gradient in _places(argument, parts)]
        return None, None, *flat

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise RuntimeError("uotlib has no forward mode: use reverse mode (torch.func.grad, vjp, jacrev) in place of "
                           "jvp, jacfwd and hessian")

    @staticmethod
    def vmap(info: Any, in_dims: Any, primitive: Primitive, template: list[Any], *tensors: Tensor) -> Any:
        arguments = _filled(template, iter(tensors))
        dims = _filled(template, iter(in_dims[2:]))
        results, out_dims = primitive.rule(primitive, info, dims, *arguments)
        return (tuple(results), tuple(out_dims)) if isinstance(results, list) else (results, out_dims)


class _Place:
    """Stands for a tensor."""


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """Every tensor among the arguments, those in lists included."""
    return [part for argument in arguments for part in (argument if isinstance(argument, list | tuple) else [argument])
            if isinstance(part, Tensor)]


def _places(argument: Any, parts: Any) -> list[Any]:
    """What stands in ``parts`` where the template has a tensor."""
    if isinstance(argument, list):
        return [part for place, part in zip(argument, parts, strict=True) if isinstance(place, _Place)]
    return [parts] if isinstance(argument, _Place) else []


def _without_tensors(arguments: Sequence[Any]) -> list[Any]:
    return [[_Place() if isinstance(part, Tensor) else part for part in argument] if isinstance(argument, list | tuple)
            else _Place() if isinstance(argument, Tensor) else argument for argument in arguments]


def _filled(template: Sequence[Any], tensors: Iterator[Any]) -> list[Any]:
    return [[next(tensors) if isinstance(part, _Place) else part for part in argument] if isinstance(argument, list)
            else next(tensors) if isinstance(argument, _Place) else argument for argument in template]
