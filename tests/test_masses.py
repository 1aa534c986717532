"""Cross masses: the formula, what it implies, and what is refused."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor

import uotlib
from uotlib import masses
from uotlib.masses import cross_masses

#: Sums of a few dozen products of unit vectors: each result carries a few dozen roundings.
RTOL = {torch.float64: 1e-13, torch.float32: 1e-5}


def descriptors(*shape: int, seed: int = 0, towards: float = 0.0) -> Tensor:
    """Random directions of random length; ``towards`` leans them to the first axis, so that they agree."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[..., 0] += towards
    return x


def test_formula_written_out():
    x, z = descriptors(5, 4), descriptors(7, 4, seed=1)
    unit_x, unit_z = ([v / v.norm() for v in points] for points in (x, z))
    agreements = [float(sum(u @ w for w in unit_z)) / 7 for u in unit_x]
    assert min(agreements) < 0 < max(agreements), "the problem must have points on both sides of the clamp"
    a = torch.tensor([max(agreement, 0) + 0.3 / 5 for agreement in agreements], dtype=torch.float64)
    b = torch.tensor([max(float(sum(w @ u for u in unit_x)) / 5, 0) + 0.3 / 7 for w in unit_z], dtype=torch.float64)
    scale = (a.sum() + b.sum()) / 2
    torch.testing.assert_close(cross_masses(x, z, floor=0.3), (a / scale, b / scale), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_totals_average_one(dtype):
    a, b = cross_masses(descriptors(3, 9, 6).to(dtype), descriptors(3, 4, 6, seed=1).to(dtype))
    torch.testing.assert_close(a.sum(-1) + b.sum(-1), torch.full((3,), 2, dtype=dtype), rtol=RTOL[dtype], atol=0)
    assert ((a.sum(-1) - b.sum(-1)).abs() > 1e-3).all(), "clamping makes totals differ"


def test_unclamped_totals_are_as_the_numbers_of_points():
    """Both sums are (number of points) x mean(x).mean(z): equal for n = m, so that only clamping makes them differ."""
    x, z = descriptors(12, 5, towards=6.0), descriptors(8, 5, seed=1, towards=6.0)
    a, b = cross_masses(x, z, floor=1e-15)
    torch.testing.assert_close(a.sum() / b.sum(), torch.tensor(12 / 8, dtype=torch.float64), rtol=1e-12, atol=0)


def test_sets_that_disagree_get_uniform_masses():
    x = descriptors(6, 5, towards=8.0)
    a, b = cross_masses(x, -x[:4])
    torch.testing.assert_close(a, torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-13, atol=0)
    torch.testing.assert_close(b, torch.full((4,), 1 / 4, dtype=torch.float64), rtol=1e-13, atol=0)


def test_lengths_count_only_without_normalisation():
    x, z = descriptors(5, 4), descriptors(7, 4, seed=1)
    lengths = torch.linspace(0.1, 3.0, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(cross_masses(lengths * x, z), cross_masses(x, z), rtol=1e-12, atol=0)
    x, z = (torch.nn.functional.normalize(v, dim=-1) for v in (x, z))
    torch.testing.assert_close(cross_masses(x, z, normalize=False), cross_masses(x, z), rtol=1e-12, atol=0)
    unequal = cross_masses(lengths * x, z, normalize=False)[0]
    assert not torch.allclose(unequal, cross_masses(x, z)[0], rtol=1e-3)


def test_batch_equals_its_items_and_broadcasts():
    x, z = descriptors(2, 1, 5, 4), descriptors(3, 7, 4, seed=1)
    a, b = cross_masses(x, z)
    assert a.shape == (2, 3, 5)
    assert b.shape == (2, 3, 7)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close((a[i, j], b[i, j]), cross_masses(x[i, 0], z[j]), rtol=1e-13, atol=0)
    empty = cross_masses(x[:0], z)
    assert empty[0].shape == (0, 3, 5)
    assert empty[1].shape == (0, 3, 7)


def test_gradients():
    """At points off the clamp's kink, which random descriptors are."""
    x, z = descriptors(2, 4, 3).requires_grad_(), descriptors(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, z: cross_masses(x, z, floor=0.1), (x, z))
    assert torch.autograd.gradcheck(lambda x, z: cross_masses(x, z, normalize=False), (x, z))


def test_zero_descriptor_has_no_direction_and_no_gradient():
    x = descriptors(4, 3, towards=5.0)
    x[1] = 0
    x.requires_grad_()
    a, b = cross_masses(x, descriptors(5, 3, seed=1, towards=5.0))
    (a.square().sum() + b.square().sum()).backward()
    assert a[1] == a.min()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[1] == 0).all()
    assert (x.grad[0] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_under_autocast(dtype):
    x, z = descriptors(40, 16, towards=1.0).to(dtype), descriptors(30, 16, seed=1, towards=1.0).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a, b = cross_masses(x, z)
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close((a.double(), b.double()), cross_masses(x.double(), z.double()),
                               rtol=RTOL[torch.float32], atol=1e-7)


def test_descriptors_learn_through_the_solver():
    x = descriptors(3, 2, towards=1.0).requires_grad_()
    z = descriptors(4, 2, seed=1, towards=1.0)

    def value(x: Tensor) -> Tensor:
        a, b = cross_masses(x, z, floor=0.1)
        return uotlib.unbalanced_sinkhorn(uotlib.CosineCost(x, z), a, b, reg=0.1, reg_m=0.5, tol=1e-12).value

    assert torch.autograd.gradcheck(value, (x,))


GOOD = torch.ones(3, 2)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"z": None}, TypeError, "z must be a torch.Tensor, got NoneType"),
    ({"x": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "x must have a floating-point dtype, got torch.int64"),
    ({"z": torch.ones(2)}, ValueError, r"z must have shape \(..., points, d\).*got \(2,\)"),
    ({"x": torch.ones(0, 2)}, ValueError, r"x must have shape .* at least one point.*got \(0, 2\)"),
    ({"z": torch.ones(4, 3)}, ValueError, "same feature size, got 2 and 3"),
    ({"z": torch.ones(4, 2, device="meta")}, ValueError, "z is on meta but x is on cpu"),
    ({"x": torch.ones(2, 3, 2), "z": torch.ones(3, 3, 2)}, ValueError, r"x \(2,\) and z \(3,\) do not broadcast"),
    ({"floor": 0.0}, ValueError, "floor must be positive and finite, got 0.0"),
    ({"floor": float("nan")}, ValueError, "floor must be positive and finite, got nan"),
    ({"floor": "small"}, TypeError, "floor must be a number, got str"),
    ({"normalize": 1}, TypeError, "normalize must be True or False, got 1"),
])
def test_errors_name_the_argument(arguments: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        cross_masses(**({"x": GOOD, "z": GOOD} | arguments))


def test_examples_in_docstrings():
    assert doctest.testmod(masses).failed == 0
