"""What training minimises: one small function a term, and `Losses`, which weighs them."""

from .total import Losses

__all__ = ["Losses"]
