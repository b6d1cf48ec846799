"""Edit masks of held-out toy scenes against the renderer's truth: K target prompts (prompt augmentation) and two (DiffEdit).

    python benchmarks/edit_masks.py --comfyui PATH [--scenes 108] [--scores FILE] [--json FILE]

Colour, shape and pattern edits in turn. Truth: where the object is or will be; for a pattern, what is neither object nor
bystander. IoU (intersection over union) is taken at the size of the image. Every setting is chosen on one half of the scenes
and reported on the other half. A run with --scores goes on where it was stopped. Toy figures: they say nothing about Stable
Diffusion.
"""

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from toy_bench import Edit, draw_edits, values

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host

ATTRIBUTES = ("colour", "shape", "pattern")
METHODS = ("K = 4 targets", "source and target")
PROMPTS = 4
STRENGTHS = (0.5, 0.65, 0.8)
DRAWS = (1, 5, 10)
CLAMPS = (0.0, 2.0, 3.0)
SMOOTHINGS = (0.0, 0.5, 1.0, 2.0)
THRESHOLDS = tuple(np.arange(0.05, 1.0, 0.05).round(2).tolist())


class Setting(NamedTuple):
    """What the node is told, but for the prompts."""

    strength: float
    draws: int
    clamp: float
    smoothing: float
    threshold: float


SETTINGS = [Setting(*setting) for setting in product(STRENGTHS, DRAWS, CLAMPS, SMOOTHINGS, THRESHOLDS)]
DEFAULTS = Setting(0.65, 10, 3.0, 1.0, 0.5)
DIFFEDIT = Setting(0.5, 10, 3.0, 0.0, 0.5)


class Bench:
    """The toy world's models, and what the masks are made with."""

    def __init__(self) -> None:
        self.scene, self.masks = pack("zerocon_core.toyworld.scene"), pack("zerocon_core.maps.differences")
        self.bridge = SimpleNamespace(masks=pack("bridge.loops.differences"), conditioning=pack("bridge.model.conditioning"))
        self.model, self.clip, self.vae = pack("bridge.toyworld").load_toy_world()
        self.scale = self.bridge.masks.pixels_per_position(self.model)

    def words(self, edit: Edit, method: str) -> list[str]:
        """Values of the edited attribute: the target and those that follow it, the source's own only where there are no more."""
        source, target = edit.words
        if method == METHODS[1]:
            return [source, target]
        known = values(self.scene, edit.kind)
        others = [value for value in known[known.index(target) :] + known[: known.index(target)] if value != source]
        return [*others, source][:PROMPTS]

    def conditionings(self, batch: list[Edit], method: str) -> list[list]:
        """One CONDITIONING a prompt, each holding the prompt of every sample of the batch."""
        texts = [[self.scene.caption(edit.with_value(word)) for word in self.words(edit, method)] for edit in batch]
        encode = self.bridge.conditioning.encode_caption
        return [[[torch.cat([encode(self.clip, text)[0][0] for text in prompts]), {}]] for prompts in zip(*texts, strict=True)]

    def differences(self, latent: torch.Tensor, conditionings: list[list], strength: float) -> list[torch.Tensor]:
        """The mean map after every draw."""
        means = []
        self.bridge.masks.prompt_differences(
            self.model, latent, conditionings, strength, max(DRAWS), 0, lambda draw, mean: means.append(mean)
        )
        return means

    def truth(self, edit: Edit) -> torch.Tensor:
        """(H, W), bool."""
        mask = np.maximum(self.scene.object_mask(edit.source), self.scene.object_mask(edit.target))
        if edit.kind == "pattern":
            mask = 1 - np.maximum(mask, self.scene.bystander_mask(edit.source))
        return torch.from_numpy(mask > 0.5)

    def enlarge(self, masks: torch.Tensor) -> torch.Tensor:
        return masks.repeat_interleave(self.scale, -2).repeat_interleave(self.scale, -1)

    def truths(self, batch: list[Edit]) -> torch.Tensor:
        return torch.stack([self.truth(edit) for edit in batch])

    def run(self, batch: list[Edit]) -> torch.Tensor:
        """IoU (method, setting, B), in the order of METHODS and SETTINGS."""
        truth = self.truths(batch)
        latent = self.vae.encode(torch.from_numpy(np.stack([self.scene.render(edit.source) for edit in batch])))
        scores = {}
        for method in METHODS:
            conditionings = self.conditionings(batch, method)
            for strength in STRENGTHS:
                means = self.differences(latent, conditionings, strength)
                for draws in DRAWS:
                    for setting, ious in self.score(means[draws - 1], truth, strength, draws).items():
                        scores[method, setting] = ious
        return torch.stack([torch.stack([scores[method, setting] for setting in SETTINGS]) for method in METHODS])

    def score(self, differences: torch.Tensor, truth: torch.Tensor, strength: float, draws: int) -> dict[Setting, torch.Tensor]:
        """IoU (B,) of every setting."""
        scores = {}
        for clamp, smoothing in product(CLAMPS, SMOOTHINGS):
            heat = self.masks.heat_map(differences, clamp, smoothing)
            for threshold in THRESHOLDS:
                mask = self.enlarge(self.masks.edit_mask(heat, threshold)) > 0
                scores[Setting(strength, draws, clamp, smoothing, threshold)] = iou(mask, truth)
        return scores

    def ceiling(self, truth: torch.Tensor) -> torch.Tensor:
        """IoU (B,) of the truth itself on the latent's grid."""
        return iou(self.enlarge(torch.nn.functional.avg_pool2d(truth[None].float(), self.scale)[0] > 0.5), truth)


def iou(masks: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))


class Results:
    """IoU of every method and setting on every edit, halved into the scenes to choose on and those to report."""

    def __init__(self, scores: torch.Tensor, attributes: list[str]) -> None:
        self.scores = {m: dict(zip(SETTINGS, rows, strict=True)) for m, rows in zip(METHODS, scores, strict=True)}
        self.attributes = np.array(attributes)
        # Threes of a colour, a shape and a pattern edit in turn: one to choose on, one to report.
        self.held = torch.arange(len(attributes)) // len(ATTRIBUTES) % 2 == 1

    def best(self, method: str, **fixed: float) -> Setting:
        """The setting with the highest mean IoU on the half to choose on, among those with the `fixed` values."""
        allowed = [s for s in SETTINGS if all(getattr(s, name) == value for name, value in fixed.items())]
        return max(allowed, key=lambda setting: float(self.scores[method][setting][~self.held].mean()))

    def mean(self, method: str, setting: Setting, attribute: str | None = None) -> float:
        chosen = self.held if attribute is None else self.held & torch.from_numpy(self.attributes == attribute)
        return float(self.scores[method][setting][chosen].mean())

    def table(self, ceiling: torch.Tensor) -> str:
        lines = [
            "| prompts | setting | strength | draws | clamp | smoothing | threshold | IoU | " + " | ".join(ATTRIBUTES) + " |"
        ]
        lines.append("|---|---|" + "---|" * 9)
        for method in METHODS:
            known = DIFFEDIT._asdict()
            known.pop("threshold")
            shown = {
                "best": self.best(method),
                "node's defaults": DEFAULTS,
                "DiffEdit's, best threshold": self.best(method, **known),
                "DiffEdit's": DIFFEDIT,
            }
            for name, setting in shown.items():
                cells = [f"{self.mean(method, setting, part):.2f}" for part in (None, *ATTRIBUTES)]
                lines.append(f"| {method} | {name} | " + " | ".join([f"{value:g}" for value in setting] + cells) + " |")
        parts = [ceiling[self.held], *(ceiling[self.held & torch.from_numpy(self.attributes == a)] for a in ATTRIBUTES)]
        lines.append(
            "| the truth on the latent's grid | | | | | | | " + " | ".join(f"{part.mean():.2f}" for part in parts) + " |"
        )
        return "\n".join(lines)

    def ablations(self) -> str:
        """Each value of one setting, with the others and the threshold at their best for it."""
        lines = ["| setting | value | " + " | ".join(METHODS) + " |", "|---|---|" + "---|" * len(METHODS)]
        options = {"strength": STRENGTHS, "draws": DRAWS, "clamp": CLAMPS, "smoothing": SMOOTHINGS}
        for name, tried in options.items():
            for value in tried:
                cells = [f"{self.mean(method, self.best(method, **{name: value})):.2f}" for method in METHODS]
                lines.append(f"| {name} | {value:g} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=108)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--scores", type=Path, help="where to keep the IoU of every edit, to go on with")
    parser.add_argument("--json", type=Path, help="where to write the mean IoU of every setting")
    options = parser.parse_args()
    start_host(options.comfyui)

    with torch.inference_mode():
        bench, began = Bench(), time.monotonic()
        todo = draw_edits(bench.scene, options.scenes, ATTRIBUTES)
        scores = torch.load(options.scores) if options.scores and options.scores.exists() else []
        for start in range(len(scores) * options.batch, len(todo), options.batch):
            scores.append(bench.run(todo[start : start + options.batch]))
            if options.scores:
                torch.save(scores, options.scores)
            print(f"{time.monotonic() - began:6.0f} s  {start + options.batch} edits", file=sys.stderr)
        ceiling = bench.ceiling(bench.truths(todo))
    results = Results(torch.cat(scores, dim=-1), [edit.kind for edit in todo])
    print(results.table(ceiling), results.ablations(), sep="\n\n")
    if options.json:
        records = [setting._asdict() | {m: results.mean(m, setting) for m in METHODS} for setting in SETTINGS]
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
