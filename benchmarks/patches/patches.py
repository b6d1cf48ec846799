"""What the host's nodes put on a model or on a conditioning, at settings that change what the model computes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import comfy.hooks
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from zerocon_pack.bridge.model.adapters import lora_state, new_adapters
from zerocon_pack.zerocon_core.toyworld import config

from .models import Hypernetwork, controlnet, gligen, wider
from .subject import SIDE, Subject, stock

Patch = Callable[[Subject], Subject]


def on_model(name: str, **inputs) -> Patch:
    """A node of the host that takes MODEL and gives MODEL."""
    return lambda subject: replace(subject, model=stock(name, model=subject.model, **inputs)[0])


def on_prompts(change: Callable[[Subject, list], list]) -> Patch:
    """The same done to all three conditionings."""

    def put(subject: Subject) -> Subject:
        changed = {name: change(subject, getattr(subject, name)) for name in ("source", "edited", "negative")}
        return replace(subject, **changed)

    return put


def on_each_prompt(name: str, **inputs) -> Patch:
    """A node of the host that takes CONDITIONING and gives CONDITIONING."""
    return on_prompts(lambda subject, prompt: stock(name, conditioning=prompt, **inputs)[0])


def lora(subject: Subject) -> dict[str, torch.Tensor]:
    """A LoRA of all attention projections that matters."""
    adapters = new_adapters(subject.model, 4, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.up.copy_(torch.randn(adapter.up.shape, generator=draw) * 0.05)
    return lora_state(adapters)


def with_lora(subject: Subject, **inputs) -> Subject:
    inputs = dict(lora=lora(subject), strength_model=1.0) | inputs
    return replace(subject, model=stock("LoraModelLoader", model=subject.model, **inputs)[0])


def with_hook_lora(subject: Subject) -> Subject:
    """As Create Hook LoRA and Set CLIP Hooks make it, on the prompt of the edit alone."""
    hooks = comfy.hooks.create_hook_lora(lora(subject), 1.0, 1.0)
    return replace(subject, edited=comfy.hooks.set_hooks_for_conditioning(subject.edited, hooks))


def perp_neg(subject: Subject) -> Subject:
    (model,) = stock("PerpNeg", model=subject.model, empty_conditioning=subject.negative, neg_scale=1.0)
    return replace(subject, model=model)


def merged(name: str, **inputs) -> Patch:
    """With the model that a LoRA makes of it."""
    return lambda subject: replace(subject, model=stock(name, model1=subject.model, model2=with_lora(subject).model, **inputs)[0])


def with_difference(subject: Subject) -> Subject:
    """The usual use of ModelMergeAdd and ModelMergeSubtract: what another model learned, added to this one."""
    (difference,) = stock("ModelMergeSubtract", model1=with_lora(subject).model, model2=subject.model, multiplier=1.0)
    return replace(subject, model=stock("ModelMergeAdd", model1=subject.model, model2=difference)[0])


def sharpened(subject: Subject) -> Subject:
    (operation,) = stock("LatentOperationSharpen", sharpen_radius=2, sigma=1.0, alpha=0.1)
    return replace(subject, model=stock("LatentApplyOperationCFG", model=subject.model, operation=operation)[0])


def compiled(subject: Subject) -> Subject:
    """What TorchCompileModel does, with a backend that needs no compiler."""
    model = subject.model.clone()
    guard = {"guard_filter_fn": lambda entries: ["transformer_options" not in entry.name for entry in entries]}
    set_torch_compile_wrapper(model=model, backend="eager", options=guard)
    return replace(subject, model=model)


def with_hypernetwork(subject: Subject) -> Subject:
    model, patch = subject.model.clone(), Hypernetwork(config.UNET_CONFIG["context_dim"])
    model.set_model_attn1_patch(patch)
    model.set_model_attn2_patch(patch)
    return replace(subject, model=model)


def halves(subject: Subject, prompt: list) -> list:
    """The same words on each half of the image."""
    area = dict(width=0.5, height=1.0, y=0.0, strength=1.0)
    left, right = (stock("ConditioningSetAreaPercentage", conditioning=prompt, x=x, **area)[0] for x in (0.0, 0.5))
    return left + right


def half(subject: Subject, prompt: list) -> list:
    area = dict(width=0.5, height=1.0, x=0.0, y=0.0, strength=1.0)
    return stock("ConditioningSetAreaPercentage", conditioning=prompt, **area)[0]


def masked(subject: Subject, prompt: list) -> list:
    mask = torch.linspace(0.2, 1, SIDE).expand(1, SIDE, -1)
    return stock("ConditioningSetMask", conditioning=prompt, mask=mask, strength=1.0, set_cond_area="default")[0]


def with_controlnet(subject: Subject, prompt: list) -> list:
    inputs = dict(control_net=controlnet(), image=subject.picture, strength=1.0)
    return stock("ControlNetApply", conditioning=prompt, **inputs)[0]


def with_gligen(subject: Subject, prompt: list) -> list:
    box = dict(text="a star", width=32, height=32, x=16, y=16)
    boxes = gligen(subject.model.model.diffusion_model)
    return stock("GLIGENTextBoxApply", conditioning_to=prompt, clip=subject.clip, gligen_textbox_model=boxes, **box)[0]


def with_picture(subject: Subject, prompt: list) -> list:
    """As InpaintModelConditioning and InstructPixToPixConditioning hand the picture to models that take one."""
    mask = torch.ones(1, 1, SIDE, SIDE)
    picture = {"concat_latent_image": subject.latent["samples"], "concat_mask": mask}
    return [[tokens, options | picture] for tokens, options in prompt]


def takes_a_picture(kind: str) -> Patch:
    return lambda subject: on_prompts(with_picture)(replace(subject, model=wider(subject.model, kind)))


DEEP_SHRINK = dict(
    block_number=3, downscale_factor=2.0, start_percent=0.0, end_percent=0.9, downscale_after_skip=True,
    downscale_method="bilinear", upscale_method="bilinear",
)  # fmt: skip
CACHE: dict[str, Any] = dict(reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)
WINDOWS: dict[str, Any] = dict(
    context_length=4, context_overlap=2, context_schedule="standard_static", context_stride=1, closed_loop=False,
    fuse_method="pyramid", dim=2, freenoise=False,
)  # fmt: skip
SKIP = dict(scale=3.0, start_percent=0.0, end_percent=1.0)
MULTIPLY = dict(q=1.2, k=0.9, v=1.1, out=1.1)
SCHEDULE = "ModelSamplingContinuousEDM"

PATCHES: dict[str, Patch] = {
    "nothing": lambda subject: subject,
    "FreeU": on_model("FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU_V2": on_model("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "PerturbedAttentionGuidance": on_model("PerturbedAttentionGuidance", scale=3.0),
    "SelfAttentionGuidance": on_model("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "NAGuidance": on_model("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    "APG": on_model("APG", eta=1.0, norm_threshold=5.0, momentum=0.0),
    "APG, momentum": on_model("APG", eta=1.0, norm_threshold=5.0, momentum=0.5),
    "PerpNeg": perp_neg,
    "CFGZeroStar": on_model("CFGZeroStar"),
    "CFGNorm": on_model("CFGNorm", strength=1.0),
    "RescaleCFG": on_model("RescaleCFG", multiplier=0.7),
    "RenormCFG": on_model("RenormCFG", cfg_trunc=100.0, renorm_cfg=1.0),
    "TCFG": on_model("TCFG"),
    "Mahiro": on_model("Mahiro"),
    "FreSca": on_model("FreSca", scale_low=1.0, scale_high=1.25, freq_cutoff=4),
    "CFGOverride": on_model("CFGOverride", cfg=1.0, start_percent=0.5, end_percent=1.0),
    "Epsilon Scaling": on_model("Epsilon Scaling", scaling_factor=1.02),
    "TemporalScoreRescaling": on_model("TemporalScoreRescaling", tsr_k=0.95, tsr_sigma=1.0),
    "LatentApplyOperationCFG": sharpened,
    "VideoLinearCFGGuidance": on_model("VideoLinearCFGGuidance", min_cfg=1.0),
    "SkipLayerGuidanceDiT": on_model("SkipLayerGuidanceDiT", double_layers="0", single_layers="0", rescaling_scale=0.0, **SKIP),
    "SkipLayerGuidanceSD3": on_model("SkipLayerGuidanceSD3", layers="0", **SKIP),
    "TomePatchModel": on_model("TomePatchModel", ratio=0.5),
    "HyperTile": on_model("HyperTile", tile_size=32, swap_size=2, max_depth=1, scale_depth=False),
    "PatchModelAddDownscale": on_model("PatchModelAddDownscale", **DEEP_SHRINK),
    "EasyCache": on_model("EasyCache", **CACHE),
    "LazyCache": on_model("LazyCache", **CACHE),
    "ContextWindowsManual": on_model("ContextWindowsManual", **WINDOWS),
    "TorchCompileModel": compiled,
    "DifferentialDiffusion": on_model("DifferentialDiffusion", strength=1.0),
    "UNetSelfAttentionMultiply": on_model("UNetSelfAttentionMultiply", **MULTIPLY),
    "UNetCrossAttentionMultiply": on_model("UNetCrossAttentionMultiply", **MULTIPLY),
    "UNetTemporalAttentionMultiply": on_model(
        "UNetTemporalAttentionMultiply", self_structural=1.1, self_temporal=1.2, cross_structural=0.9, cross_temporal=1.1
    ),
    "HypernetworkLoader": with_hypernetwork,
    "LoraModelLoader": with_lora,
    "LoraModelLoader, bypass": partial(with_lora, bypass=True),
    "Create Hook LoRA": with_hook_lora,
    "ModelMergeSimple": merged("ModelMergeSimple", ratio=0.5),
    "ModelMergeAdd of ModelMergeSubtract": with_difference,
    "ModelMergeBlocks": merged("ModelMergeBlocks", input=0.5, middle=0.2, out=0.8),
    "ModelSamplingDiscrete, zsnr": on_model("ModelSamplingDiscrete", sampling="eps", zsnr=True),
    "ModelSamplingDiscrete, v": on_model("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    "ModelSamplingDiscrete, lcm": on_model("ModelSamplingDiscrete", sampling="lcm", zsnr=False),
    "ModelSamplingDiscrete, x0": on_model("ModelSamplingDiscrete", sampling="x0", zsnr=False),
    "ModelSamplingContinuousEDM, edm": on_model(SCHEDULE, sampling="edm", sigma_max=80.0, sigma_min=0.002),
    "ModelSamplingContinuousEDM, eps": on_model(SCHEDULE, sampling="eps", sigma_max=80.0, sigma_min=0.002),
    "ModelSamplingContinuousV": on_model("ModelSamplingContinuousV", sampling="v_prediction", sigma_max=80.0, sigma_min=0.03),
    "ModelSamplingStableCascade": on_model("ModelSamplingStableCascade", shift=2.0),
    "ModelSamplingSD3": on_model("ModelSamplingSD3", shift=3.0),
    "ModelComputeDtype": on_model("ModelComputeDtype", dtype="fp32"),
    "ScaleROPE": on_model("ScaleROPE", scale_x=1.1, shift_x=0.0, scale_y=1.0, shift_y=0.0, scale_t=1.0, shift_t=0.0),
    "inpaint model": takes_a_picture("inpaint"),
    "InstructPixToPixConditioning": takes_a_picture("ip2p"),
    "ControlNetApply": on_prompts(with_controlnet),
    "GLIGENTextBoxApply": on_prompts(with_gligen),
    "ConditioningSetArea, two halves": on_prompts(halves),
    "ConditioningSetArea, one half": on_prompts(half),
    "ConditioningSetMask": on_prompts(masked),
    "ConditioningSetTimestepRange": on_each_prompt("ConditioningSetTimestepRange", start=0.3, end=0.6),
    "ConditioningZeroOut of the negative": lambda subject: replace(
        subject, negative=stock("ConditioningZeroOut", conditioning=subject.negative)[0]
    ),
}
"""By the host's name for each, and what is said of its settings."""
