r"""Precisions of products of float32 features, and which one an eps asks for.

An error d of a cost is a relative error d/eps of the plan's entries.  Tensor cores take tf32 or bfloat16: "tf32" is one
product of rounded features; "tf32x3" and "bf16x3" are three of features split into two parts, without the last;
"bf16x6" is six of three parts; "float32" multiplies without splitting, outside of tensor cores.  "float64" is
float64 features.  Tensor cores round sums towards zero, which for features of one direction adds up: so products are of
32 features at most, and their sums are rounded to nearest.

Source of the splits: Henry et al. 2019, *Leveraging the bfloat16 artificial intelligence datatype for higher-precision
computations*; of the rounding: Fasi et al. 2021, *Numerical behavior of NVIDIA tensor cores*.
"""

from __future__ import annotations

import torch

#: Unit roundoff of the arithmetic on costs of each type.
ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
#: Error of an inner product, relative to the product of the norms, up to 1024 features.
ERRORS = {"tf32": 2.0**-10, "bf16x3": 2.0**-16, "tf32x3": 2.0**-20, "bf16x6": 2.0**-21, "float32": 2.0**-21}
#: What a precision may be called, by users.
NAMES = (*ERRORS, "float64")
#: Most error that is accepted, relative to eps.
ACCEPTED = 0.01


def cheapest(offered: tuple[str, ...], largest: float, reg: float) -> str:
    """The first precision whose error of a product up to ``largest`` is accepted at eps ``reg``; else "float64"."""
    fitting = (name for name in offered if ERRORS[name] * largest <= ACCEPTED * reg)
    return next(fitting, "float64")
