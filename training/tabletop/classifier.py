"""The classifier, on pictures as the renderer draws them and as bad samples look."""

import numpy as np
import torch
from torch.nn import functional as F
from zerocon_pack.zerocon_core.tabletop import classifier as judge
from zerocon_pack.zerocon_core.tabletop import sampling, scene, weights

from ..common import Run, export, log
from .autoencoder import linear_part
from .dataset import held_out_pictures, pick_pictures, scenes, shards

BATCH = 16
HELD_OUT = 300
# Spread of the target around a solid's middle, in cells.
SPREAD = 0.7


def train(steps: int, until: int | None) -> None:
    """Minimise the cross entropies of middles, words and floor, and the error of the places."""
    torch.manual_seed(4)
    model, decoder, images, subjects = judge.Classifier(), linear_part(), shards(), scenes()
    run = Run("tabletop/classifier", {"classifier": model}, peak=2e-3)
    held_out, drawn = held_out_pictures(HELD_OUT), sampling.held_out_scenes(HELD_OUT)

    def loss(generator: torch.Generator) -> torch.Tensor:
        index = torch.randint(len(subjects), (BATCH,), generator=generator)
        x = augment(pick_pictures(images, index), decoder, generator)
        return errors(model(x), [subjects[i] for i in index.tolist()])

    def report() -> None:
        seen = judge.classify(held_out.movedim(1, -1), model)
        log.info("classifier step %d held-out %s", run.step, summary(seen, drawn))
        export(weights.FOLDER / "classifier.safetensors", model.state_dict())

    run.train(loss, steps, until, after_save=report)


def errors(read: tuple[tuple[torch.Tensor, ...], torch.Tensor], subjects: list[scene.Scene]) -> torch.Tensor:
    """The loss of what was `read` off pictures of these scenes."""
    (middle, colour, shape, material, place), floor = read
    heat, rows, words, places = truth(subjects)
    picture, row, column = rows
    spoken = sum(F.cross_entropy(part[picture, :, row, column], words[:, i]) for i, part in enumerate((colour, shape, material)))
    patterns = torch.tensor([scene.PATTERNS.index(s.floor.pattern) for s in subjects])
    return (
        20.0 * F.binary_cross_entropy_with_logits(middle[:, 0], heat)
        + spoken
        + F.cross_entropy(floor, patterns)
        + 5.0 * F.l1_loss(place[picture, :, row, column].sigmoid(), places)
    )


def truth(subjects: list[scene.Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heat (B, 16, 16) around middles; of each solid its picture and cell (3, N), words (N, 3) and place in the cell (N, 2)."""
    grid = torch.arange(judge.GRID) + 0.5
    heat, cells, words, places = torch.zeros(len(subjects), judge.GRID, judge.GRID), [], [], []
    for picture, subject in enumerate(subjects):
        for solid, (x, y) in zip(subject.solids, scene.middles(subject.solids, subject.camera).T, strict=True):
            right, down = (x + 1.0) / 2.0 * judge.GRID, (1.0 - y) / 2.0 * judge.GRID
            away = (grid - right).square() + (grid[:, None] - down).square()
            heat[picture] = torch.maximum(heat[picture], (-away / (2.0 * SPREAD**2)).exp().float())
            cells.append((picture, int(down), int(right)))
            words.append(
                (scene.COLOURS.index(solid.colour), scene.SHAPES.index(solid.shape), scene.MATERIALS.index(solid.material))
            )
            places.append((right % 1.0, down % 1.0))
    return heat, torch.tensor(cells).T, torch.tensor(words), torch.tensor(places, dtype=torch.float32)


def augment(x: torch.Tensor, decoder: torch.nn.Module, generator: torch.Generator) -> torch.Tensor:
    """Each picture (B, 3, H, W) with its own blur, colour cast and noise, half of them decoded from latents with errors."""
    count = len(x)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    with torch.no_grad():
        latent = decoder.encode(x * 2.0 - 1.0)
        latent = latent + uniform(0.0, 0.3, 1, 1, 1) * torch.randn(latent.shape, generator=generator)
        decoded = decoder.decode_linear(latent) / 2.0 + 0.5
    x = torch.where(uniform(0.0, 1.0, 1, 1, 1) < 0.5, decoded, x)
    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1), uniform(0.0, 1.0, 1, 1, 1))
    x = x * uniform(0.95, 1.05, 3, 1, 1) + uniform(-0.03, 0.03, 3, 1, 1)
    x = x + uniform(0.0, 0.03, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return x.clamp(0.0, 1.0)


def summary(seen: list[judge.SceneSeen], drawn: list[scene.Scene]) -> dict[str, float]:
    """Mean agreement on each attribute, and the share of pictures with the right number of solids."""
    each = [judge.agreement(s, d) for s, d in zip(seen, drawn, strict=True)]
    figures = {name: float(np.mean([e[name] for e in each])) for name in each[0]}
    return figures | {"number": float(np.mean([len(s.solids) == len(d.solids) for s, d in zip(seen, drawn, strict=True)]))}
