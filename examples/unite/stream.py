"""Training examples in an endless, seeded order in which every place is a function of its number."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from .data import Pairs
from .structures import Batch, Sample, collate


class Endless(Dataset[Sample]):
    """Example k is item p_e(k mod N) of epoch e = k div N, p_e being the epoch's own permutation.

    Nothing is remembered between items, so that a process of a loader, or a run that resumes, goes on anywhere.  Each
    process has an epoch of its own: those of one loader are in different ones where one ends.  Lists are not copied.
    """

    def __init__(self, pairs: Pairs, seed: int) -> None:
        if len(pairs) == 0:
            raise ValueError("there are no training examples")
        self.pairs = pairs
        self.seed = seed
        self._process = os.getpid()
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, place: int) -> Sample:
        if os.getpid() != self._process:
            self._process, self.pairs = os.getpid(), copy.copy(self.pairs)
        epoch, offset = divmod(place, len(self.pairs))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(len(self.pairs), generator=generator).tolist()
            self._epoch = epoch
        self.pairs.set_epoch(epoch)
        return self.pairs[self._order[offset]]


def batches(pairs: Pairs, seed: int, batch: int, start: int, *, rank: int = 0, processes: int = 1,
            workers: int = 0) -> Iterator[Batch]:
    """Batches from example ``start`` on, without end.

    Args:
        pairs: The training examples.
        seed: Of their order.
        batch: Examples in a batch of one process.
        start: Number of the first example; all processes start together.
        rank: Which of the ``processes`` this is: each takes every ``processes``-th batch.
        processes: How many share the work.
        workers: Processes that prepare batches; 0 prepares them here.
    """
    places = (range(first + rank * batch, first + (rank + 1) * batch)
              for first in range(start, 2**62, batch * processes))
    # A generator of its own: the loader draws a number at its start, which would move the process's.
    loader = DataLoader(Endless(pairs, seed), batch_sampler=map(list, places), collate_fn=collate,
                        num_workers=workers, generator=torch.Generator().manual_seed(seed))
    return iter(loader)
