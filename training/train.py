"""Train one of the toy world's models from scratch, or go on where the last run stopped.

    python -m training.train vae        [--steps N]
    python -m training.train diffusion  [--steps N]
    python -m training.train classifier [--steps N]
    python -m training.train captioner  [--steps N]

The order matters: each one uses the files that those before it wrote to zerocon_core/toyworld/weights.
"""

import argparse
import logging

import torch

from . import captioner, classifier, diffusion, vae

MODELS = {"vae": (vae.train, 2_500), "diffusion": (diffusion.train, 6_000), "classifier": (classifier.train, 1_500),
          "captioner": (captioner.train, 8_000)}  # fmt: skip


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, help="optimiser steps in all; the default is what the shipped weights had")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    torch.set_num_threads(arguments.threads)
    train, steps = MODELS[arguments.model]
    train(arguments.steps or steps)


if __name__ == "__main__":
    main()
