"""A loop of the core where the host would sample: it loads, patches, batches and frees the model as for any sampling."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from torch import Tensor

from ...zerocon_core.methods.cds import Recording
from ...zerocon_core.noising import Noising
from ..model.autograd import GradientRegion, forget_failed_backward, may_write_in_place, reserve_for_backward
from ..model.conditioning import check_cover
from ..model.noising import noising_of
from ..model.patches import repeatable

Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """What the host hands to a loop, in tensors that gradients can be taken of."""

    guider: comfy.samplers.CFGGuider
    sigmas: Tensor
    latent: Tensor
    """Clean latent (B, C, H, W) in the model's own latent space, float32."""
    noise: Tensor
    mask: Tensor | None
    """(B, 1, H, W) where the latent came with one."""
    options: dict
    """Model options of this run alone."""
    callback: Callable
    """The host's, or that of whoever asked for the run."""

    @property
    def model(self) -> BaseModel:
        return self.guider.inner_model

    @property
    def conds(self) -> dict[str, list[dict]]:
        return self.guider.conds

    @property
    def noising(self) -> Noising:
        return noising_of(self.model.model_sampling)

    def ask(self, conds: list[list[dict]], x: Tensor, sigma: Tensor) -> list[Tensor]:
        """The denoised latents of x (B, C, H, W) at one noise level under each of `conds`, without CFG.

        Raises ValueError for a condition that leaves out a part of x at this level.
        """
        levels = sigma * x.new_ones(len(x))
        for cond in conds:
            check_cover(cond, x, levels)
        comfy.model_management.throw_exception_if_processing_interrupted()
        return comfy.samplers.calc_cond_batch(self.model, conds, x, levels, self.options)

    @property
    def patched(self) -> bool:
        """Whether something beside the model acts in its passes: patches and hooks of other nodes, ControlNets."""
        return may_write_in_place(self.conds.values(), self.options)

    def recording(self, checkpointing: bool = False) -> Recording:
        return recording(self.guider, self.options, checkpointing)


def recording(guider: comfy.samplers.CFGGuider, model_options: dict, checkpointing: bool = False) -> Recording:
    """Opens where gradients flow through the models that the host has loaded for the run of `guider`. Made once a run."""
    models = [guider.inner_model, *(extra.model for extra in guider.loaded_models)]
    return GradientRegion(models, checkpointing, may_write_in_place(guider.conds.values(), model_options)).recording


class LoopSampler(comfy.samplers.Sampler, Generic[Result]):
    """Runs `loop` once, outside inference mode. `result` is what it returned."""

    def __init__(self, loop: Callable[[Run], Result]):
        self.loop = loop
        self.result: Result | None = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        comfy.model_management.throw_exception_if_processing_interrupted()
        with torch.inference_mode(False), torch.no_grad():
            mask = None if denoise_mask is None else denoise_mask.float().clone()
            tensors = sigmas.clone(), latent_image.float().clone(), noise.clone(), mask
            try:
                self.result = self.loop(Run(model_wrap, *tensors, repeatable(extra_args["model_options"]), callback))
            finally:
                forget_failed_backward()  # also where a loop ends well after a cancel, as training does
        return latent_image


def run_hosted(
    guider: comfy.samplers.CFGGuider,
    loop: Callable[[Run], Result],
    latent_image: Tensor,
    sigmas: Tensor,
    *,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    backward: bool = False,
    checkpointing: bool = False,
    callback: Callable | None = None,
    seed: int | None = None,
) -> Result:
    """What `loop` returns when the host runs it over a LATENT's samples (B, C, H, W).

    `backward` has the host free memory for passes with gradients, as many as `checkpointing` leaves, before it loads the model.
    """
    if backward:
        guider.model_options = create_model_options_clone(guider.model_options)
        reserve_for_backward(guider.model_options, checkpointing)
    sampler = LoopSampler(loop)
    noise = torch.zeros_like(latent_image) if noise is None else noise
    guider.sample(noise, latent_image, sampler, sigmas, mask, callback, seed=seed)
    return sampler.result


def guider_of(model: ModelPatcher, cfg: float = 1.0, **conditionings: list) -> comfy.samplers.CFGGuider:
    """The host's guider over these CONDITIONINGs, by name; what it predicts itself is `positive` against `negative`."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditionings)
    guider.set_cfg(cfg)
    return guider
