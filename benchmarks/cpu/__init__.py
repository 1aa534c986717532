"""The CPU benchmark suite: ``pytest benchmarks/ --benchmark`` measures, without the flag every case runs once, tiny."""
