"""Cross-attention maps of one noised image, by the host's own sampling machinery."""

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.maps.words import average_maps
from ..model.attention import observe
from ..model.facts import HookedLayers
from .differences import noise_level
from .inversion import ConditionalGuider


class ObservingSampler(comfy.samplers.Sampler):
    """Noises the latent to the first level and keeps what the conditioning of its guider attends to there."""

    def __init__(self, layers: HookedLayers):
        self.layers = layers
        self.maps: Tensor | None = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        comfy.model_management.throw_exception_if_processing_interrupted()
        model, cond = model_wrap.inner_model, model_wrap.conds["positive"]
        x = model.model_sampling.noise_scaling(sigmas[0], noise, latent_image)
        levels = sigmas[:1].repeat(len(x))
        places = [comfy.samplers.get_area_and_mult(entry, x, levels) for entry in cond]
        acting = [number for number, place in enumerate(places) if place is not None]
        if len(acting) != 1:
            raise ValueError(
                f"the conditioning has {len(acting)} prompts at this noise level; it needs one, so that a token is one word: "
                "connect a single prompt, before Conditioning Combine, and choose strength within its timestep range"
            )
        shown = observe(model, cond, x, levels, extra_args["model_options"], self.layers).cross_attention
        if not shown:
            raise ValueError(f"max_side is {self.layers.max_side} and leaves out every layer; raise it in Attention Hooked U-Net")
        height, width, top, left = places[acting[0]].area or (*x.shape[-2:], 0, 0)
        maps = average_maps(list(shown.values()), (height, width))
        self.maps = maps.new_zeros(*maps.shape[:2], *x.shape[-2:])
        self.maps[..., top : top + height, left : left + width] = maps
        return latent_image


def attention_maps(
    model: ModelPatcher, latent_image: Tensor, conditioning: list, layers: HookedLayers, strength: float, seed: int
) -> Tensor:
    """How much each position of a LATENT's samples (B, C, H, W), noised to `strength`, attends to each token: (B, tokens, H, W).

    On the CPU. An area of the conditioning is honoured: outside of it is 0. The samples of a batch share their noise, so each
    gets the maps that it gets alone.
    """
    noise = torch.randn(1, *latent_image.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(latent_image.shape)
    sampler = ObservingSampler(layers)
    ConditionalGuider(model, conditioning).sample(noise, latent_image, sampler, noise_level(model, strength), seed=seed)
    return sampler.maps.cpu()
