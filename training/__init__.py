"""How the toy world's models were trained: `python -m training.train`, `python -m training.evaluate`."""

import zerocon_pack as zerocon_pack  # first of all: it makes `comfy` importable
