"""Small transformers of the host's own classes that write in place (FLUX.1) or normalise with nn.RMSNorm (Lumina2)."""

import math

import comfy.model_patcher
import comfy.supported_models
import torch
from tiny import CPU, WIDTH

AXES = [8, 12, 12]
FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, vec_in_dim=WIDTH, context_in_dim=WIDTH, hidden_size=64, mlp_ratio=2.0,
    num_heads=2, depth=2, depth_single_blocks=2, axes_dim=AXES, theta=10000, patch_size=2, qkv_bias=True, guidance_embed=True,
)  # fmt: skip
LUMINA = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=1,
    axes_dims=AXES, axes_lens=[64, 64, 64], multiple_of=32, ffn_dim_multiplier=2.0, qk_norm=True, cap_feat_dim=WIDTH,
)  # fmt: skip
KINDS = {"FLUX.1": (comfy.supported_models.Flux, FLUX), "Lumina2": (comfy.supported_models.Lumina2, LUMINA)}


def tiny_dit(family: str, dtype: torch.dtype = torch.float32):
    """A ModelPatcher around a transformer of 0.2 to 0.4 M weights of `dtype` that computes in float32."""
    kind, sizes = KINDS[family]
    config = kind(sizes | {"dtype": dtype} | ({"txt_ids_dims": []} if takes_text_axes(family) else {}))
    config.set_inference_dtype(dtype, torch.float32 if dtype != torch.float32 else None)
    model = config.get_model({}, device=CPU)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                values *= 0.7 / math.sqrt(math.prod(parameter.shape[1:]))
            else:
                values = values * 0.05 + name.endswith(("weight", "scale"))
            parameter.copy_(values)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def takes_text_axes(family: str) -> bool:
    """Newer hosts ask which axes of FLUX count the text."""
    import comfy.ldm.flux.model as flux

    return family == "FLUX.1" and "txt_ids_dims" in flux.FluxParams.__dataclass_fields__
