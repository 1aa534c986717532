"""Checks and timings on one GPU: `python -m benchmarks.gpu`."""
