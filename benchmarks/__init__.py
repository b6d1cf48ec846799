"""Measures of methods and of code, for maintainers. Run from the repository root: `python -m benchmarks.speed`.

engine    resumable runs over items, here, in several processes or on servers
records   their rows, a line of JSON each
tables    Markdown
toy       the toy world as a test bed
quality   what edits are worth on it
piebench  PIE-Bench through a real server
speed     time and memory
"""
