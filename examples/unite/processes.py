"""What the processes of one run have together: sums, with gradients or without."""

from __future__ import annotations

from torch import Tensor, distributed


def count() -> int:
    """Processes that train together; 1 where there is no group of them."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def which() -> str:
    """Which of them this is, in words that follow another; nothing where it is alone."""
    return f", rank {distributed.get_rank()} of {count()} processes" if count() > 1 else ""


def total(x: Tensor) -> Tensor:
    """Sum of x over processes, on each of them; all call it, with one shape.

    Its gradient is summed too: a loss of one process then teaches what the others put in, and the mean that
    `DistributedDataParallel` takes of gradients is that of the mean of the losses.
    """
    if count() == 1:
        return x
    from torch.distributed.nn.functional import all_reduce  # not in a torch without processes

    return all_reduce(x)
