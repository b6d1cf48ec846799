"""Reads a scene's attributes off a picture: the judge of edits, hence trained on blurred, noisy and decoded pictures too."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from . import weights
from .config import IMAGE_SIZE
from .scene import COLOURS, PATTERNS, SHAPES, Colour, Pattern, Shape


@dataclass(frozen=True)
class Attributes:
    """One entry an image; `pose` is (B, 3): centre x and y and radius, in fractions of the image side."""

    colour: list[Colour]
    shape: list[Shape]
    pattern: list[Pattern]
    pose: torch.Tensor


class Classifier(nn.Module):
    """Four strided convolutions and one hidden layer; small enough to run beside every preview."""

    heads = (len(COLOURS), len(SHAPES), len(PATTERNS), 3)

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        blocks = [
            nn.Sequential(nn.Conv2d(i, o, 5, stride=2, padding=2), nn.GroupNorm(8, o), nn.SiLU())
            for i, o in zip(widths, widths[1:], strict=False)
        ]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.hidden = nn.Linear(widths[-1] * (IMAGE_SIZE // 16) ** 2, 128)
        self.out = nn.Linear(128, sum(self.heads))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of colour, shape and pattern, and the pose (B, 3), for images (B, 3, 64, 64) in [0, 1]."""
        return torch.split(self.out(F.silu(self.hidden(self.features(images * 2.0 - 1.0)))), list(self.heads), dim=1)


def load_classifier() -> Classifier:
    """The classifier with the shipped weights."""
    model, state = Classifier(), weights.read("classifier")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise weights.damaged("classifier") from error
    return model.eval()


@torch.no_grad()
def classify(images: torch.Tensor, model: Classifier | None = None) -> Attributes:
    """Attributes of images (B, H, W, 3) in [0, 1] of any size; pass a loaded `model` to read its file only once."""
    x = images.movedim(-1, 1).float().cpu()
    if x.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        x = F.interpolate(x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    colour, shape, pattern, pose = (model or load_classifier())(x)
    return Attributes(
        [COLOURS[i] for i in colour.argmax(dim=1)],
        [SHAPES[i] for i in shape.argmax(dim=1)],
        [PATTERNS[i] for i in pattern.argmax(dim=1)],
        pose,
    )
