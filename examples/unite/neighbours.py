"""The nearest rows by cosine, chunk by chunk, the same ones whatever the chunks are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Cosines are compared in whole multiples of 2^-30: those that agree to that are a tie, and the lower row goes first.
STEPS = 2**30
#: Rows are told apart by the 32 bits below.
ROWS = 2**32


class Rows(NamedTuple):
    """Rows of a matrix (..., d) of float16, any of them in any order, each at most 1 in length."""

    matrix: np.ndarray
    places: np.ndarray

    def read(self, first: int, last: int, device: torch.device) -> Tensor:
        """Rows first to last - 1, in float64."""
        return torch.from_numpy(self.matrix[self.places[first:last]]).to(device).double()


def check_count(k: int, size: int, excluded: Sequence[Sequence[int]]) -> None:
    """Refuse a k that some query cannot have.

    Args:
        k: How many rows each query wants.
        size: Rows of the gallery.
        excluded: For each query, the rows of the gallery that it may not have.

    Raises:
        ValueError: There are no queries; k is below 1, or above what is left of the gallery for some query.
    """
    if not excluded:
        raise ValueError("there are no queries")
    left = size - max(len(set(barred)) for barred in excluded)
    if not 1 <= k <= left:
        raise ValueError(f"k must be from 1 to {left}, the other images of the gallery, got {k}")


def nearest(queries: Rows, gallery: Rows, k: int, *, excluded: Sequence[Sequence[int]], chunk: int = 1024,
            device: torch.device | str = "cpu", step: Callable[[int], None] | None = None) -> np.ndarray:
    r"""The k rows of the gallery with the largest cosine for each query, the largest first.

    .. math:: \cos(x, z) = \langle x, z \rangle / (|x| |z|), \quad 0 \text{ where either is } 0

    A float16 number up to 1 is a whole multiple of 2^-24, so that float64 holds every product, and every partial sum of
    rows of length up to 1, without rounding: sums come out the same in any order.  That is why neither the chunks nor
    the machine have a say in who is nearest.

    Args:
        queries, gallery: Rows of one width d.
        k: How many.
        excluded: For each query, the rows of the gallery that it may not have.
        chunk: Rows of either side at a time; memory is about 24 chunk d + 50 chunk^2 bytes.
        device: Where it is computed; it must have float64.
        step: Called after each chunk of queries with the number of chunks that are done.

    Returns:
        (queries, k) of int64: numbers of rows of the gallery.

    Raises:
        ValueError: As `check_count`; or there are not as many exclusions as queries.
    """
    count, size, device = len(queries.places), len(gallery.places), torch.device(device)
    if len(excluded) != count:
        raise ValueError(f"excluded must have {count} entries, one a query, got {len(excluded)}")
    check_count(k, size, excluded)
    found = np.empty((count, k), np.int64)
    for number, first in enumerate(range(0, count, chunk), 1):
        last = min(first + chunk, count)
        rows = queries.read(first, last, device)
        pairs = torch.tensor([(row, column) for row, barred in enumerate(excluded[first:last]) for column in barred],
                             dtype=torch.int64).reshape(-1, 2)
        best = torch.empty(last - first, 0, dtype=torch.int64, device=device)
        for start in range(0, size, chunk):
            keys = _keys(rows, gallery.read(start, min(start + chunk, size), device), start)
            here = pairs[(pairs[:, 1] >= start) & (pairs[:, 1] < start + chunk)].to(device)
            keys[here[:, 0], here[:, 1] - start] = torch.iinfo(torch.int64).min
            joined = torch.cat([best, keys], 1)
            best = joined.topk(min(k, joined.shape[1]), dim=1).values
        found[first:last] = (ROWS - 1 - best % ROWS).cpu().numpy()
        if step is not None:
            step(number)
    return found


def _keys(rows: Tensor, others: Tensor, start: int) -> Tensor:
    """Numbers that sort as cosines do, and pairs of one cosine by row, the lower the larger; no two are the same."""
    lengths = rows.square().sum(1)[:, None].sqrt() * others.square().sum(1).sqrt()
    cosines = (rows @ others.T).div_(lengths).nan_to_num_(0.0)
    places = torch.arange(start, start + len(others), device=rows.device)
    return cosines.mul_(STEPS).round_().long().mul_(ROWS).add_(ROWS - 1 - places)
