"""Who runs the code: Python itself, torch.compile, or a transform of torch.func."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Value = TypeVar("Value")


class lazy(Generic[Value]):
    """A property computed once: functools.cached_property without its lock, which torch.compile cannot trace."""

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Value:
        if instance is None:
            return self  # type: ignore[return-value]
        value = self.function(instance)
        instance.__dict__[self.name] = value
        return value


def transformed(*tensors: Tensor) -> bool:
    """Whether a tensor stands for others, inside torch.func.grad, vmap and their like."""
    if torch.compiler.is_compiling():
        return False
    return any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)


def differentiated(tensor: Tensor) -> bool:
    """Whether it requires grad, for autograd or at some level of a transform; vmap hides the levels below."""
    while not tensor.requires_grad:
        if torch.compiler.is_compiling() or not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return False
        if torch._C._functorch.is_gradtrackingtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return True


def values_hidden(*tensors: Tensor) -> bool:
    """Whether values cannot be looked at, nor memory addressed, but by an operator.

    While torch.compile or torch.jit traces, under transforms of torch.func, and where a dispatch mode is active (fake
    tensors, make_fx): what is done beside it would not be seen.
    """
    return (torch.compiler.is_compiling() or transformed(*tensors) or torch.jit.is_tracing()
            or torch._C._len_torch_dispatch_stack() > 0)


def refuse_forward_mode(named: Iterable[tuple[str, Tensor]]) -> None:
    """Dual tensors would lose their tangents without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for name, tensor in named:
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(f"{name} has a forward-mode tangent, and uotlib has no forward mode: use reverse mode "
                               "(torch.func.grad, vjp, jacrev)")
