"""Measures of methods and of code, for maintainers. Run from the repository root: `python -m benchmarks.speed`."""
