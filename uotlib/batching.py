"""Batching rules of the operators: the dimension that vmap adds is folded into the flat batch they have anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def rule(call: Callable[..., Any], info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    """Of a primitive of a solved problem; problems that share a cost go on sharing it."""
    return _folded_call(call, info.batch_size, dims, arguments, every_cost=False)


def rule_for_every_cost(call: Callable[..., Any], info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    """The same where a result belongs to the cost, of which every entry of the new dimension must have its own."""
    return _folded_call(call, info.batch_size, dims, arguments, every_cost=True)


def rule_of_solve(call: Callable[..., Any], info: Any, dims: Any, inputs: Any, matrix: Any, items: Any, start: Any,
                  settings: str, run: str, max_iter: int) -> tuple[Any, Any]:
    """Of the solve."""
    size = info.batch_size
    vectors = [_fold(tensor, dim, size) for tensor, dim in zip(inputs[:5], dims[0][:5], strict=True)]
    prepared, matrix, items = _fold_cost(inputs[5:], dims[0][5:], matrix, dims[1], items, len(vectors[2]) // size, size,
                                         False)
    start = _fold_any(start, dims[3], size)
    return _unfold(call([*vectors, *prepared], matrix, items, start, settings, run, max_iter), size)


def rule_of_cost(call: Callable[..., Any], info: Any, dims: Any, prepared: Any, *rest: Any) -> tuple[Any, Any]:
    """Of the whole matrix of a cost."""
    return _unfold(call(_fold_any(prepared, dims[0], info.batch_size), *rest), info.batch_size)


def _folded_call(call: Callable[..., Any], size: int, dims: Any, arguments: Sequence[Any],
                 every_cost: bool) -> tuple[Any, Any]:
    inputs, scalings, matrix, items, settings, *own = arguments
    vectors = [_fold(tensor, dim, size) for tensor, dim in zip(inputs[:7], dims[0][:7], strict=True)]
    prepared, matrix, items = _fold_cost(inputs[7:], dims[0][7:], matrix, dims[2], items, len(vectors[2]) // size, size,
                                         every_cost)
    scalings = [_fold(tensor, dim, size) for tensor, dim in zip(scalings, dims[1], strict=True)]
    own = [_fold_any(argument, dim, size) for argument, dim in zip(own, dims[5:], strict=True)]
    return _unfold(call([*vectors, *prepared], scalings, matrix, items, settings, *own), size)


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """(size * B, ...) from a tensor (B, ...) that may have the new dimension somewhere."""
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape(size * moved.shape[1], *moved.shape[2:])


def _fold_any(argument: Any, dim: Any, size: int) -> Any:
    if isinstance(argument, Tensor):
        return _fold(argument, dim, size)
    if isinstance(argument, list | tuple) and argument and isinstance(argument[0], Tensor):
        return [_fold(tensor, each, size) for tensor, each in zip(argument, dim, strict=True)]
    return argument


def _fold_cost(prepared: Sequence[Tensor], dims: Sequence[int | None], matrix: Tensor | None, dim: int | None,
               items: Tensor | None, batch: int, size: int,
               every: bool) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
    """The cost's tensors, (B', ...), and which of its entries each of the size * B problems uses."""
    if not every and all(each is None for each in dims):  # all problems share it
        own = torch.arange(batch, device=prepared[0].device) if items is None else items
        return list(prepared), matrix, own.repeat(size)
    folded = [_fold(tensor, each, size) for tensor, each in zip(prepared, dims, strict=True)]
    matrix = None if matrix is None else _fold(matrix, dim, size)
    if items is not None:
        entries = len(folded[0]) // size
        items = (items + entries * torch.arange(size, device=items.device)[:, None]).reshape(-1)
    return folded, matrix, items


def _unfold(results: Any, size: int) -> tuple[Any, Any]:
    """Results with the new dimension first, and where it is."""
    def open_up(tensor: Tensor) -> Tensor:
        return tensor.reshape(size, len(tensor) // size, *tensor.shape[1:])

    if isinstance(results, Tensor):
        return open_up(results), 0
    kind = type(results)
    return kind(open_up(tensor) for tensor in results), kind(0 for _ in results)
