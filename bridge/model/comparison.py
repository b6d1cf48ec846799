"""Whether what the layers show of two prompts can be compared, as far as it is known before anything is sampled."""

from collections.abc import Iterable
from itertools import accumulate
from types import SimpleNamespace

import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample
from comfy.model_patcher import ModelPatcher
from torch import nn

from .facts import HookedLayers, Layer

Place = tuple[int, int]


def check_comparable(
    model: ModelPatcher,
    layers: HookedLayers,
    size: Place,
    sigmas: Iterable[float],
    source: list[dict],
    edited: list[dict],
) -> None:
    """Raises ValueError, with the cause, where a pass of `source` and one of `edited` would not show the same maps.

    Both are CONDITIONINGs as a guider holds them, before they are processed; `size` is the latent's (H, W), `sigmas` the levels
    at which they are compared.
    """
    if len(source) != len(edited):
        raise ValueError(
            f"the source has {len(source)} prompts combined and what it becomes {len(edited)}, so that they cannot be compared; "
            "combine as many in both"
        )
    if not all(same_place(a, b) for a, b in zip(source, edited, strict=True)):
        raise ValueError("the areas of the source's prompts are not those of what it becomes; give both the same areas")
    if not any("area" in entry for entry in source):
        check_sizes(model, layers, size)
    ranges = [ranged(model, cond) for cond in (source, edited)]
    for sigma in sigmas:
        of_source, of_edited = (acting(cond, sigma) for cond in ranges)
        if of_source != of_edited or not of_source:
            raise ValueError(
                f"at sigma {sigma:.4g} {len(of_source)} of the source's prompts act and {len(of_edited)} of what it becomes, by "
                "their timestep ranges, so that they cannot be compared; give both the same range, and compare within it alone"
            )


def check_sizes(model: ModelPatcher, layers: HookedLayers, size: Place) -> None:
    """Raises ValueError where `max_side` leaves out every layer of a kind that is read, for a latent of this size."""
    if not layers.max_side:
        return
    unet = model.get_model_object("diffusion_model")
    for kind, chosen in (("self-attention", layers.self_attention), ("cross-attention", layers.cross_attention)):
        height, width = min((map_size(unet, layer, size) for layer in chosen), default=(0, 0))
        if height * width > layers.max_side**2:
            raise ValueError(
                f"max_side is {layers.max_side} and leaves out every {kind} layer, whose maps are of {width}x{height} positions "
                "and more; raise it in Attention Hooked U-Net"
            )


def map_size(unet: nn.Module, layer: Layer, size: Place) -> Place:
    """Height and width of the maps of a layer for a latent of `size`. Every halving of the host's U-Nets rounds up."""
    halvings = [*accumulate(int(any(isinstance(part, Downsample) for part in block)) for block in unet.input_blocks)]
    # The middle block is as deep as the last input block; an output block joins what the input block opposite gave.
    opposite = {"input": layer.number, "middle": -1, "output": -1 - layer.number}[layer.block]
    scale = 2 ** halvings[opposite]
    return -(-size[0] // scale), -(-size[1] // scale)


def same_place(entry: dict, other: dict) -> bool:
    """Whether two prompts are about the same area of the image."""
    if entry.get("area") != other.get("area") or entry.get("set_area_to_bounds") != other.get("set_area_to_bounds"):
        return False
    return not entry.get("set_area_to_bounds") or torch.equal(entry["mask"], other["mask"])


def ranged(model: ModelPatcher, cond: list[dict]) -> list[dict]:
    """A copy of a condition whose entries know the noise levels of their timestep ranges."""
    cond = list(cond)
    comfy.samplers.calculate_start_end_timesteps(SimpleNamespace(model_sampling=model.get_model_object("model_sampling")), cond)
    return cond


def acting(cond: list[dict], sigma: float) -> list[int]:
    """Numbers of the entries whose timestep range holds a noise level, by the host's rule."""
    return [
        number
        for number, entry in enumerate(cond)
        if entry.get("timestep_end", 0.0) <= sigma <= entry.get("timestep_start", float("inf"))
    ]
