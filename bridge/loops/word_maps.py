"""Cross-attention maps of one noised image, hosted."""

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.maps.words import average_maps
from ..model.attention import observe
from ..model.comparison import check_sizes
from ..model.facts import HookedLayers
from .differences import noise_level
from .hosted import Run, guider_of, run_hosted


def attention_maps(
    model: ModelPatcher, latent_image: Tensor, conditioning: list, layers: HookedLayers, strength: float, seed: int
) -> Tensor:
    """How much each position of a LATENT's samples (B, C, H, W), noised to `strength`, attends to each token: (B, tokens, H, W).

    On the CPU. An area of the conditioning is honoured: outside of it is 0. The samples of a batch share their noise, so each
    gets the maps that it gets alone.
    """

    def look(run: Run) -> Tensor:
        x = run.noising.noised(run.latent, run.noise, run.sigmas[0])
        levels, cond = run.sigmas[:1].repeat(len(x)), run.conds["positive"]
        height, width, top, left = only_area(cond, x, levels)
        shown = observe(run.model, cond, x, levels, run.options, layers).cross_attention
        if not shown:
            raise ValueError(
                "no layer showed a map; remove from the model what skips passes or layers (a cache), or raise max_side in "
                "Attention Hooked U-Net"
            )
        maps = average_maps(list(shown.values()), (height, width))
        if not torch.isfinite(maps).all():
            raise ValueError("the attention maps are not finite; check latent and prompt, or load the model in float32")
        whole = maps.new_zeros(*maps.shape[:2], *x.shape[-2:])
        whole[..., top : top + height, left : left + width] = maps
        return whole.cpu()

    noise = torch.randn(1, *latent_image.shape[1:], generator=torch.Generator().manual_seed(seed)).expand(latent_image.shape)
    guider = guider_of(model, positive=conditioning)
    if not any("area" in entry for entry in guider.original_conds["positive"]):
        check_sizes(model, layers, latent_image.shape[-2:])
    return run_hosted(guider, look, latent_image, noise_level(model, strength), noise=noise, seed=seed)


def only_area(cond: list[dict], x: Tensor, levels: Tensor) -> tuple[int, int, int, int]:
    """Height, width, top and left of the one entry of `cond` that acts at these levels. Raises ValueError for several or none."""
    places = [comfy.samplers.get_area_and_mult(entry, x, levels) for entry in cond]
    acting = [place for place in places if place is not None]
    if len(acting) != 1:
        raise ValueError(
            f"the conditioning has {len(acting)} prompts at this noise level; it needs one, so that a token is one word: "
            "connect a single prompt, before Conditioning Combine, and choose strength within its timestep range"
        )
    return acting[0].area or (*x.shape[-2:], 0, 0)
