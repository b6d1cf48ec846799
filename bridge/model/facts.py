"""What is known of a loaded model: the host's U-Nets with their layers, and how an image becomes a latent."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.attention import GEGLU, BasicTransformerBlock, CrossAttention, SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import nn


class Layer(NamedTuple):
    """One transformer block of a U-Net, in the host's numbering: ("output", 3, 0) is the first of output block 3."""

    block: str
    number: int
    index: int


@dataclass(frozen=True)
class HookedLayers:
    """Which layers of a model are read. `max_side` leaves out maps of more than max_side^2 positions; 0 reads all."""

    self_attention: frozenset[Layer] = frozenset()
    cross_attention: frozenset[Layer] = frozenset()
    max_side: int = 0


def transformer_layers(unet: nn.Module) -> list[Layer]:
    """The transformer blocks of a host U-Net in the order of a pass; empty for any other architecture."""
    if not isinstance(unet, UNetModel):
        return []
    blocks: list[tuple[str, int, nn.Module]] = [
        *(("input", i, block) for i, block in enumerate(unet.input_blocks)),
        *([("middle", 0, unet.middle_block)] if unet.middle_block is not None else []),
        *(("output", i, block) for i, block in enumerate(unet.output_blocks)),
    ]
    return [
        Layer(name, number, index)
        for name, number, block in blocks
        for transformer in block.modules()
        if isinstance(transformer, SpatialTransformer)
        for index in range(len(transformer.transformer_blocks))
    ]


def decoder_self_attention(unet: nn.Module) -> HookedLayers:
    """The layers that CDS reads: it found the self-attention of the decoder best."""
    return HookedLayers(frozenset(layer for layer in transformer_layers(unet) if layer.block == "output"))


def all_cross_attention(unet: nn.Module) -> HookedLayers:
    """The layers that pix2pix-zero reads."""
    return HookedLayers(frozenset(), frozenset(transformer_layers(unet)))


def is_unet(network: nn.Module) -> bool:
    """Whether `network` is one of the host's U-Nets, or a ControlNet of one."""
    return isinstance(network, (UNetModel, ControlNet))


def is_video_unet(network: nn.Module) -> bool:
    """Whether `network` is a U-Net whose samples are the frames of one video (SVD)."""
    return isinstance(network, UNetModel) and any(isinstance(module, SpatialVideoTransformer) for module in network.modules())


def latent_dimensions(model: ModelPatcher) -> int:
    """Of one latent: 2 for images, 3 for video, 1 for sound."""
    return model.get_model_object("latent_format").latent_dimensions


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that hold most of what a pass of `network` computes, none inside another.

    Those of a U-Net are its residual and transformer blocks; a SpatialTransformer of SDXL is ten of these deep. Other
    architectures list their blocks directly under the network.
    """
    if is_unet(network):
        return [module for module in network.modules() if isinstance(module, (ResBlock, BasicTransformerBlock))]
    lists = [module for module in network.children() if isinstance(module, nn.ModuleList)]
    return list(chain.from_iterable(lists))


def gated_gelus(network: nn.Module) -> Iterator[nn.Module]:
    """The host's gated feed-forwards, as they are."""
    return (module for module in network.modules() if type(module) is GEGLU and "forward" not in module.__dict__)


PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of each attention that get an adapter: the customary choice for LoRAs."""


def attention_projections(model: BaseModel) -> dict[str, nn.Module]:
    """The layers to adapt by their names in the host's LoRA files, in the order of the model's modules."""
    return {
        f"{name}.{projection}": module.get_submodule(projection)
        for name, module in model.named_modules()
        if isinstance(module, CrossAttention)
        for projection in PROJECTIONS
    }


def pixels_per_position(model: ModelPatcher) -> int:
    """Image pixels a side of one latent position. Hosts that do not know it for every model take 8, and so do we."""
    latent_format = model.get_model_object("latent_format")
    return getattr(latent_format, "spacial_downscale_ratio", 8)


def text_width(model: ModelPatcher) -> int | None:
    """Width of the text embeddings that a U-Net's cross-attention takes; None for other models, which tell it nowhere."""
    if not transformer_layers(model.get_model_object("diffusion_model")):
        return None
    return model.model.model_config.unet_config.get("context_dim")


def attention_levels(unet: nn.Module) -> dict[Layer, int]:
    """How often the image was halved where each transformer block of a host U-Net stands; empty for any other architecture."""
    if not isinstance(unet, UNetModel):
        return {}
    halved = [any(isinstance(module, Downsample) for module in block) for block in unet.input_blocks]
    doubled = [any(isinstance(module, Upsample) for module in block) for block in unet.output_blocks]
    at = {
        "input": lambda number: sum(halved[: number + 1]),
        "middle": lambda number: sum(halved),
        "output": lambda number: sum(halved) - sum(doubled[:number]),
    }
    return {layer: at[layer.block](layer.number) for layer in transformer_layers(unet)}
