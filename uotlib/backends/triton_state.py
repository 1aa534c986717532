"""The state of the problems that are still at work: vectors and numbers in the planes of `uotlib.kernels.state`."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..tracing import lazy
from .triton_launch import planes

if TYPE_CHECKING:
    from ..operators import GibbsKernel
    from ..problem import Problem


@dataclass(frozen=True)
class Size:
    """How many planes of columns there are, and numbers that each program keeps."""

    columns: int
    own: int


def size_of(textbook: bool, constants: dict[str, Any]) -> Size:
    """For kernels compiled with these constants (`triton_small.constants_of`); the textbook has no history."""
    at = planes()
    levels = constants["ANNEAL_ORDER"] + 1
    history = levels + 2 * constants["DEPTH"] + 3
    return Size(at.BEST_ANSWER.value if textbook else at.ENDS.value + history,
                at.SIZES.value + 2 * constants["SLOTS"] + levels)


@dataclass(eq=False)
class State:
    """What one pass leaves to the next, of A problems.

    Args:
        rows, cols: Planes of vectors, (., A, n) and (., A, m), float64, each a multiple of 16 bytes from the next.
        numbers: (., A), float64, likewise.
        own: Copies of each program, (A, chunks, .), float64.
        problems: Which problems of the batch these are, (A,); None for all in order.
        items: The same of entries of the cost's batch.
        entropy: The convention.
    """

    rows: Tensor
    cols: Tensor
    numbers: Tensor
    own: Tensor
    problems: Tensor | None
    items: Tensor | None
    entropy: bool

    @classmethod
    def begin(cls, problem: Problem, gibbs: GibbsKernel, size: Size, chunks: int) -> State:
        """Memory for all problems of the batch, which `begin_kernel` fills."""
        at = planes()
        batch, n, m = problem.batch, gibbs.n, gibbs.m
        like = problem.reg
        return cls(_planes(like, at.ROW_PLANES, batch, n), _planes(like, size.columns, batch, m),
                   _planes(like, at.NUMBERS, batch), like.new_zeros(batch, chunks, size.own), None,
                   gibbs.items_of(None), problem.reg_type == "entropy")

    @property
    def count(self) -> int:
        return self.own.shape[0]

    @property
    def n(self) -> int:
        return self.rows.shape[2]

    @property
    def m(self) -> int:
        return self.cols.shape[2]

    def select(self, kept: Tensor, gibbs: GibbsKernel) -> State:
        """These of the problems alone."""
        problems = kept if self.problems is None else self.problems[kept]
        return State(_selected(self.rows, kept), _selected(self.cols, kept), _selected(self.numbers, kept),
                     self.own.index_select(0, kept), problems, gibbs.items_of(problems), self.entropy)

    @lazy
    def row_lse(self) -> tuple[Tensor, ...]:
        """Of the passes of even and of odd number, each (A, n)."""
        return self._pair(self.rows, planes().ROW_LSE.value)

    @lazy
    def col_lse(self) -> tuple[Tensor, ...]:
        return self._pair(self.cols, planes().COL_LSE.value)

    @lazy
    def log_v(self) -> tuple[Tensor, ...]:
        return self._pair(self.cols, planes().LOG_V.value)

    @lazy
    def eps(self) -> tuple[Tensor, ...]:
        return self._pair(self.numbers, planes().EPS.value)

    @lazy
    def log_u(self) -> Tensor:
        return self.rows[planes().LOG_U.value]

    @lazy
    def offset(self) -> Tensor:
        """Of the rows' half-step, as its damping is."""
        return self.rows[(planes().OFFSET if self.entropy else planes().LOG_A).value]

    @lazy
    def damping(self) -> Tensor:
        return self.numbers[planes().DAMPING.value]

    @lazy
    def shift(self) -> Tensor:
        return self.numbers[planes().SHIFT.value]

    @lazy
    def weights(self) -> tuple[Tensor, Tensor]:
        """log v and log u as the passes over streamed features take them."""
        return self.cols[planes().WEIGHT.value], self.rows[planes().ROW_WEIGHT.value]

    @property
    def violation(self) -> Tensor:
        return self.numbers[planes().VIOLATION.value]

    @property
    def done(self) -> Tensor:
        """1 for problems that the last decision ended, else 0, (A,), float64."""
        return self.numbers[planes().DONE.value]

    @staticmethod
    def _pair(of: Tensor, plane: int) -> tuple[Tensor, ...]:
        return of[plane : plane + 2].unbind()


def _planes(like: Tensor, count: int, *shape: int) -> Tensor:
    """Memory for planes of this shape, a multiple of 16 bytes apart (`uotlib.kernels.state.pitch_of`)."""
    pitch = prod(shape) + prod(shape) % 2
    return like.new_empty(count, pitch)[:, : prod(shape)].view(count, *shape)


def _selected(of: Tensor, kept: Tensor) -> Tensor:
    """Planes of these problems alone."""
    selected = _planes(of, of.shape[0], kept.numel(), *of.shape[2:])
    return selected.copy_(of.index_select(1, kept))
