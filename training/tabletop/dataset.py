"""The training pictures, rendered once and kept as shards in the run folder.

python -m training.tabletop.dataset [--shards N] [--processes N]

Shard i holds the pictures of scenes i * SHARD to (i + 1) * SHARD - 1. A shard that is there is kept, so that a run can be
interrupted, and training can begin on the first shards while others are rendered.
"""

import argparse
import logging
import pickle
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from zerocon_pack.zerocon_core.tabletop import render, sampling, scene

from .. import common
from ..common import log, write_atomically
from ..dataset import save_array, tensor

RUNS = common.RUNS / "tabletop"

SHARD = 500
SHARDS = 40


def scenes() -> list[scene.Scene]:
    """The training scenes of all shards that are rendered, in their order, drawn once."""
    drawn = []
    for number in range(len(shards())):
        path = RUNS / "scenes" / f"{number:03}.pickle"
        if not path.exists():
            made = pickle.dumps([sampling.scene_from_seed(seed) for seed in seeds(number)])
            write_atomically(path, lambda scratch, made=made: scratch.write_bytes(made))
        drawn += pickle.loads(path.read_bytes())
    return drawn


def seeds(number: int) -> range:
    """The seeds of the scenes of shard `number`."""
    return range(number * SHARD, (number + 1) * SHARD)


def shards() -> list[NDArray[np.uint8]]:
    """Pictures (SHARD, H, W, 3) of the training scenes from the first on, memory-mapped, as far as they are rendered."""
    found = []
    while (path := shard_path(len(found))).exists():
        found.append(np.load(path, mmap_mode="r"))
    return found


def pick_pictures(found: list[NDArray[np.uint8]], index: torch.Tensor) -> torch.Tensor:
    """The pictures (B, 3, H, W) in [0, 1] of these scenes."""
    return tensor(np.stack([found[i // SHARD][i % SHARD] for i in index.tolist()]))


def held_out_pictures(count: int) -> torch.Tensor:
    """Pictures (N, 3, H, W) in [0, 1] of the first held-out scenes."""
    return torch.stack([torch.from_numpy(render.render(s)) for s in sampling.held_out_scenes(count)]).movedim(-1, 1).contiguous()


def shard_path(number: int) -> Path:
    """Where shard `number` is or will be."""
    return RUNS / "pictures" / f"{number:03}.npy"


def render_shard(number: int) -> None:
    """Render one shard, unless it is there."""
    path = shard_path(number)
    if path.exists():
        return
    drawn = (render.render(sampling.scene_from_seed(seed)) for seed in seeds(number))
    images = np.stack([np.round(image * 255.0).astype(np.uint8) for image in drawn])
    write_atomically(path, partial(save_array, images))
    log.info("rendered %s", path.name)


def main() -> None:
    """Parse the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    with Pool(arguments.processes) as pool:
        pool.map(render_shard, range(arguments.shards), chunksize=1)


if __name__ == "__main__":
    main()
