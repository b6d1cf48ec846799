"""Train one of the toy world's models from scratch, or go on where the last run stopped.

    python training/train.py vae        --comfyui PATH [--steps N]
    python training/train.py diffusion  --comfyui PATH [--steps N]
    python training/train.py classifier --comfyui PATH [--steps N]
    python training/train.py captioner  --comfyui PATH [--steps N]

The order matters: each one uses the files that those before it wrote to zerocon_core/toyworld/weights.
"""

import argparse
import importlib
import logging
from pathlib import Path

import torch
from common import start_host

STEPS = {"vae": 2_500, "diffusion": 6_000, "classifier": 1_500, "captioner": 8_000}


def main() -> None:
    """Parse the command line, start the host, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=STEPS)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI checkout")
    parser.add_argument("--steps", type=int, help="optimiser steps in all; the default is what the shipped weights had")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    start_host(arguments.comfyui)
    importlib.import_module(arguments.model).train(arguments.steps or STEPS[arguments.model])


if __name__ == "__main__":
    main()
