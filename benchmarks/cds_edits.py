"""DDS and CDS on held-out toy edits over w_cut, judged as in toy_edits.py.

    python benchmarks/cds_edits.py --comfyui PATH --json FILE [--scenes 100] [--set w_cut|all]

Every setting is one line of FILE, so that a run that was stopped goes on where it was. Toy figures: they say nothing about Stable
Diffusion, whose features and latents are others.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from toy_edits import Bench, Edit, edits, table

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host


@dataclass(frozen=True)
class Setting:
    """What a run departs from the node's defaults in."""

    name: str
    weights: dict = field(default_factory=dict)
    patchnce: dict = field(default_factory=dict)
    cfg: float = 7.5
    steps: int = 200
    step_size: float = 200 / 64**2
    order: str = "random"
    timesteps: tuple[int, int] = (50, 948)
    ids_steps: int = 0
    masked: bool = False


SETS = {
    "w_cut": [Setting(f"w_cut {w:g}", {"w_cut": w}) for w in (0, 1, 3, 10, 30, 100)],
}
