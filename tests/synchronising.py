"""Counts what waits for the device: values read on the host, and operations whose result's size depends on values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Read a number, or find out how many entries hold.
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique", "aten::equal",
           "aten::is_nonzero"}
#: Indexing by a mask does the latter.
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}


class Synchronisations(TorchDispatchMode):
    """While active, ``count`` is the number of operations that would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name
        masked = name in INDEXING and any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
                                          for index in args[1])
        self.count += name in WAITING or masked
        return func(*args, **(kwargs or {}))
