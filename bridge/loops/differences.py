"""How far the noise predictions of several prompts are apart, hosted."""

from collections.abc import Callable
from functools import partial

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from PIL import Image
from torch import Tensor

from ...zerocon_core.maps.differences import average_difference, heat_map
from ..model.noising import levels_at
from .hosted import Run, guider_of, run_hosted

PREVIEW_SIDE = 512


def as_positive(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
    """To the host the second conditioning is the negative one, and patches of other packs go by that; here all are positive."""
    options = transformer_options | {"cond_or_uncond": [0] * len(transformer_options["cond_or_uncond"])}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


def prompt_differences(
    model: ModelPatcher,
    latent_image: Tensor,
    conditionings: list[list],
    strength: float,
    draws: int,
    seed: int,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """How far the predictions of `conditionings` are apart on a LATENT's samples, (B, H, W) on the CPU, averaged over `draws`.

    `callback(draw, mean so far)` runs after each draw; without it, the node shows its progress.
    """

    def compare(run: Run) -> Tensor:
        # All predictions of a draw are one call of the host, which runs them in one batch if they fit into memory.
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, "zerocon", as_positive, run.options, is_model_options=True)
        noising, sigma, conds = run.noising, run.sigmas[0], list(run.conds.values())

        def predict(noise: Tensor) -> Tensor:
            x = noising.noised(run.latent, noise.to(run.latent), sigma)
            return noising.eps(x, sigma, torch.stack(run.ask(conds, x, sigma))).float()

        generator = torch.Generator().manual_seed(seed)
        return average_difference(predict, run.latent.shape, draws, generator, run.callback).cpu()

    guider = guider_of(model, **{f"prompt {number}": conditioning for number, conditioning in enumerate(conditionings)})
    shown = callback or partial(show, comfy.utils.ProgressBar(draws), draws)
    return run_hosted(guider, compare, latent_image, noise_level(model, strength), callback=shown, seed=seed)


def noise_level(model: ModelPatcher, strength: float) -> Tensor:
    """The level that sampling with this denoising strength starts from, as a schedule of one level."""
    return levels_at(model, [strength])


def show(progress: comfy.utils.ProgressBar, draws: int, draw: int, differences: Tensor) -> None:
    """Progress, with the first map so far as its preview."""
    first = differences[:1]
    grey = heat_map(first)[0] if first.min() < first.max() else torch.zeros_like(first[0])
    picture = Image.fromarray(grey.mul(255).byte().cpu().numpy())
    scale = PREVIEW_SIDE // max(picture.size) or 1
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    progress.update_absolute(draw + 1, draws, ("JPEG", picture, PREVIEW_SIDE))
