"""Gradients where another pass swaps the weights in the model between forward and backward: LoRAs by hooks of the host."""

import comfy.hooks
import comfy.samplers
import pytest
import torch
from tiny import conditioning, fingerprint, randn, relative_error, tiny_unet
from zerocon_pack.bridge.model.autograd import GradientRegion
from zerocon_pack.bridge.model.facts import attention_projections

X = randn(1, 4, 16, 12, seed=1)
SIGMA = torch.tensor([1.5])
RANK = 4
FIRST, SECOND = conditioning(1), conditioning(2)


def lora(model, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of all attention projections, in the host's file format."""
    state = {}
    for number, (name, layer) in enumerate(attention_projections(model.model).items()):
        state[f"{name}.lora_up.weight"] = randn(layer.out_features, RANK, seed=seed + 2 * number) * 0.3
        state[f"{name}.lora_down.weight"] = randn(RANK, layer.in_features, seed=seed + 2 * number + 1) * 0.3
    return state


def hooked(cond: list, lora: dict) -> list:
    """`cond` under the LoRA, as Set CLIP Hooks and Create Hook LoRA make it."""
    hooks = comfy.hooks.create_hook_lora(lora, 1.0, 1.0)
    return comfy.hooks.set_hooks_for_conditioning(cond, hooks)


def merged(seed: int):
    """A float32 model with the LoRA in its weights."""
    model = tiny_unet()
    state = lora(model, seed)
    with torch.no_grad():
        for name, layer in attention_projections(model.model).items():
            layer.weight += state[f"{name}.lora_up.weight"] @ state[f"{name}.lora_down.weight"]
    return model


class Probe(comfy.samplers.Sampler):
    """Takes something in place of sampling, where the host has prepared the model and its hooks."""

    def __init__(self, take):
        self.take = take

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        self.taken = self.take(model_wrap, extra_args["model_options"])
        return latent_image


def guider_of(model, conds: dict[str, list]) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conds)
    return guider


def probed(guider: comfy.samplers.CFGGuider, take):
    """`take(guider, model_options)` where the host has prepared the model for a run."""
    probe = Probe(take)
    guider.sample(torch.zeros_like(X), torch.zeros_like(X), probe, SIGMA, disable_pbar=True)
    return probe.taken


def predicted(guider, x, name, options) -> torch.Tensor:
    return comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds[name]], x, SIGMA, options)[0]


def plain_gradient(*models_and_conds) -> torch.Tensor:
    """Of the mean of the predictions, by autograd alone, through models whose weights nothing swaps."""
    with torch.enable_grad():
        x = X.clone().requires_grad_(True)
        guiders = [guider_of(model, {"positive": cond}) for model, cond in models_and_conds]
        outs = [probed(guider, lambda guider, options: predicted(guider, x, "positive", options)) for guider in guiders]
        return torch.autograd.grad((sum(outs) / len(outs)).square().mean(), x)[0]


def region_gradient(model, conds, between=None, checkpointing=False) -> torch.Tensor:
    """Of the prediction of "positive", with a pass of `between` before the backward pass."""

    def take(guider, options):
        with GradientRegion([guider.inner_model], checkpointing=checkpointing).recording():
            x = X.clone().requires_grad_(True)
            out = predicted(guider, x, "positive", options)
            if between is not None:
                with torch.no_grad():
                    predicted(guider, X, between, options)
            return torch.autograd.grad(out.square().mean(), x)[0]

    with torch.inference_mode():
        return probed(guider_of(model, conds), take)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("inference", [False, True], ids=["plain weights", "inference weights"])
def test_entries_of_one_conditioning_under_loras_of_their_own(inference, checkpointing):
    with torch.inference_mode(inference):
        model = tiny_unet()
    before = fingerprint(model)
    both = hooked(FIRST, lora(model, 100)) + hooked(SECOND, lora(model, 200))
    expected = plain_gradient((merged(100), FIRST), (merged(200), SECOND))
    assert relative_error(plain_gradient((merged(100), FIRST), (merged(100), SECOND)), expected) > 1e-2, "the LoRAs must matter"
    assert relative_error(region_gradient(model, {"positive": both}, checkpointing=checkpointing), expected) < 1e-4
    assert fingerprint(model) == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pass_of_another_conditioning_before_the_backward_pass(checkpointing):
    model = tiny_unet()
    before = fingerprint(model)
    conds = {"positive": hooked(FIRST, lora(model, 100)), "negative": SECOND}
    gradient = region_gradient(model, conds, between="negative", checkpointing=checkpointing)
    assert relative_error(gradient, plain_gradient((merged(100), FIRST))) < 1e-4
    assert fingerprint(model) == before
