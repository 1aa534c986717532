"""What `SolverOptions` refuses, each with the option's name and what it got."""

from __future__ import annotations

import math

import numpy as np
import pytest
from problems import draw

from uotlib import Progress, SolverOptions

INTEGERS = ["anneal_order", "anneal_passes", "anderson_depth", "anderson_start", "check_every", "block_bytes",
            "adjoint_max_iter"]
NUMBERS = ["anneal_start", "anneal_factor", "anneal_violation", "anneal_accuracy", "safeguard", "backtrack",
           "trust_region", "adjoint_tol"]
BOUNDED = ["anneal_start", "anneal_factor", "backtrack", "adjoint_tol"]


def test_every_option_is_in_one_of_these_lists():
    assert {*INTEGERS, *NUMBERS, "progress", "storage"} == set(SolverOptions.__dataclass_fields__)


@pytest.mark.parametrize("value", [1.5, 1e6, True, "5", None, math.nan])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name, value):
    if (name, value) == ("check_every", None):
        assert SolverOptions(check_every=None) == SolverOptions()
        return
    with pytest.raises(TypeError, match=rf"^SolverOptions\.{name} must be an integer, got {value!r}$"):
        SolverOptions(**{name: value})


@pytest.mark.parametrize("value", [True, "x", None, 1j, [0.5]])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name, value):
    with pytest.raises(TypeError) as caught:
        SolverOptions(**{name: value})
    assert str(caught.value) == f"SolverOptions.{name} must be a number, got {value!r}"


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, -math.inf, -1])
def test_numbers_in_range(name, value):
    with pytest.raises(ValueError, match=rf"^SolverOptions\.{name} must be .*, got {value}$"):
        SolverOptions(**{name: value})


@pytest.mark.parametrize("name", BOUNDED)
def test_infinity_is_refused_where_it_means_nothing(name):
    with pytest.raises(ValueError, match=rf"^SolverOptions\.{name} must be .*, got inf$"):
        SolverOptions(**{name: math.inf})


@pytest.mark.parametrize("name", sorted({*NUMBERS} - {*BOUNDED}))
def test_infinity_takes_a_bound_away(name):
    assert bool(draw(seed=3).solve(options=SolverOptions(**{name: math.inf})).converged)


@pytest.mark.parametrize("value", ["yes", 1, None, Progress(1, 0.1, 0.1, 1)])
def test_progress(value):
    with pytest.raises(TypeError, match=r"^SolverOptions\.progress must be True, False or a callable, got "):
        SolverOptions(progress=value)


def test_numbers_of_numpy_are_numbers():
    options = SolverOptions(check_every=np.int64(2), anneal_factor=np.float32(0.5), trust_region=3)
    assert (options.check_every, options.anneal_factor) == (2, 0.5)
    assert bool(draw(seed=3).solve(options=options).converged)


@pytest.mark.parametrize("every", [1, 3])
def test_progress_prints_a_line_at_every_check(every, capsys):
    seen: list[Progress] = []
    for progress in (seen.append, True):
        draw(seed=3).solve(options=SolverOptions(progress=progress, check_every=every))
    assert capsys.readouterr().err.count("\n") == len(seen) > 1
