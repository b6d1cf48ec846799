"""Train one of the tabletop's models from scratch, or go on where the last run stopped.

    python training/tabletop/train.py MODEL --comfyui PATH [--until STEP]

MODEL is autoencoder, diffusion, classifier or captioner. Pictures must have been rendered before (dataset.py). Each save writes
the checkpoint and the file that ships.
"""

import argparse
import importlib
import logging
from pathlib import Path

import torch
from common import start_host

# The whole schedule of each model, in optimiser steps.
STEPS = {"autoencoder": 2_000, "diffusion": 60_000, "classifier": 3_000, "captioner": 20_000}


def main() -> None:
    """Parse the command line, start the host, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=STEPS)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of a ComfyUI checkout")
    parser.add_argument("--until", type=int, help="stop at this step of the schedule; the default is its end")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(arguments.threads)
    start_host(arguments.comfyui)
    steps = STEPS[arguments.model]
    importlib.import_module(arguments.model).train(steps, arguments.until or steps)


if __name__ == "__main__":
    main()
