"""What runs under Triton's interpreter: it is chosen before kernels are imported (test_triton_interpreter.py)."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
#: Backends with passes of their own where others make them of panels of the plan.
OWN_PASSES = ["native", *["triton"] * INTERPRETED]
