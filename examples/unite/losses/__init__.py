"""What training minimises: one small function a term, and `Losses`, which weighs them."""

from .total import Counts, Losses

__all__ = ["Counts", "Losses"]
