"""Reads a scene off a picture: the judge of edits, hence trained on blurred, noisy and badly decoded pictures too.

It looks for the middles of solids on a grid of 16x16 cells and says of each cell what a solid there would be.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import weights
from .autoencoder import Residual
from .render import IMAGE_SIZE
from .scene import COLOURS, MATERIALS, PATTERNS, SHAPES, Colour, Material, Pattern, Scene, Shape

GRID = 16
FOUND = 0.4  # a cell that is surer than this, and than its neighbours, is the middle of a solid
MOST = 2


@dataclass(frozen=True)
class SolidSeen:
    """One solid of a picture; its middle in picture coordinates from -1 to 1, x to the right and y upwards."""

    colour: Colour
    shape: Shape
    material: Material
    x: float
    y: float


@dataclass(frozen=True)
class SceneSeen:
    """What a picture shows, solids from left to right."""

    solids: tuple[SolidSeen, ...]
    floor: Pattern


class Classifier(nn.Module):
    """Strided convolutions down to the grid, residual blocks over it; small enough to run beside every preview."""

    # Of a cell: is a solid's middle here, its colour, shape and material, and its place within the cell.
    parts = (1, len(COLOURS), len(SHAPES), len(MATERIALS), 2)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64)
        stem = [
            layer
            for i, o in zip(widths, widths[1:], strict=False)
            for layer in (nn.Conv2d(i, o, 5, stride=2, padding=2), nn.GroupNorm(8, o), nn.SiLU())
        ]
        self.features = nn.Sequential(*stem, *(Residual(widths[-1]) for _ in range(3)), nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.cells = nn.Conv2d(widths[-1], sum(self.parts), 1)
        self.floor = nn.Linear(2 * widths[-1], len(PATTERNS))

    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """`parts` of the cells, each (B, part, 16, 16), and logits of the floor (B, 4), for images (B, 3, 128, 128) in [0, 1]."""
        features = self.features(images * 2.0 - 1.0)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3))], dim=1)
        return self.cells(features).split(self.parts, dim=1), self.floor(pooled)


def load_classifier() -> Classifier:
    """The classifier with the shipped weights."""
    return weights.load(Classifier(), "classifier")


@torch.no_grad()
def classify(images: Tensor, model: Classifier | None = None) -> list[SceneSeen]:
    """What images (B, H, W, 3) in [0, 1] of any size show; pass a loaded `model` to read its file only once."""
    x = images.movedim(-1, 1).float().cpu()
    if x.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        x = F.interpolate(x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    (middle, *words, place), floor = (model or load_classifier())(x)
    peak = middle.sigmoid()
    peak = peak * (peak == F.max_pool2d(peak, 3, stride=1, padding=1))
    seen = []
    for b, pattern in enumerate(floor.argmax(dim=1).tolist()):
        sure, cells = peak[b, 0].flatten().topk(MOST)
        found = [divmod(cell, GRID) for cell, p in zip(cells.tolist(), sure.tolist(), strict=True) if p > FOUND]
        solids = (_solid([part[b, :, row, column] for part in (*words, place)], row, column) for row, column in found)
        seen.append(SceneSeen(tuple(sorted(solids, key=lambda solid: solid.x)), PATTERNS[pattern]))
    return seen


def agreement(seen: SceneSeen, scene: Scene) -> dict[str, float]:
    """Share of the scene's solids whose colour, shape and material are seen, each solid its own, and whether the floor's is."""
    fields = ("colour", "shape", "material")
    blank = [None] * max(0, len(scene.solids) - len(seen.solids))
    pairings = (list(zip(scene.solids, order, strict=False)) for order in permutations([*seen.solids, *blank], len(scene.solids)))
    counts = [{f: float(np.mean([getattr(s, f) == getattr(t, f, None) for s, t in pairs])) for f in fields} for pairs in pairings]
    best = max(counts, key=lambda count: sum(count.values()))
    return best | {"floor": float(seen.floor == scene.floor.pattern)}


def _solid(parts: list[Tensor], row: int, column: int) -> SolidSeen:
    colour, shape, material, place = parts
    right, down = (place.sigmoid().numpy() + (column, row)) * 2.0 / GRID - 1.0
    return SolidSeen(
        COLOURS[int(colour.argmax())], SHAPES[int(shape.argmax())], MATERIALS[int(material.argmax())], float(right), -float(down)
    )
