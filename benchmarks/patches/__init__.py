"""The host's own model patches under every method; `python -m benchmarks.patches` writes docs/patches.md.

subject    what a method is given: a model, prompts, a picture
patches    what the host's nodes do to it
reference  what the host itself answers, and central differences
cells      each method under a patch: right, or refused by name
"""

import zerocon_pack as zerocon_pack  # first of all: it makes `comfy` importable
