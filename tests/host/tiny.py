"""Small models of the host's own classes, with weights that make their attention matter."""

import gc
import hashlib
import math
from collections import Counter

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from comfy.model_base import ModelType
from comfy.patcher_extension import WrappersMP

WIDTH = 64
"""Of the text embeddings."""

COMMON = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
    context_dim=WIDTH, use_temporal_attention=False, use_spatial_transformer=True, legacy=False, adm_in_channels=None,
)  # fmt: skip
SHALLOW = dict(transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1])
DEEP = dict(transformer_depth=[0, 2], transformer_depth_middle=2, transformer_depth_output=[0, 0, 2, 2])
FAMILIES = {
    "SD1.x": (comfy.supported_models.SD15, ModelType.EPS, SHALLOW | {"use_linear_in_transformer": False}),
    "SD2.x": (comfy.supported_models.SD20, ModelType.V_PREDICTION, SHALLOW | {"use_linear_in_transformer": True}),
    # Pooled text of width 64 and six embedded sizes of width 256.
    "SDXL": (
        comfy.supported_models.SDXL,
        ModelType.EPS,
        DEEP | {"use_linear_in_transformer": True, "adm_in_channels": WIDTH + 6 * 256, "num_classes": "sequential"},
    ),
}
CPU = torch.device("cpu")


def tiny_unet(dtype: torch.dtype = torch.float32, seed: int = 0, family: str = "SD1.x"):
    """A ModelPatcher around a U-Net of about 1 M weights of `dtype` that computes in float32."""
    kind, model_type, sizes = FAMILIES[family]
    config = kind(COMMON | sizes | {"dtype": dtype})
    config.unet_config |= {"num_heads": 2, "num_head_channels": -1}
    config.set_inference_dtype(dtype, torch.float32 if dtype != torch.float32 else None)
    base = comfy.model_base.SDXL if family == "SDXL" else comfy.model_base.BaseModel
    model = base(config, model_type=model_type, device=CPU)
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
    return [[randn(1, tokens, WIDTH, seed=seed), {"pooled_output": randn(1, WIDTH, seed=seed)}]]


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).norm() / truth.norm())


def counted(model):
    """A clone that counts sample-passes of the U-Net, with and without gradients."""
    passes = Counter()

    def count(executor, x, *args, **kwargs):
        passes["grad" if torch.is_grad_enabled() and x.requires_grad else "no grad"] += x.shape[0]
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model, passes


def tensor_bytes() -> int:
    """What all tensors of this process hold."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):  # not what torch.compile traced with
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def fingerprint(patcher) -> dict:
    """All of a model that a run must leave as it was."""
    model = patcher.model
    weights = hashlib.sha256()
    for _, parameter in sorted(model.named_parameters()):
        weights.update(parameter.detach().numpy().tobytes())
    return {
        "weights": weights.hexdigest(),
        "pointers": [p.data_ptr() for p in model.parameters()],
        "flags": [(p.requires_grad, p.is_inference(), p.grad) for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "forwards": [m.__dict__.get("forward") for m in model.modules()],
        "patches": list(patcher.patches),
        "options": repr(patcher.model_options),
        "in_training": getattr(comfy.model_management, "in_training", None),
        "modes": (torch.is_inference_mode_enabled(), torch.is_grad_enabled()),
    }
