"""Measures of methods and of code, for maintainers. Run from the repository root: `python -m benchmarks.speed`.
What is long runs by `runs`, which knows how to stop and go on.

tables    Markdown
toy       the toy world as a test bed
quality   what edits are worth on it
piebench  PIE-Bench through a real server
speed     time and memory
patches   the host's own patches under every method
"""
