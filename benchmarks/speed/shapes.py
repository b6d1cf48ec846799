"""U-Nets of SD1.5's and SDXL's depth at any size."""

from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.supported_models
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from zerocon_pack.training.common import reset_weights

COMMON = dict(
    image_size=32, in_channels=4, out_channels=4, use_spatial_transformer=True, use_temporal_attention=False, legacy=False,
)  # fmt: skip
SD15 = COMMON | dict(
    num_res_blocks=[2, 2, 2, 2], channel_mult=[1, 2, 4, 4], transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], context_dim=768,
    use_linear_in_transformer=False, adm_in_channels=None,
)  # fmt: skip
SDXL = COMMON | dict(
    num_res_blocks=[2, 2, 2], channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], context_dim=2048, use_linear_in_transformer=True,
    num_classes="sequential", adm_in_channels=2816,
)  # fmt: skip
CONFIGS = {"SD1.5": SD15, "SDXL": SDXL}
HEADS = {"SD1.5": dict(num_heads=8, num_head_channels=-1), "SDXL": dict(num_heads=-1, num_head_channels=64)}
TOKENS, POOLED = 77, 1280


@dataclass(frozen=True)
class Shape:
    """A family's depth with `channels` instead of 320, at latents of `side` x `side`."""

    family: str
    channels: int
    side: int

    def __str__(self) -> str:
        return f"{self.family}'s depth, {self.channels} channels, {self.side}x{self.side}"

    @property
    def config(self) -> dict[str, Any]:
        return CONFIGS[self.family]

    def model(self) -> ModelPatcher:
        """Of the host's own classes, in float32, loaded where the host computes."""
        kind, base = {
            "SD1.5": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
            "SDXL": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
        }[self.family]
        config = kind(self.config | {"model_channels": self.channels})
        config.set_inference_dtype(torch.float32, None)
        device = comfy.model_management.get_torch_device()
        model = base(config, model_type=comfy.model_base.ModelType.EPS, device=device)
        reset_weights(model.diffusion_model, seed=0)
        model.diffusion_model.requires_grad_(False)  # gradients in the input alone
        patcher = ModelPatcher(model, load_device=device, offload_device=device)
        comfy.model_management.load_models_gpu([patcher])
        return patcher

    def conditionings(self, count: int) -> list[list]:
        """CONDITIONINGs of random embeddings."""
        draw = torch.Generator().manual_seed(0)
        width = self.config["context_dim"]
        return [
            [[torch.randn(1, TOKENS, width, generator=draw), {"pooled_output": torch.randn(1, POOLED, generator=draw)}]]
            for _ in range(count)
        ]

    def latent(self) -> Tensor:
        return torch.randn(1, 4, self.side, self.side, generator=torch.Generator().manual_seed(1))


class Passes:
    """The U-Net of a loaded model under plain embeddings, past the host's conditioning and batching."""

    def __init__(self, model: ModelPatcher, shape: Shape) -> None:
        self.base, self.device = model.model, model.load_device
        self.adm = shape.config["adm_in_channels"]

    def __call__(self, x: Tensor, sigma: Tensor, context: Tensor, **options) -> Tensor:
        """Denoised (B, C, H, W) at one noise level; `options` are transformer options."""
        vectors = {"y": x.new_zeros(len(x), self.adm)} if self.adm else {}
        return self.base.apply_model(x, sigma.repeat(len(x)), c_crossattn=context, transformer_options=options, **vectors)


def meta_unet(family: str, dtype: torch.dtype) -> UNetModel:
    """The real U-Net without contents."""
    unet = UNetModel(
        **CONFIGS[family] | HEADS[family], model_channels=320, dtype=dtype, device="meta", operations=comfy.ops.manual_cast
    )  # fmt: skip
    return unet.requires_grad_(False)
