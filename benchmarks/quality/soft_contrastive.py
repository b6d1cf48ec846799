"""Ablation of contrastive fine-tuning on the toy world, after table 2 of Bodur et al.: none, CL, Soft-CL, Soft-CL + Soft-PA.

    python benchmarks/soft_contrastive.py --comfyui PATH [--edits 60] [--seeds 3] [--steps 100] [--json FILE]

Each method trains a LoRA on pictures that the toy world's training drew; "LoRA alone" is the same training with lambda 0. Then
held-out pictures are edited as SDEdit does: noise to a share of the schedule and sample with the target prompt, by the host's own
sampler, without mask and source prompt. Half of the edits change the colour, half the shape. Success is the toy classifier's.
PSNR and SSIM are taken against the source picture outside the object of the source and that of the true edit. Finished runs are
read from the JSON file and not run again. Toy figures: they say nothing about Stable Diffusion.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path += [str(Path(__file__).parents[1] / "training"), str(Path(__file__).parent)]
from common import pack, start_host
from toy_bench import draw_edits

IMAGES, BATCH, TARGETS, RANK, LEARNING_RATE = 64, 2, 3, 8, 1e-3
STEPS, CFG = 10, 5.0


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


class Bench:
    """The toy world's models, the pictures to train on, and the pictures to edit."""

    def __init__(self, count: int) -> None:
        self.scene, classifier = pack("zerocon_core.toyworld.scene"), pack("zerocon_core.toyworld.classifier")
        self.core, self.finetune = pack("zerocon_core.methods.finetune"), pack("bridge.loops.training")
        self.conditioning, toyworld = pack("bridge.model.conditioning"), pack("bridge.toyworld")
        self.model, self.clip, self.vae = toyworld.load_toy_world()
        self.classify, self.judge = classifier.classify, classifier.load_classifier()
        self.pictures = [self.scene.scene_from_seed(seed) for seed in range(IMAGES)]
        self.images = self.finetune.model_latents(self.model, self.vae.encode(self.render(self.pictures)).split(1))
        self.edits = draw_edits(self.scene, count, ("colour", "shape"))
        self.sources = self.render([edit.source for edit in self.edits])
        self.latents = self.vae.encode(self.sources)
        self.embeddings = self.finetune.Embeddings(self.conditioning.SentenceEncoder(self.clip))

    def render(self, scenes: list) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.scene.render(scene) for scene in scenes]))

    def train(self, method: Method, seed: int, steps: int):
        """The model with the LoRA of a method."""
        if not method.trained:
            return self.model
        captions = [self.scene.caption(picture) for picture in self.pictures]
        groups = (self.scene.COLOURS, self.scene.SHAPES)
        batches = self.core.draw_batches(
            self.images,
            captions,
            [self.core.word_variations(caption, groups) for caption in captions] if method.weight else None,
            passes=steps,
            size=BATCH,
            choice=self.core.Targets(TARGETS, method.soft_loss, method.soft_choice),
            encode=self.embeddings.__getitem__,
            seed=seed,
        )
        self.embeddings.encode(batches)
        objective = self.core.Objective(method.weight)
        training = self.finetune.Training(batches, self.embeddings, objective, LEARNING_RATE, 1, seed, False)
        adapters = self.finetune.new_adapters(self.model, RANK, seed)
        self.finetune.train(self.model, training, adapters, report=lambda line: None)
        return self.finetune.apply_lora(self.model, self.finetune.lora_state(adapters))

    def edit(self, model, strength: float, seed: int) -> torch.Tensor:
        """SDEdit with the host's own sampler: images (B, H, W, 3)."""
        import comfy.sample

        prompts = [self.embeddings[self.scene.caption(edit.target)][0] for edit in self.edits]
        positive, negative = [[torch.cat(prompts), {}]], [[self.embeddings[""][0], {}]]
        noise = comfy.sample.prepare_noise(self.latents, seed)
        latent = comfy.sample.sample(
            model, noise, STEPS, CFG, "ddim", "ddim_uniform", positive, negative, self.latents, denoise=strength,
            disable_pbar=True, seed=seed,
        )  # fmt: skip
        return self.vae.decode(latent)

    def score(self, images: torch.Tensor) -> list[dict]:
        """One record an edit."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        found = self.classify(images, self.judge)
        _, similarity = ssim(images.movedim(-1, 1), self.sources.movedim(-1, 1), data_range=1.0, return_full_image=True)
        records = []
        for i, edit in enumerate(self.edits):
            mask = np.maximum(self.scene.object_mask(edit.source), self.scene.object_mask(edit.target))
            outside = torch.from_numpy(mask == 0)
            error = (images[i] - self.sources[i])[outside].square().mean()
            kept = [a for a in ("colour", "shape", "pattern") if a != edit.kind]
            records.append(
                {
                    "attribute": edit.kind,
                    "success": getattr(found, edit.kind)[i] == edit.words[1],
                    "others kept": all(getattr(found, a)[i] == getattr(edit.source, a) for a in kept),
                    "PSNR outside": float(-10 * error.log10()),
                    "SSIM outside": float(similarity[i].mean(0)[outside].mean()),
                }
            )
        return records


def table(runs: list[dict]) -> str:
    """Markdown, a row a method and strength: mean over the seeds of the mean over the edits, +- their standard deviation."""
    columns = {"success": "success", "others kept": "others kept", "PSNR outside": "PSNR, dB", "SSIM outside": "SSIM"}
    lines = ["| method | strength | seeds | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * (len(columns) + 2)]
    for method in METHODS:
        mine = [run for run in runs if run["method"] == method.name]
        for strength in mine[0]["edits"] if mine else ():
            cells = []
            for column in columns:
                means = np.array([np.mean([record[column] for record in run["edits"][strength]]) for run in mine])
                form = {"success": ".0%", "others kept": ".0%", "PSNR outside": ".2f", "SSIM outside": ".3f"}[column]
                cells.append(f"{means.mean():{form}} ± {means.std():{form}}")
            lines.append(f"| {method.name} | {strength} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.7])
    parser.add_argument("--methods", nargs="+", default=[method.name for method in METHODS])
    parser.add_argument("--json", type=Path, help="where finished runs are written, and read from to continue")
    options = parser.parse_args()
    start_host(options.comfyui)

    runs = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    done = {(run["method"], run["seed"]) for run in runs}
    with torch.inference_mode():
        bench = Bench(options.edits)
        for seed in range(options.seeds):
            for method in METHODS:
                if method.name not in options.methods or (method.name, seed) in done:
                    continue
                began = time.monotonic()
                model = bench.train(method, seed, options.steps)
                seconds = time.monotonic() - began
                edited = {str(s): bench.score(bench.edit(model, s, seed)) for s in options.strengths}
                runs.append({"method": method.name, "seed": seed, "training seconds": seconds, "edits": edited})
                print(f"{method.name}, seed {seed}: trained in {seconds:.0f} s", file=sys.stderr)
                if options.json:
                    options.json.write_text(json.dumps(runs, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
