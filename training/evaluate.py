"""Measure the shipped toy world on held-out scenes, with the host's stock sampler, and write the figures into its README.

    python -m training.evaluate [--count 200]
"""

import argparse
import logging
from typing import Any

import torch
from torch.nn import functional as F
from zerocon_pack.bridge.toyworld import load_toy_world
from zerocon_pack.zerocon_core.toyworld import scene
from zerocon_pack.zerocon_core.toyworld.classifier import classify, load_classifier

from .captioner import exactness
from .common import ROOT, write_atomically

README = ROOT / "zerocon_core" / "toyworld" / "README.md"
OPEN, CLOSE = "<!-- figures -->", "<!-- /figures -->"
ATTRIBUTES = ("colour", "shape", "pattern")
NEEDED = {
    "vae_psnr_db": 28.0,
    "sampled_colour": 0.95,
    "sampled_shape": 0.85,
    "sampled_pattern": 0.85,
    "classifier_colour": 0.99,
    "classifier_shape": 0.99,
    "classifier_pattern": 0.99,
    "caption_exact": 0.97,
}


def evaluate(count: int, batch: int) -> dict[str, float]:
    """The figures that `NEEDED` names, each over the first `count` held-out scenes."""
    subjects = scene.held_out_scenes(count)
    images = torch.stack([torch.from_numpy(scene.render(s)) for s in subjects])
    classifier = load_classifier()
    model, clip, vae = load_toy_world()

    with torch.inference_mode():
        error = F.mse_loss(vae.decode(vae.encode(images)), images, reduction="none").mean(dim=(1, 2, 3))
        sampled = torch.cat(
            [
                sample(model, clip, vae, [scene.caption(s) for s in subjects[i : i + batch]], seed=i)
                for i in range(0, count, batch)
            ]
        )
    figures = {"vae_psnr_db": float((-10.0 * error.log10()).mean())}
    figures |= accuracy("sampled", classify(sampled, classifier), subjects)
    figures |= accuracy("classifier", classify(images, classifier), subjects)
    figures["caption_exact"] = exactness(count)
    return figures


def sample(model: Any, clip: Any, vae: Any, prompts: list[str], seed: int, steps: int = 50, cfg: float = 5.0) -> torch.Tensor:
    """Images (B, H, W, 3), one a prompt, by the host's KSampler from an empty latent."""
    import utils.extra_config  # noqa: F401  before `nodes`, after which some hosts hide it behind comfy/utils.py

    import nodes  # isort: skip

    positive, negative = encode(clip, prompts), encode(clip, [""])
    empty = {"samples": torch.zeros(len(prompts), model.get_model_object("latent_format").latent_channels, 16, 16)}
    (latent,) = nodes.common_ksampler(model, seed, steps, cfg, "euler", "normal", positive, negative, empty)
    return vae.decode(latent["samples"])


def encode(clip: Any, prompts: list[str]) -> list[Any]:
    """The prompts as one batch of the host's CONDITIONING."""
    encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0] for prompt in prompts]
    return [[torch.cat([context for context, _ in encoded]), encoded[0][1]]]


def accuracy(name: str, read: Any, subjects: list[Any]) -> dict[str, float]:
    """Share of images whose attribute is the scene's, for each attribute."""
    return {
        f"{name}_{attribute}": sum(
            guess == getattr(s, attribute) for guess, s in zip(getattr(read, attribute), subjects, strict=True)
        )
        / len(subjects)
        for attribute in ATTRIBUTES
    }


def table(figures: dict[str, float], count: int) -> str:
    """The figures as a Markdown table."""
    rows = [f"| {name.replace('_', ' ')} | {value:.3f} | {NEEDED[name]:.2f} |" for name, value in figures.items()]
    return "\n".join([f"| toy figure, {count} scenes | measured | needed |", "|---|---|---|", *rows])


def main() -> None:
    """Evaluate, print the table, write it into the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="held-out scenes")
    parser.add_argument("--batch", type=int, default=25, help="images sampled at once")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    report = table(evaluate(arguments.count, arguments.batch), arguments.count)
    print(report)
    before, _, rest = README.read_text(encoding="utf-8").partition(OPEN)
    text = f"{before}{OPEN}\n{report}\n{CLOSE}{rest.partition(CLOSE)[2]}"
    write_atomically(README, lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
