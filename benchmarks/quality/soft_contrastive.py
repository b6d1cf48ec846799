"""Ablation of contrastive fine-tuning on the toy world, after table 2 of Bodur et al.: none, CL, Soft-CL, Soft-CL + Soft-PA.

    python -m benchmarks.quality.soft_contrastive [--edits 60] [--seeds 3] [--steps 100] [--output DIR]

Each method trains a LoRA on pictures that the toy world's training drew; "LoRA alone" is the same training with lambda 0. Then
held-out pictures are edited as SDEdit does: noise to a share of the schedule and sample with the target prompt, by the host's own
sampler, without mask and source prompt. Half of the edits change the colour, half the shape. Success is the toy classifier's.
PSNR and SSIM are taken against the source picture outside the object of the source and that of the true edit. Each finished run
is a line of DIR/records.jsonl, and is not run again. Toy figures: they say nothing about Stable Diffusion.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim
from zerocon_pack.bridge.loops.training import (
    Draws,
    Embeddings,
    Training,
    apply_lora,
    lora_state,
    model_latents,
    new_adapters,
    train,
)
from zerocon_pack.bridge.model.conditioning import SentenceEncoder
from zerocon_pack.zerocon_core.methods.finetune import Objective, Targets, draw_batches, word_variations
from zerocon_pack.zerocon_core.toyworld.classifier import classify
from zerocon_pack.zerocon_core.toyworld.scene import COLOURS, SHAPES, caption, object_mask, scene_from_seed

from runs.engine import Item, here, run_all
from runs.records import Records, Row

from ..tables import markdown
from ..toy.bench import Batch, Bench
from ..toy.edits import ATTRIBUTES, draw_edits, pictures
from ..toy.methods import CFG
from ..toy.score import psnr

IMAGES, BATCH, TARGETS, RANK, LEARNING_RATE = 64, 2, 3, 8, 1e-3
STEPS = 10
COLUMNS = {"success": ".0%", "others kept": ".0%", "PSNR outside": ".2f", "SSIM outside": ".3f"}


@dataclass(frozen=True)
class Method:
    name: str
    trained: bool = True
    weight: float = 1.0
    soft_loss: bool = False
    soft_choice: bool = False


METHODS = [
    Method("none", trained=False),
    Method("LoRA alone", weight=0.0),
    Method("CL"),
    Method("Soft-CL", soft_loss=True),
    Method("Soft-CL + Soft-PA", soft_loss=True, soft_choice=True),
]


class Trainer:
    """The pictures to train on, and the LoRA that a method makes of them."""

    def __init__(self, bench: Bench) -> None:
        self.model = bench.model
        scenes = [scene_from_seed(seed) for seed in range(IMAGES)]
        self.captions = [caption(scene) for scene in scenes]
        self.images = model_latents(self.model, bench.vae.encode(pictures(scenes)).split(1))
        self.embeddings = Embeddings(SentenceEncoder(bench.clip))

    def train(self, method: Method, seed: int, steps: int):
        """The model with the LoRA of a method."""
        if not method.trained:
            return self.model
        draw = partial(
            draw_batches,
            self.images,
            self.captions,
            [word_variations(text, (COLOURS, SHAPES)) for text in self.captions] if method.weight else None,
            passes=steps,
            size=BATCH,
            choice=Targets(TARGETS, method.soft_loss, method.soft_choice),
            encode=self.embeddings.__getitem__,
            seed=seed,
        )
        batches, samples = Draws(draw), BATCH * (1 + TARGETS if method.weight else 1)
        self.embeddings.encode(batches)
        training = Training(batches, steps, samples, self.embeddings, Objective(method.weight), LEARNING_RATE, 1, seed, False)
        adapters = new_adapters(self.model, RANK, seed)
        train(self.model, training, adapters, report=lambda line: None)
        return apply_lora(self.model, lora_state(adapters))


def sdedit(model, batch: Batch, strength: float, seed: int) -> Tensor:
    """SDEdit with the host's own sampler: images (B, H, W, 3)."""
    import comfy.sample  # there once zerocon_pack is

    noise = comfy.sample.prepare_noise(batch.latent, seed)
    latent = comfy.sample.sample(
        model, noise, STEPS, CFG, "ddim", "ddim_uniform", batch.target, batch.negative, batch.latent, denoise=strength,
        disable_pbar=True, seed=seed,
    )  # fmt: skip
    return batch.bench.vae.decode(latent)


def score(batch: Batch, images: Tensor) -> list[Row]:
    """One record an edit."""
    found = classify(images, batch.bench.judge)
    _, similarity = ssim(images.movedim(-1, 1), batch.images.movedim(-1, 1), data_range=1.0, return_full_image=True)
    records = []
    for i, edit in enumerate(batch.edits):
        outside = torch.from_numpy(np.maximum(object_mask(edit.source), object_mask(edit.target)) == 0)
        kept = [attribute for attribute in ATTRIBUTES if attribute != edit.kind]
        records.append(
            {
                "attribute": edit.kind,
                "success": getattr(found, edit.kind)[i] == edit.words[1],
                "others kept": all(getattr(found, a)[i] == getattr(edit.source, a) for a in kept),
                "PSNR outside": psnr(images[i][outside], batch.images[i][outside]),
                "SSIM outside": float(similarity[i].mean(0)[outside].mean()),
            }
        )
    return records


@lru_cache(maxsize=1)
def prepared(edits: int) -> tuple[Trainer, Batch]:
    bench = Bench()
    return Trainer(bench), Batch(bench, draw_edits(edits, ("colour", "shape")))


@torch.inference_mode()
def work(method: Method, seed: int, steps: int, edits: int, strengths: list[float]) -> Row:
    trainer, batch = prepared(edits)
    began = time.monotonic()
    model = trainer.train(method, seed, steps)
    seconds = time.monotonic() - began
    return {"training seconds": seconds, "edits": {str(s): score(batch, sdedit(model, batch, s, seed)) for s in strengths}}


def table(runs: list[Row]) -> str:
    """Markdown, a row a method and strength: mean over the seeds of the mean over the edits, +- their standard deviation."""
    lines = []
    for method in METHODS:
        mine = [run for run in runs if run["method"] == method.name]
        for strength in mine[0]["edits"] if mine else ():
            cells = []
            for column, form in COLUMNS.items():
                means = np.array([np.mean([record[column] for record in run["edits"][strength]]) for run in mine])
                cells.append(f"{means.mean():{form}} ± {means.std():{form}}")
            lines.append([method.name, strength, str(len(mine)), *cells])
    return markdown(["method", "strength", "seeds", "success", "others kept", "PSNR, dB", "SSIM"], lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.7])
    parser.add_argument("--methods", nargs="+", default=[method.name for method in METHODS])
    parser.add_argument("--output", type=Path, default=Path("output") / "soft_contrastive")
    options = parser.parse_args()
    settings = {"edits": options.edits, "steps": options.steps, "strengths": options.strengths}
    items = [
        Item((method.name, seed), partial(work, method, seed, **settings))
        for seed in range(options.seeds)
        for method in METHODS
        if method.name in options.methods
    ]
    with Records(options.output / "records.jsonl", ("method", "seed"), settings) as records:
        rows = run_all(items, records, here)
    (options.output / "soft_contrastive.md").write_text(table(rows) + "\n")
    print(table(rows))
    return int(len(rows) < len(items))


if __name__ == "__main__":
    sys.exit(main())
