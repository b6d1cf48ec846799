"""Train one of the tabletop's models from scratch, or go on where the last run stopped.

    python -m training.tabletop.train MODEL [--until STEP]

MODEL is autoencoder, diffusion, classifier or captioner. Pictures must have been rendered before (dataset.py). Each save writes
the checkpoint and the file that ships.
"""

import argparse
import logging

import torch

from . import autoencoder, captioner, classifier, diffusion

# With the whole schedule of each model, in optimiser steps.
MODELS = {"autoencoder": (autoencoder.train, 2_000), "diffusion": (diffusion.train, 60_000),
          "classifier": (classifier.train, 3_000), "captioner": (captioner.train, 20_000)}  # fmt: skip


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--until", type=int, help="stop at this step of the schedule; the default is its end")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    torch.set_num_threads(arguments.threads)
    train, steps = MODELS[arguments.model]
    train(steps, arguments.until)


if __name__ == "__main__":
    main()
