"""The attribute classifier, on pictures as the renderer draws them and as the autoencoder returns them."""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from zerocon_pack.bridge.toyworld import build_vae
from zerocon_pack.zerocon_core.toyworld import scene, weights
from zerocon_pack.zerocon_core.toyworld.classifier import Classifier, classify

from .common import RUNS, WEIGHTS, Run, export, log, write_atomically
from .dataset import pick, pictures, save_array, scenes, tensor

BATCH = 64
ROUND_TRIPS = 4_000


def train(steps: int) -> None:
    """Minimise the three cross entropies and the pose's absolute error."""
    torch.manual_seed(4)
    model = Classifier()
    run = Run("classifier", {"classifier": model}, peak=2e-3)
    (images, _), decoded = pictures(), round_trips()
    labels, poses = truth(scenes())

    def loss(generator: torch.Generator) -> torch.Tensor:
        exact = pick(generator, BATCH // 2)
        returned = pick(generator, BATCH // 2, ROUND_TRIPS)
        x = torch.cat([tensor(images[exact.numpy()]), tensor(decoded[returned.numpy()])])
        index = torch.cat([exact, returned])
        *logits, pose = model(augment(x, generator))
        entropy = sum(F.cross_entropy(guess, labels[index, i]) for i, guess in enumerate(logits))
        return entropy + 10.0 * F.l1_loss(pose, poses[index])

    def report() -> None:
        log.info("classifier step %d held-out accuracy %s", run.step, accuracy(model))

    run.train(loss, steps, after_save=report)
    run.use_average(lambda: export(WEIGHTS / "classifier.safetensors", model.state_dict()))


def truth(subjects: list[scene.Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (N, 3) for colour, shape and pattern, and poses (N, 3) for centre and radius."""
    labels = [(scene.COLOURS.index(s.colour), scene.SHAPES.index(s.shape), scene.PATTERNS.index(s.pattern)) for s in subjects]
    poses = [(s.pose.cx, s.pose.cy, s.pose.radius) for s in subjects]
    return torch.tensor(labels), torch.tensor(poses)


def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each picture (B, 3, H, W) with its own blur, colour cast and noise, from none to somewhat more than sampling leaves."""
    count = len(x)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1), uniform(0.0, 1.0, 1, 1, 1))
    x = x * uniform(0.9, 1.1, 3, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    x = x + uniform(0.0, 0.06, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return x.clamp(0.0, 1.0)


def round_trips() -> NDArray[np.uint8]:
    """The first training pictures (N, H, W, 3) as the shipped autoencoder returns them."""
    path = RUNS / "round_trips.npy"
    if not path.exists():
        log.info("encoding and decoding %d scenes", ROUND_TRIPS)
        state = weights.read("vae")
        vae, images = build_vae(state), pictures()[0]
        with torch.no_grad():
            parts = [vae.decode(vae.encode(_floats(images[i : i + 50]))) for i in range(0, ROUND_TRIPS, 50)]
        write_atomically(path, partial(save_array, torch.cat(parts).mul(255.0).round().byte().numpy()))
    return np.load(path, mmap_mode="r")


def _floats(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.tensor(images).float() / 255.0


@torch.no_grad()
def accuracy(model: Classifier, count: int = 500) -> dict[str, float]:
    """Share of `count` held-out scenes whose colour, shape and pattern are read correctly."""
    subjects = scene.held_out_scenes(count)
    read = classify(torch.stack([torch.from_numpy(scene.render(s)) for s in subjects]), model)
    return {
        name: float(np.mean([guess == getattr(s, name) for guess, s in zip(getattr(read, name), subjects, strict=True)]))
        for name in ("colour", "shape", "pattern")
    }
