"""Edits of held-out toy scenes, judged by the toy classifier and by the renderer's truth.

    python benchmarks/toy_edits.py --comfyui PATH [--scenes 100] [--json FILE]

Half of the edits change the colour, half the shape. Success: the classifier finds the new attribute. Background PSNR: outside the
object of the source and that of the true edit, against the source picture. Pose kept: the classifier's centre moves by less than
5 % of the side and its radius by less than 15 %. Toy figures: they say nothing about Stable Diffusion.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1] / "training"))
from common import pack, start_host

STEPS = 25


@dataclass(frozen=True)
class Method:
    """One way to sample the edit from the inverted noise, along an edit direction or with the word swapped in the caption."""

    name: str
    direction: bool = True
    lambda_xa: float = 0.0
    lambda_cut: float = 0.0
    negative: str = "empty"
    cfg: float = 5.0
    contrast: str = "cds"


METHODS = [
    Method("inversion and reconstruction", cfg=1.0, negative="reconstruct"),
    Method("DDIM + word swap, source as negative", direction=False, negative="source"),
    Method("DDIM + word swap", direction=False),
    Method("DDIM + edit direction"),
    Method("pix2pix-zero, xa 0.1", lambda_xa=0.1),
    Method("zeroCon, xa 0.05, cut 0.5", lambda_xa=0.05, lambda_cut=0.5),
    Method("zeroCon, xa 0.1, cut 1", lambda_xa=0.1, lambda_cut=1.0),
    Method("zeroCon, xa 0.05, cut 0.5, direction cut", lambda_xa=0.05, lambda_cut=0.5, contrast="cut"),
    Method("zeroCon, xa 0.1, cut 1, direction cut", lambda_xa=0.1, lambda_cut=1.0, contrast="cut"),
]


@dataclass(frozen=True)
class Edit:
    """A scene, its true edit, and the words of the caption that change."""

    source: "Scene"  # noqa: F821 (known once the pack is imported)
    target: "Scene"  # noqa: F821
    attribute: str

    @property
    def words(self) -> tuple[str, str]:
        return getattr(self.source, self.attribute), getattr(self.target, self.attribute)

    def with_value(self, value: str) -> "Scene":  # noqa: F821
        """The scene with another value of the edited attribute."""
        return replace(self.source, **{self.attribute: value})


def edits(scene, count: int, attributes: tuple[str, ...] = ("colour", "shape")) -> Iterator[Edit]:
    """The attributes in turn; the new value is drawn from the others with the number of the scene as its seed."""
    for number, source in enumerate(scene.held_out_scenes(count)):
        attribute = attributes[number % len(attributes)]
        others = [value for value in values(scene, attribute) if value != getattr(source, attribute)]
        yield Edit(source, replace(source, **{attribute: others[np.random.default_rng(number).integers(len(others))]}), attribute)


def values(scene, attribute: str) -> tuple[str, ...]:
    return {"colour": scene.COLOURS, "shape": scene.SHAPES, "pattern": scene.PATTERNS}[attribute]


class Bench:
    """The toy world's models and everything that is computed once for all methods."""

    def __init__(self) -> None:
        names = "toyworld.scene toyworld.classifier directions guidance patchnce".split()
        self.core = SimpleNamespace(**{name.split(".")[-1]: pack(f"zerocon_core.{name}") for name in names})
        names = "attention conditioning guider inversion toyworld".split()
        self.bridge = SimpleNamespace(**{name: pack(f"nodes.bridge.{name}") for name in names})
        model, self.clip, self.vae = self.bridge.toyworld.load_toy_world()
        layers = self.bridge.attention.transformer_layers(model.model.diffusion_model)
        decoder = frozenset(layer for layer in layers if layer.block == "output")
        self.model = self.bridge.attention.hook_layers(model, self.bridge.attention.HookedLayers(decoder, frozenset(layers)))
        self.sigmas = self.bridge.inversion.default_sigmas(model, STEPS)
        self.judge = self.core.classifier.load_classifier()

    @cache  # noqa: B019 (one bench a process)
    def encode(self, text: str) -> torch.Tensor:
        return self.bridge.conditioning.encode_caption(self.clip, text)[0][0]

    @cache  # noqa: B019
    def direction(self, source: str, target: str) -> torch.Tensor:
        """From captions that differ in the edited word alone: the toy text encoder knows no other sentences."""
        scene = self.core.scene
        if source in scene.COLOURS:
            bank = [f"a {{}} {shape} on a {pattern} background" for shape in scene.SHAPES for pattern in scene.PATTERNS]
        else:
            bank = [f"a {colour} {{}} on a {pattern} background" for colour in scene.COLOURS for pattern in scene.PATTERNS]
        encoder = self.bridge.conditioning.SentenceEncoder(self.clip)
        pairs = self.core.directions.paired_sentences(source, target, bank)
        return self.core.directions.edit_direction(encoder, *pairs).tokens

    def conditioning(self, embeddings: list[torch.Tensor]) -> list:
        return [[torch.cat(embeddings), {}]]

    def invert(self, batch: list[Edit]) -> SimpleNamespace:
        """Everything about the sources of a batch."""
        render, caption = self.core.scene.render, self.core.scene.caption
        images = torch.from_numpy(np.stack([render(edit.source) for edit in batch]))
        source = self.conditioning([self.encode(caption(edit.source)) for edit in batch])
        latent = self.vae.encode(images)
        noise, trajectory = self.bridge.inversion.invert(self.model, latent, source, self.sigmas, None, 0, 0)
        return SimpleNamespace(images=images, source=source, latent=latent, noise=noise, trajectory=trajectory)

    def sample(self, method: Method, batch: list[Edit], start: SimpleNamespace) -> torch.Tensor:
        """Edited images (B, H, W, 3)."""
        import comfy.samplers

        caption = self.core.scene.caption
        if method.negative == "reconstruct":
            edited = start.source
        elif method.direction:
            moves = [self.direction(*edit.words) for edit in batch]
            edited = self.conditioning(list(start.source[0][0].unsqueeze(1) + torch.stack(moves)))
        else:
            edited = self.conditioning([self.encode(caption(edit.target)) for edit in batch])
        negative = self.conditioning([self.encode("")] * len(batch)) if method.negative == "empty" else start.source
        weights = self.core.guidance.GuidanceWeights(
            method.lambda_xa, method.lambda_cut, patchnce=self.core.patchnce.PatchNCE(direction=method.contrast)
        )
        guider = self.bridge.guider.ZeroConGuider(self.model, start.trajectory, weights, 0.0, 1.0, 0)
        guider.inner_set_conds({"positive": edited, "negative": negative, "source": start.source})
        guider.set_cfg(method.cfg)
        euler = comfy.samplers.sampler_object("euler")
        latent = guider.sample(torch.zeros_like(start.noise), start.noise, euler, self.sigmas, disable_pbar=True, seed=0)
        return self.vae.decode(latent)

    def score(self, batch: list[Edit], sources: torch.Tensor, images: torch.Tensor) -> list[dict]:
        """One record an edit."""
        mask, classify = self.core.scene.object_mask, self.core.classifier.classify
        found, before = classify(images, self.judge), classify(sources, self.judge)
        records = []
        for i, edit in enumerate(batch):
            outside = torch.from_numpy(np.maximum(mask(edit.source), mask(edit.target)) == 0)
            error = (images[i] - sources[i])[outside].square().mean()
            truth = torch.from_numpy(self.core.scene.render(edit.target))
            move = found.pose[i] - before.pose[i]
            kept = [a for a in ("colour", "shape", "pattern") if a != edit.attribute]
            records.append(
                {
                    "attribute": edit.attribute,
                    "success": getattr(found, edit.attribute)[i] == edit.words[1],
                    "others kept": all(getattr(found, a)[i] == getattr(edit.source, a) for a in kept),
                    "pose kept": bool(move[:2].norm() < 0.05 and move[2].abs() < 0.15 * before.pose[i, 2]),
                    "background PSNR": float(-10 * error.log10()),
                    "PSNR to the true edit": float(-10 * (images[i] - truth).square().mean().log10()),
                }
            )
        return records


def mean(records: list[dict], column: str) -> float:
    return float(np.mean([record[column] for record in records]))


def table(results: dict[str, list[dict]]) -> str:
    """Markdown; shares in percent, PSNR in dB."""
    shares, levels = ("others kept", "pose kept"), ("background PSNR", "PSNR to the true edit")
    lines = ["| method | success | colour | shape | " + " | ".join(shares + levels) + " |", "|---|" + "---|" * 7]
    for name, records in results.items():
        parts = [records, *([r for r in records if r["attribute"] == a] for a in ("colour", "shape"))]
        cells = [f"{mean(part, 'success'):.0%}" for part in parts if part]
        cells += [f"{mean(records, c):.0%}" for c in shares] + [f"{mean(records, c):.1f}" for c in levels]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--json", type=Path, help="where to write every record")
    options = parser.parse_args()
    start_host(options.comfyui)

    with torch.inference_mode():
        bench, began = Bench(), time.monotonic()
        results: dict[str, list[dict]] = {method.name: [] for method in METHODS}
        todo = edits(bench.core.scene, options.scenes)
        while batch := list(islice(todo, options.batch)):
            start = bench.invert(batch)
            for method in METHODS:
                results[method.name] += bench.score(batch, start.images, bench.sample(method, batch, start))
                print(f"{time.monotonic() - began:6.0f} s  {method.name}", file=sys.stderr)
    print(table(results))
    if options.json:
        records = [asdict(method) | {"edits": results[method.name]} for method in METHODS]
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
