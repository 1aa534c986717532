"""Modules: what networks are built with."""

from .feature_transport import FeatureTransport
from .matching import Matching
from .sinkhorn_loss import UnbalancedSinkhornLoss

__all__ = ["FeatureTransport", "Matching", "UnbalancedSinkhornLoss"]
