"""Measure the shipped tabletop on held-out scenes, with the host's stock sampler, and print the figures as a table.

    python -m training.tabletop.evaluate [--count 300] [--sheet FILE]

Models whose files are not there yet are left out of the table, and named.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.samplers
import numpy as np
import torch
from PIL import Image
from zerocon_pack.bridge import tabletop as bridge
from zerocon_pack.zerocon_core.tabletop import autoencoder, captions, edits, render, sampling, weights
from zerocon_pack.zerocon_core.tabletop import classifier as judge
from zerocon_pack.zerocon_core.tabletop import scene as words

from ..evaluate import encode, sample

STEPS, CFG, BATCH = 30, 4.0, 25
ATTRIBUTES = ("colour", "shape", "floor", "material")
# What each figure must reach; a bound that starts with < is one from above.
NEEDED = {
    "autoencoder, PSNR": "37 dB",
    "autoencoder, PSNR outside the solids": "37 dB",
    "colour shift of the background, mean": "< 0.5 / 255",
    "colour shift of the background, worst scene": "< 1.5 / 255",
    "background lost when the solid's latents are the true edit's": "< 0.3 dB",
    **{f"sampled, one solid: {a}": f"{n} %" for a, n in zip(ATTRIBUTES, (95, 90, 95, 85), strict=True)},
    **{f"sampled, two solids: {a}": f"{n} %" for a, n in zip(ATTRIBUTES, (85, 80, 90, 75), strict=True)},
    **{f"classifier on renders: {a}": "99 %" for a in ATTRIBUTES},
    "inversion and resampling at CFG 1, against the autoencoder": "34 dB",
}


def psnr(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor | None = None) -> torch.Tensor:
    """PSNR (N,) in dB between pictures (N, H, W, 3) in [0, 1], over the pixels of a mask (N, H, W) if there is one."""
    error = (one - other).square().mean(dim=-1)
    where = torch.ones_like(error) if where is None else where
    return -10.0 * ((error * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2))).log10()


def pictures(scenes: list[Any]) -> torch.Tensor:
    """(N, H, W, 3) in [0, 1]"""
    return torch.stack([torch.from_numpy(render.render(s)) for s in scenes])


def of_autoencoder(vae: Any, scenes: list[Any]) -> dict[str, float]:
    """The ceiling that the autoencoder sets, in pictures and their backgrounds."""
    images = pictures(scenes)
    back = vae.decode(vae.encode(images))
    outside = torch.stack([torch.from_numpy((render.solid_masks(s).sum(axis=0) == 0).astype(np.float32)) for s in scenes])
    shift = ((back - images) * outside[..., None]).sum(dim=(1, 2)) / outside.sum(dim=(1, 2))[:, None]
    shift = shift.abs().mean(dim=1) * 255.0
    return {
        "autoencoder, PSNR": float(psnr(back, images).mean()),
        "autoencoder, PSNR outside the solids": float(psnr(back, images, outside).mean()),
        "colour shift of the background, mean": float(shift.mean()),
        "colour shift of the background, worst scene": float(shift.max()),
        "background lost when the solid's latents are the true edit's": _lost_by_exchange(vae, scenes, images, back),
    }


def _lost_by_exchange(vae: Any, scenes: list[Any], images: torch.Tensor, back: torch.Tensor) -> float:
    """What the background loses, in dB, when the latents that a change of colour touches are replaced by the true edit's."""
    edited = pictures([_recoloured(s) for s in scenes])
    changed = [torch.from_numpy(render.change_mask(a.numpy(), b.numpy())) for a, b in zip(images, edited, strict=True)]
    mask = torch.stack(changed)
    cells = torch.nn.functional.max_pool2d(mask[:, None], 8)
    exchanged = vae.decode(torch.lerp(vae.encode(images), vae.encode(edited), cells))
    return float((psnr(back, images, 1 - mask) - psnr(exchanged, images, 1 - mask)).mean())


def _recoloured(scene: Any) -> Any:
    """The scene with its first solid in the next colour of the list, so that each colour is left and reached equally often."""
    first = scene.solids[0]
    colour = words.COLOURS[(words.COLOURS.index(first.colour) + 1) % len(words.COLOURS)]
    return edits.change(scene, str(first), colour)


def of_classifier(classifier: Any, images: torch.Tensor, scenes: list[Any]) -> dict[str, float]:
    """Mean agreement in percent of what the classifier sees with what the scenes are."""
    each = [judge.agreement(seen, s) for seen, s in zip(judge.classify(images, classifier), scenes, strict=True)]
    return {attribute: 100.0 * float(np.mean([e[attribute] for e in each])) for attribute in ATTRIBUTES}


def sample_all(model: Any, clip: Any, vae: Any, prompts: list[str]) -> torch.Tensor:
    """Pictures (N, H, W, 3), one a prompt."""
    starts = range(0, len(prompts), BATCH)
    return torch.cat([sample(model, clip, vae, prompts[i : i + BATCH], i, STEPS, CFG) for i in starts])


def of_inversion(model: Any, clip: Any, vae: Any, scenes: list[Any]) -> float:
    """PSNR in dB of pictures inverted and sampled again at CFG 1, against what the autoencoder alone makes of them."""
    comfy.model_management.load_models_gpu([model])
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", STEPS)
    context = encode(clip, [captions.caption(s) for s in scenes])[0][0]

    def eps(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return (x - model.model.apply_model(x, sigma.expand(len(x)), c_crossattn=context)) / sigma

    x = latent = vae.encode(pictures(scenes))
    for low, high in zip(sigmas.flip(0), sigmas.flip(0)[1:], strict=False):
        guess = x * ((1 + high**2) / (1 + low**2)).sqrt()
        x = x + (high - low) * eps(guess, high)
    for high, low in zip(sigmas, sigmas[1:], strict=False):
        x = x + (low - high) * eps(x, high)
    return float(psnr(vae.decode(x), vae.decode(latent)).mean())


def evaluate(count: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The figures that `NEEDED` names, as far as there are models for them, and pictures by what they show."""
    one, two = (sampling.held_out_scenes(count, solids) for solids in (1, 2))
    scenes = sampling.held_out_scenes(count)
    vae = bridge.build_vae(autoencoder.load_autoencoder())
    figures, shown = of_autoencoder(vae, scenes), {"renders": pictures(scenes[:BATCH])}
    shown["reconstructions"] = vae.decode(vae.encode(shown["renders"]))
    classifier = judge.load_classifier() if _there("classifier") else None
    if classifier:
        read = of_classifier(classifier, pictures(scenes), scenes)
        figures |= {f"classifier on renders: {a}": value for a, value in read.items()}
    if _there("unet"):
        model, clip = bridge.load_model(), bridge.load_clip()
        for name, asked in (("one solid", one), ("two solids", two)):
            drawn = shown[f"sampled, {name}"] = sample_all(model, clip, vae, [captions.caption(s) for s in asked])
            if classifier:
                figures |= {f"sampled, {name}: {a}": value for a, value in of_classifier(classifier, drawn, asked).items()}
        figures["inversion and resampling at CFG 1, against the autoencoder"] = of_inversion(model, clip, vae, scenes[:BATCH])
    return figures, shown


def _there(name: str) -> bool:
    if there := (weights.FOLDER / f"{name}.safetensors").exists():
        return there
    print(f"No {name} yet: its figures are left out.")
    return False


def sheet(shown: dict[str, torch.Tensor]) -> Image.Image:
    """The first pictures of each kind, a row each."""
    rows = [torch.cat(list(images[:10]), dim=1) for images in shown.values()]
    return Image.fromarray(torch.cat(rows).mul(255.0).round().byte().numpy())


def table(figures: dict[str, float], count: int) -> str:
    """The figures as a Markdown table."""
    rows = [f"| {name} | {figures[name]:.2f} | {needed} |" for name, needed in NEEDED.items() if name in figures]
    return "\n".join([f"| toy figure, {count} scenes | measured | needed |", "|---|---|---|", *rows])


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="held-out scenes")
    parser.add_argument("--sheet", type=Path, help="write a picture of renders, reconstructions and samples here")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with torch.inference_mode():
        figures, shown = evaluate(arguments.count)
    print(table(figures, arguments.count))
    if arguments.sheet:
        sheet(shown).save(arguments.sheet)


if __name__ == "__main__":
    main()
