"""Edit masks of held-out toy scenes against the renderer's truth: K target prompts (prompt augmentation) and two (DiffEdit).

    python -m benchmarks.quality.edit_masks [--scenes 108] [--output DIR]

Colour, shape and pattern edits in turn. Truth: where the object is or will be; for a pattern, what is neither object nor
bystander. IoU (intersection over union) is taken at the size of the image. Every setting is chosen on one half of the scenes
and reported on the other half. Each finished batch is a line of DIR/records.jsonl, and a run that was stopped goes on where it
was. Toy figures: they say nothing about Stable Diffusion.
"""

import argparse
import json
import sys
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from zerocon_pack.bridge.loops.differences import prompt_differences
from zerocon_pack.bridge.model.facts import pixels_per_position
from zerocon_pack.zerocon_core.maps.differences import edit_mask, heat_map
from zerocon_pack.zerocon_core.toyworld.scene import bystander_mask, caption, object_mask

from runs.engine import Item, here, run_all
from runs.records import Records, Row

from ..toy.bench import Bench
from ..toy.edits import ATTRIBUTES, VALUES, Edit, draw_edits, pictures
from .mask_results import CLAMPS, DRAWS, METHODS, SETTINGS, SMOOTHINGS, STRENGTHS, THRESHOLDS, Results, Setting

PROMPTS = 4


@lru_cache(maxsize=1)
def bench() -> Bench:
    return Bench()


def words(edit: Edit, method: str) -> list[str]:
    """Values of the edited attribute: the target and those that follow it, the source's own only where there are no more."""
    source, target = edit.words
    if method == METHODS[1]:
        return [source, target]
    known = VALUES[edit.kind]
    others = [value for value in known[known.index(target) :] + known[: known.index(target)] if value != source]
    return [*others, source][:PROMPTS]


def conditionings(edits: list[Edit], method: str) -> list[list]:
    """One CONDITIONING a prompt, each holding the prompt of every sample of the batch."""
    texts = [[caption(edit.with_value(word)) for word in words(edit, method)] for edit in edits]
    return [bench().conditioning(prompts) for prompts in zip(*texts, strict=True)]


def differences(latent: Tensor, prompts: list[list], strength: float) -> list[Tensor]:
    """The mean map (B, h, w) after every draw."""
    means: list[Tensor] = []
    prompt_differences(bench().model, latent, prompts, strength, max(DRAWS), 0, lambda draw, mean: means.append(mean))
    return means


def truth(edit: Edit) -> Tensor:
    """(H, W), bool."""
    mask = np.maximum(object_mask(edit.source), object_mask(edit.target))
    if edit.kind == "pattern":
        mask = 1 - np.maximum(mask, bystander_mask(edit.source))
    return torch.from_numpy(mask > 0.5)


def enlarge(masks: Tensor) -> Tensor:
    """Masks (B, h, w) on the latent's grid at the size of the image."""
    scale = pixels_per_position(bench().model)
    return masks.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def iou(masks: Tensor, truths: Tensor) -> Tensor:
    return (masks & truths).sum((1, 2)) / (masks | truths).sum((1, 2))


def ceiling(truths: Tensor) -> Tensor:
    """IoU (B,) of the truth itself on the latent's grid."""
    return iou(enlarge(avg_pool2d(truths[None].float(), pixels_per_position(bench().model))[0] > 0.5), truths)


def score(difference: Tensor, truths: Tensor, strength: float, draws: int) -> dict[Setting, Tensor]:
    """IoU (B,) of every setting."""
    scores = {}
    for clamp, smoothing in product(CLAMPS, SMOOTHINGS):
        heat = heat_map(difference, clamp, smoothing)
        for threshold in THRESHOLDS:
            mask = enlarge(edit_mask(heat, threshold)) > 0
            scores[Setting(strength, draws, clamp, smoothing, threshold)] = iou(mask, truths)
    return scores


@torch.inference_mode()
def work(first: int, count: int) -> Row:
    """IoU of these edits, by method and setting, in the order of METHODS and SETTINGS."""
    edits = draw_edits(count, ATTRIBUTES, first)
    truths = torch.stack([truth(edit) for edit in edits])
    latent = bench().vae.encode(pictures([edit.source for edit in edits]))
    scores: dict[str, dict[Setting, Tensor]] = {method: {} for method in METHODS}
    for method, strength in product(METHODS, STRENGTHS):
        means = differences(latent, conditionings(edits, method), strength)
        for draws in DRAWS:
            scores[method] |= score(means[draws - 1], truths, strength, draws)
    return {
        "kinds": [edit.kind for edit in edits],
        "ceiling": ceiling(truths).tolist(),
        "iou": [[scores[method][setting].tolist() for setting in SETTINGS] for method in METHODS],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=108)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("output") / "edit_masks")
    options = parser.parse_args()
    parts = [(first, min(options.batch, options.scenes - first)) for first in range(0, options.scenes, options.batch)]
    items = [Item(part, partial(work, *part)) for part in parts]
    settings = {"prompts": PROMPTS, "settings": len(SETTINGS)}
    with Records(options.output / "records.jsonl", ("first", "count"), settings) as records:
        rows = run_all(items, records, here)
    results = Results(rows)
    tables = f"{results.table()}\n\n{results.ablations()}"
    print(tables)
    (options.output / "masks.md").write_text(tables + "\n")
    means = [setting._asdict() | {m: results.mean(m, setting) for m in METHODS} for setting in SETTINGS]
    (options.output / "masks.json").write_text(json.dumps(means, indent=1) + "\n")
    return int(len(rows) < len(items))


if __name__ == "__main__":
    sys.exit(main())
