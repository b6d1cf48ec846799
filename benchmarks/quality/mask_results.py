"""The settings that edit masks are made with, and what is read off their IoU."""

from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from runs.records import Row

from ..tables import markdown
from ..toy.edits import ATTRIBUTES

METHODS = ("K = 4 targets", "source and target")
STRENGTHS = (0.5, 0.65, 0.8)
DRAWS = (1, 5, 10)
CLAMPS = (0.0, 2.0, 3.0)
SMOOTHINGS = (0.0, 0.5, 1.0, 2.0)
THRESHOLDS = tuple(np.arange(0.05, 1.0, 0.05).round(2).tolist())


class Setting(NamedTuple):
    """What Edit Mask is told, but for the prompts."""

    strength: float
    draws: int
    clamp: float
    smoothing: float
    threshold: float


SETTINGS = [Setting(*setting) for setting in product(STRENGTHS, DRAWS, CLAMPS, SMOOTHINGS, THRESHOLDS)]
DEFAULTS = Setting(0.65, 10, 3.0, 1.0, 0.5)
DIFFEDIT = Setting(0.5, 10, 3.0, 0.0, 0.5)


class Results:
    """IoU of every method and setting on every edit, halved into the scenes to choose on and those to report."""

    def __init__(self, rows: list[Row]) -> None:
        scores = torch.cat([torch.tensor(row["iou"]) for row in rows], dim=-1)
        self.scores = {m: dict(zip(SETTINGS, part, strict=True)) for m, part in zip(METHODS, scores, strict=True)}
        self.kinds = np.array([kind for row in rows for kind in row["kinds"]])
        self.ceiling = torch.tensor([iou for row in rows for iou in row["ceiling"]])
        # Threes of a colour, a shape and a pattern edit in turn: one to choose on, one to report.
        numbers = torch.cat([row["first"] + torch.arange(row["count"]) for row in rows])
        self.held = numbers // len(ATTRIBUTES) % 2 == 1

    def chosen(self, kind: str | None) -> torch.Tensor:
        """Which edits to report on, all or those of a kind."""
        return self.held if kind is None else self.held & torch.from_numpy(self.kinds == kind)

    def best(self, method: str, **fixed: float) -> Setting:
        """The setting with the highest mean IoU on the half to choose on, among those with the `fixed` values."""
        allowed = [s for s in SETTINGS if all(getattr(s, name) == value for name, value in fixed.items())]
        return max(allowed, key=lambda setting: float(self.scores[method][setting][~self.held].mean()))

    def mean(self, method: str, setting: Setting, kind: str | None = None) -> float:
        return float(self.scores[method][setting][self.chosen(kind)].mean())

    def table(self) -> str:
        known = DIFFEDIT._asdict()
        known.pop("threshold")
        lines = []
        for method in METHODS:
            shown = {
                "best": self.best(method),
                "node's defaults": DEFAULTS,
                "DiffEdit's, best threshold": self.best(method, **known),
                "DiffEdit's": DIFFEDIT,
            }
            for name, setting in shown.items():
                means = [f"{self.mean(method, setting, kind):.2f}" for kind in (None, *ATTRIBUTES)]
                lines.append([method, name, *(f"{value:g}" for value in setting), *means])
        ceilings = [f"{self.ceiling[self.chosen(kind)].mean():.2f}" for kind in (None, *ATTRIBUTES)]
        lines.append(["the truth on the latent's grid", *[""] * (1 + len(DIFFEDIT)), *ceilings])
        return markdown(["prompts", "setting", *Setting._fields, "IoU", *ATTRIBUTES], lines)

    def ablations(self) -> str:
        """Each value of one setting, with the others and the threshold at their best for it."""
        tried = {"strength": STRENGTHS, "draws": DRAWS, "clamp": CLAMPS, "smoothing": SMOOTHINGS}
        lines = [
            [name, f"{value:g}", *(f"{self.mean(method, self.best(method, **{name: value})):.2f}" for method in METHODS)]
            for name, values in tried.items()
            for value in values
        ]
        return markdown(["setting", "value", *METHODS], lines)
