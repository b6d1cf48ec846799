"""Small models of the host's own classes, with weights that make their attention matter."""

import math

import comfy.model_base
import comfy.model_patcher
import comfy.supported_models
import torch

SIZES = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
    transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], context_dim=64,
    use_linear_in_transformer=False, adm_in_channels=None, use_temporal_attention=False, use_spatial_transformer=True,
    legacy=False,
)  # fmt: skip
CPU = torch.device("cpu")


def tiny_unet(dtype: torch.dtype = torch.float32, seed: int = 0, model_type=comfy.model_base.ModelType.EPS):
    """A ModelPatcher around an SD1.x U-Net of 0.8 M weights of `dtype` that computes in float32."""
    config = comfy.supported_models.SD15(SIZES | {"dtype": dtype})
    config.unet_config["num_heads"] = 2
    config.set_inference_dtype(dtype, torch.float32 if dtype != torch.float32 else None)
    model = comfy.model_base.BaseModel(config, model_type=model_type, device=CPU)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                values *= 0.7 / math.sqrt(math.prod(parameter.shape[1:]))
            else:
                values = values * 0.05 + name.endswith("weight")
            parameter.copy_(values)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(seed: int, tokens: int = 77) -> list:
    return [[randn(1, tokens, SIZES["context_dim"], seed=seed), {"pooled_output": None}]]


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm())
