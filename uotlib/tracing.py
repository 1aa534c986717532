"""Who runs the code: Python itself, torch.compile, or a transform of torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

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


def values_hidden(*tensors: Tensor) -> bool:
    """Whether values cannot be looked at, nor memory addressed: while torch.compile traces, and under transforms."""
    return torch.compiler.is_compiling() or transformed(*tensors)
