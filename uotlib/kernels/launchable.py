"""Every kernel under one roof.  Importing this imports Triton."""

from __future__ import annotations

from .columns import col_lse_kernel, col_mass_kernel, merge_col_lse_kernel
from .features import feature_lse_kernel, feature_weigh_kernel
from .panel import panel_kernel
from .rows import row_lse_kernel
from .small import small_solve_kernel
from .sweep import merge_columns_kernel, sweep_kernel

__all__ = [
    "col_lse_kernel",
    "col_mass_kernel",
    "feature_lse_kernel",
    "feature_weigh_kernel",
    "merge_col_lse_kernel",
    "merge_columns_kernel",
    "panel_kernel",
    "row_lse_kernel",
    "small_solve_kernel",
    "sweep_kernel",
]
