"""What stands beside the toy world's U-Net or in its place: the host's classes with random weights."""

import math
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy.model_base
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from zerocon_pack.bridge.toyworld import ToyWorldModel
from zerocon_pack.zerocon_core.toyworld import config

CPU = torch.device("cpu")


def randomized(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """`module` with weights that keep the size of what passes through it, and small biases."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=draw)
            if parameter.ndim > 1:
                values *= scale / math.sqrt(math.prod(parameter.shape[1:]))
            else:
                values = values * 0.05 + name.endswith("weight")
            parameter.copy_(values)
    return module


def wider(model: ModelPatcher, kind: str) -> ModelPatcher:
    """The U-Net of `model` as one that also takes a picture: an inpaint model or one that edits by instruction."""
    channels = {"inpaint": 9, "ip2p": 8}[kind]
    model_config = ToyWorldModel(config.UNET_CONFIG | {"in_channels": channels})
    model_config.latent_format = model.model.latent_format
    model_config.set_inference_dtype(torch.float32, None)
    if kind == "inpaint":
        base = comfy.model_base.BaseModel(model_config, comfy.model_base.ModelType.EPS, device=CPU)
        base.set_inpaint()
    else:
        base = comfy.model_base.SD15_instructpix2pix(model_config, device=CPU)
    first = "input_blocks.0.0.weight"
    weights = dict(model.model.diffusion_model.state_dict())
    picture = torch.randn(len(weights[first]), channels - 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    base.diffusion_model.load_state_dict(weights | {first: torch.cat((weights[first], picture), 1)})
    return ModelPatcher(base, load_device=CPU, offload_device=CPU)


def controlnet() -> comfy.controlnet.ControlNet:
    sizes: dict[str, Any] = config.UNET_CONFIG | {"num_heads": config.UNET_HEADS, "hint_channels": 3}
    network = randomized(comfy.cldm.cldm.ControlNet(**sizes), 0.2)
    return comfy.controlnet.ControlNet(network, load_device=CPU)


def gligen(unet: nn.Module) -> ModelPatcher:
    """Boxes with words, for every transformer block of `unet`."""
    width = config.UNET_CONFIG["context_dim"]
    blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
    dims = [block.attn1.to_q.in_features for block in blocks]
    gates = [comfy.gligen.GatedSelfAttentionDense(dim, width, 2, dim // 2) for dim in dims]
    network = comfy.gligen.Gligen(gates, comfy.gligen.PositionNet(width, width), width)
    return ModelPatcher(randomized(network), load_device=CPU, offload_device=CPU)


class Hypernetwork:
    """As HypernetworkLoader makes it of a file of one linear layer for keys and one for values."""

    def __init__(self, width: int) -> None:
        self.layers = randomized(nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)]), 0.3)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        if k.shape[-1] != self.layers[0].in_features:
            return q, k, v
        return q, k + self.layers[0](k), v + self.layers[1](v)

    def to(self, device: torch.device) -> "Hypernetwork":
        self.layers.to(device)
        return self
