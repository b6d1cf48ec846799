"""The training scenes, rendered once and kept as arrays in the run folder."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from zerocon_pack.zerocon_core.toyworld import scene

from .common import RUNS, log, write_atomically

COUNT = 40_000


def scenes() -> list[scene.Scene]:
    """The training scenes, in the order of every array made from them."""
    return [scene.scene_from_seed(seed) for seed in range(COUNT)]


def pictures() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (N, H, W, 3) and object masks (N, H, W) of the training scenes, memory-mapped."""
    paths = RUNS / "images.npy", RUNS / "masks.npy"
    if not all(path.exists() for path in paths):
        log.info("rendering %d scenes", COUNT)
        drawn = [(_bytes(scene.render(s)), _bytes(scene.object_mask(s))) for s in scenes()]
        for path, arrays in zip(paths, zip(*drawn, strict=True), strict=True):
            write_atomically(path, partial(save_array, np.stack(arrays)))
    images, masks = (np.load(path, mmap_mode="r") for path in paths)
    return images, masks


def tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) floats in [0, 1], in that order in memory too or GroupNorm crawls."""
    return torch.tensor(images).movedim(-1, 1).float().div(255.0).contiguous()


def pick(generator: torch.Generator, batch: int, count: int = COUNT) -> torch.Tensor:
    """`batch` random indices below `count`, sorted for the sake of the memory map."""
    return torch.randint(count, (batch,), generator=generator).sort().values


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.round(values * 255.0).astype(np.uint8)


def save_array(values: NDArray[np.uint8], path: Path) -> None:
    """Write a .npy file under exactly this name."""
    with path.open("wb") as file:
        np.save(file, values)
