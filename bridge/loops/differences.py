"""Noise predictions of several prompts, by the host's own sampling machinery."""

from collections.abc import Callable
from functools import partial

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from PIL import Image
from torch import Tensor

from ...zerocon_core.maps.differences import average_difference, heat_map
from ...zerocon_core.noising import to_eps

PREVIEW_SIDE = 512


class DifferenceSampler(comfy.samplers.Sampler):
    """Noises the latent to the first level, once a draw, and compares what the conditionings of its guider predict there.

    All predictions of a draw are one call of the host, which runs them in one batch if they fit into memory.
    """

    def __init__(self, draws: int, seed: int):
        self.draws = draws
        self.seed = seed
        self.differences: Tensor | None = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        model, conds = model_wrap.inner_model, list(model_wrap.conds.values())
        options = extra_args["model_options"]  # of this run alone
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, "zerocon", as_positive, options, is_model_options=True)
        levels = sigmas[:1].repeat(latent_image.shape[0])

        def predict(noise: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            x = model.model_sampling.noise_scaling(sigmas[0], noise.to(latent_image), latent_image)
            denoised = comfy.samplers.calc_cond_batch(model, conds, x, levels, options)
            return to_eps(x, sigmas[0], torch.stack(denoised)).float()

        generator = torch.Generator().manual_seed(self.seed)
        self.differences = average_difference(predict, latent_image.shape, self.draws, generator, callback).cpu()
        return latent_image


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
    guider, sampler = comfy.samplers.CFGGuider(model), DifferenceSampler(draws, seed)
    guider.inner_set_conds({f"prompt {number}": conditioning for number, conditioning in enumerate(conditionings)})
    guider.sample(
        torch.zeros_like(latent_image),
        latent_image,
        sampler,
        noise_level(model, strength),
        callback=callback or partial(show, comfy.utils.ProgressBar(draws), draws),
        seed=seed,
    )
    return sampler.differences


def noise_level(model: ModelPatcher, strength: float) -> Tensor:
    """The level that sampling with this denoising strength starts from, as a schedule of one level."""
    sampling = model.get_model_object("model_sampling")
    return torch.tensor([min(sampling.percent_to_sigma(1 - strength), float(sampling.sigma_max))])


def show(progress: comfy.utils.ProgressBar, draws: int, draw: int, differences: Tensor) -> None:
    """Progress, with the first map so far as its preview."""
    first = differences[:1]
    grey = heat_map(first)[0] if first.min() < first.max() else torch.zeros_like(first[0])
    picture = Image.fromarray(grey.mul(255).byte().cpu().numpy())
    scale = PREVIEW_SIDE // max(picture.size) or 1
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    progress.update_absolute(draw + 1, draws, ("JPEG", picture, PREVIEW_SIDE))
