"""Batched, differentiable, entropic unbalanced optimal transport for PyTorch."""

from . import nn
from .api import unbalanced_sinkhorn
from .converters import Converted, from_geomloss, from_ott
from .costs import CosineCost, Cost, DotCost, InnerProductCost, SqEuclideanCost
from .debiased import sinkhorn_divergence
from .exceptions import BackendUnavailable, ConvergenceWarning
from .masses import cross_masses
from .options import Progress, SolverOptions
from .solution import Solution

__version__ = "0.1.0"

__all__ = ["BackendUnavailable", "ConvergenceWarning", "Converted", "CosineCost", "Cost", "DotCost",
           "InnerProductCost", "Progress", "Solution", "SolverOptions", "SqEuclideanCost", "cross_masses",
           "from_geomloss", "from_ott", "nn", "sinkhorn_divergence", "unbalanced_sinkhorn"]
