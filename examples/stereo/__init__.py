"""Matching a real stereo pair: cosine nearest neighbour, balanced and unbalanced optimal transport.

Run it as ``python -m examples.stereo``.
"""
