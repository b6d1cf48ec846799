"""What the host itself answers, asked afresh for each question, and slopes by central differences."""

import math
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor
from zerocon_pack.bridge.loops.hosted import guider_of


class Probe(comfy.samplers.Sampler):
    """Takes something in place of sampling, where the host has prepared the model and its conditions."""

    def __init__(self, take: Callable[[Any, dict], Any]) -> None:
        self.take = take

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        with torch.inference_mode(False), torch.no_grad():
            self.taken = self.take(model_wrap, extra_args["model_options"])
        return latent_image


def probed(guider: comfy.samplers.CFGGuider, latent: Tensor, sigma: Tensor, take: Callable[[Any, dict], Any]) -> Any:
    """`take(guider, model options)` in a run of the host at one noise level, past what the guider itself does to a run."""
    probe = Probe(take)
    comfy.samplers.CFGGuider.sample(guider, torch.zeros_like(latent), latent, probe, sigma.view(1), disable_pbar=True)
    return probe.taken


def denoised(model: ModelPatcher, conditioning: list, x: Tensor, sigma: Tensor) -> Tensor:
    """What the host answers about x (B, C, H, W), in the model's latent space, under one prompt alone.

    Patches that leave something to chance meet seed 0.
    """

    def ask(guider, options: dict) -> Tensor:
        levels = sigma.to(x) * x.new_ones(len(x))
        torch.manual_seed(0)
        return comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds["positive"]], x.clone(), levels, options)[0]

    return probed(guider_of(model, positive=conditioning), model.model.process_latent_out(x), sigma, ask)


def inverted(model: ModelPatcher, conditioning: list, latent: Tensor, sigmas: Tensor) -> Tensor:
    """The end of DDIM inversion: x' = x + (sigma' - sigma) eps(x sqrt(1 + sigma'^2) / sqrt(1 + sigma^2), sigma')."""
    x = model.model.process_latent_in(latent).double()
    for sigma, sigma_next in zip(sigmas.flip(0)[:-1].double(), sigmas.flip(0)[1:].double(), strict=True):
        guess = x * ((1 + sigma_next**2) / (1 + sigma**2)).sqrt()
        answer = denoised(model, conditioning, guess.float(), sigma_next.float()).double()
        x = x + (sigma_next - sigma) * (guess - answer) / sigma_next
    return model.model.process_latent_out(x.float())


def cross_attention(model: ModelPatcher, conditioning: list, x: Tensor, sigma: Tensor, tokens: int) -> list[Tensor]:
    """Probabilities (B, heads, positions, tokens) of each cross-attention in a pass, from the queries and keys that arrive."""
    seen = []

    def attend(func, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
        if k.shape[1] == tokens:
            split = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k))
            queries, keys = split
            seen.append((queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).softmax(-1))
        return attention_pytorch(q, k, v, heads, *args, **kwargs)

    watched = model.clone()
    watched.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILE_KEY)  # it runs without what is put on later
    watched.model_options["transformer_options"]["optimized_attention_override"] = attend
    denoised(watched, conditioning, x, sigma)
    return seen


def slope(loss: Callable[[float], float], step: float) -> float:
    """d loss / d t at 0 from four values, with an error of step^4."""
    return (8 * (loss(step) - loss(-step)) - (loss(2 * step) - loss(-2 * step))) / (12 * step)


STEPS = (1e-3, 3e-4, 3e-3, 4e-4, 1e-4, 1e-2, 3e-2)
"""Shares of a vector's length: small steps drown in rounding, large ones cut off what bends, or cross where ToMe jumps."""


def gradient_error(loss: Callable[[Tensor], float], at: Tensor, gradient: Tensor, bound: float) -> float:
    """How far `gradient` is from central differences of `loss` at `at`, as a share of its own length.

    Along itself and along two random directions. With the best of several steps, unless one is well within `bound`.
    """
    length, draw = float(gradient.norm()), torch.Generator().manual_seed(0)
    if not length:
        raise ArithmeticError("the gradient is 0")
    errors = []
    for direction in (gradient, *(torch.randn(at.shape, generator=draw).to(at) for _ in range(2))):
        unit = direction / direction.norm()
        expected, best = float((gradient.double() * unit.double()).sum()), math.inf
        for step in STEPS:
            value = slope(lambda t, unit=unit: loss(at + t * unit), step * float(at.norm()))
            best = min(best, abs(value - expected) / length)
            if best <= bound / 4:
                break
        errors.append(best)
    return max(errors)
