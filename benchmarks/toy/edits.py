"""Held-out edits of the toy world."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from zerocon_pack.zerocon_core.toyworld.scene import COLOURS, HELD_OUT_SEED, PATTERNS, SHAPES, Scene, render, scene_from_seed

VALUES = {"colour": COLOURS, "shape": SHAPES, "pattern": PATTERNS}
ATTRIBUTES = tuple(VALUES)
KINDS = (*ATTRIBUTES, "identity")


@dataclass(frozen=True)
class Edit:
    """A scene, its true edit, and the attribute that changes; "identity" changes nothing."""

    source: Scene
    target: Scene
    kind: str

    @property
    def words(self) -> tuple[str, str]:
        return getattr(self.source, self.kind), getattr(self.target, self.kind)

    def with_value(self, value: str) -> Scene:
        """The scene with another value of the edited attribute."""
        return replace(self.source, **{self.kind: value})


def draw_edits(count: int, kinds: tuple[str, ...] = KINDS, first: int = 0) -> list[Edit]:
    """Edits number `first` and on of the held-out scenes, the kinds in turn; a number always gives the same edit."""
    drawn = []
    for number in range(first, first + count):
        source, kind = scene_from_seed(HELD_OUT_SEED + number), kinds[number % len(kinds)]
        edit = Edit(source, source, kind)
        if kind != "identity":
            others = [value for value in VALUES[kind] if value != getattr(source, kind)]
            edit = replace(edit, target=edit.with_value(others[np.random.default_rng(number).integers(len(others))]))
        drawn.append(edit)
    return drawn


def pictures(scenes: list[Scene]) -> Tensor:
    """(B, H, W, 3)."""
    return torch.from_numpy(np.stack([render(scene) for scene in scenes]))
