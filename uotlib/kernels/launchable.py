"""Every kernel under one roof.  Importing this imports Triton."""

from __future__ import annotations

from .adjoint import back_kernel, eliminate_kernel, schur_kernel, through_kernel
from .begin import begin_kernel
from .columns import col_lse_kernel, col_mass_kernel, merge_col_lse_kernel
from .complete import certify_kernel, complete_kernel
from .decide import decide_kernel
from .features import feature_lse_kernel, feature_weigh_kernel
from .marginals import log_u_kernel, marginals_kernel
from .measure import measure_kernel
from .move import move_kernel
from .panel import panel_kernel
from .rows import row_lse_kernel
from .skip import block_min_kernel, bound_columns_kernel, skip_kernel
from .small import small_solve_kernel
from .sweep import merge_columns_kernel, sweep_kernel
from .weigh import weigh_kernel

__all__ = [
    "back_kernel",
    "begin_kernel",
    "block_min_kernel",
    "bound_columns_kernel",
    "certify_kernel",
    "col_lse_kernel",
    "col_mass_kernel",
    "complete_kernel",
    "decide_kernel",
    "eliminate_kernel",
    "feature_lse_kernel",
    "feature_weigh_kernel",
    "log_u_kernel",
    "marginals_kernel",
    "measure_kernel",
    "merge_col_lse_kernel",
    "merge_columns_kernel",
    "move_kernel",
    "panel_kernel",
    "row_lse_kernel",
    "schur_kernel",
    "skip_kernel",
    "small_solve_kernel",
    "sweep_kernel",
    "through_kernel",
    "weigh_kernel",
]
