"""Gradients through models that write in place to what autograd saved, and through weights that are streamed into nn.RMSNorm."""

import comfy.model_management
import comfy.ops
import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_freelunch import FreeU_V2
from test_autograd import stream_weights
from tiny import CPU, WIDTH, fingerprint, randn, relative_error, tiny_unet
from tiny_dit import tiny_dit
from zerocon_pack.bridge.model.autograd import GradientRegion, may_write_in_place

CHECKPOINTING = pytest.mark.parametrize("checkpointing", [False, True])
POOLED, MASK = randn(1, WIDTH, seed=3), torch.ones(1, 7).long()
PYTORCH = {"optimized_attention_override": lambda func, *args, **kwargs: attention_pytorch(*args, **kwargs)}
SIGMA = torch.tensor([0.6])


def start(patcher) -> torch.Tensor:
    return randn(2, patcher.model.latent_format.latent_channels, 16, 12, seed=1)


def prediction(patcher, x: torch.Tensor) -> torch.Tensor:
    """Of the model under one prompt, as the host asks for it."""
    # Lumina2 reads the mask of its tokens; FLUX asks an image for it on the older host.
    options = {"attention_mask": MASK} if "Lumina" in type(patcher.model).__name__ else {}
    cond = comfy.sampler_helpers.convert_cond([[randn(1, 7, WIDTH, seed=2), {"pooled_output": POOLED} | options]])
    cond = comfy.samplers.process_conds(patcher.model, x.detach(), {"positive": cond}, CPU, x.detach(), None, 0)["positive"]
    options = patcher.model_options | {"transformer_options": patcher.model_options.get("transformer_options", {}) | PYTORCH}
    patcher.pre_run()
    try:
        return comfy.samplers.calc_cond_batch(patcher.model, [cond], x, SIGMA, options)[0]
    finally:
        patcher.cleanup()


def central_difference(patcher, direction: torch.Tensor, step: float) -> float:
    """The slope of the mean square of the prediction along `direction`, the mean in float64."""
    with torch.no_grad():
        up, down = (prediction(patcher, start(patcher) + sign * step * direction).double().square().mean() for sign in (1, -1))
    return float((up - down) / (2 * step))


def region_gradient(patcher, checkpointing: bool) -> torch.Tensor:
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([patcher])
        writes_in_place = may_write_in_place([], patcher.model_options)
        with GradientRegion([patcher.model], checkpointing, writes_in_place).recording():
            x = start(patcher).requires_grad_(True)
            return torch.autograd.grad(prediction(patcher, x).square().mean(), x)[0]


def plain_gradient(patcher) -> torch.Tensor:
    """By autograd alone, in the host's training mode, which a model that writes in place needs."""
    management = comfy.model_management
    training = getattr(management, "in_training", None)
    management.in_training = True
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor):
            x = start(patcher).requires_grad_(True)
            return torch.autograd.grad(prediction(patcher, x).square().mean(), x)[0]
    finally:
        management.in_training = training


@CHECKPOINTING
def test_blocks_that_write_in_place(checkpointing):
    """FLUX adds to the residual stream that its norms have read."""
    with torch.inference_mode():
        loaded = tiny_dit("FLUX.1")
    before = fingerprint(loaded)
    plain = tiny_dit("FLUX.1")
    expected = plain_gradient(plain)
    direction = randn(*expected.shape, seed=9)
    slope = float((expected * direction).sum())
    assert slope == pytest.approx(central_difference(plain, direction, 1e-2), rel=1e-3), "the expected gradient itself"
    assert relative_error(region_gradient(loaded, checkpointing), expected) < 1e-4
    assert fingerprint(loaded) == before


@CHECKPOINTING
def test_a_patch_that_writes_in_place(checkpointing):
    def freed(model):
        return FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0]

    with torch.inference_mode():
        loaded = freed(tiny_unet())
    expected = plain_gradient(freed(tiny_unet()))
    assert relative_error(plain_gradient(tiny_unet()), expected) > 1e-2, "the patch must matter"
    assert relative_error(region_gradient(loaded, checkpointing), expected) < 1e-4


def later_part_doubled(h, hsp, options):
    """Writes to a part of the skip connection that does not begin where the tensor does; the encoder's norms have read it."""
    hsp[:, 5:] *= 2
    return h, hsp


@CHECKPOINTING
def test_a_patch_that_writes_to_a_part_of_what_was_saved(checkpointing):
    def patched(model):
        model = model.clone()
        model.set_model_output_block_patch(later_part_doubled)
        return model

    expected = plain_gradient(patched(tiny_unet()))
    with torch.inference_mode():
        loaded = patched(tiny_unet())
    assert relative_error(region_gradient(loaded, checkpointing), expected) < 1e-4


@CHECKPOINTING
def test_norm_weights_streamed_through_a_reused_buffer(checkpointing, monkeypatch):
    rounded, half = tiny_dit("Lumina2"), tiny_dit("Lumina2", torch.float16)
    with torch.no_grad():
        for parameter in rounded.model.diffusion_model.parameters():
            parameter.copy_(parameter.half().float())
    assert any(isinstance(module, torch.nn.RMSNorm) for module in half.model.modules())
    expected = plain_gradient(rounded)
    stream_weights(monkeypatch)
    assert relative_error(region_gradient(half, checkpointing), expected) < 1e-4
