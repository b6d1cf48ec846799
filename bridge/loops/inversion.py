"""The core's DDIM inversion as a host sampler, run by the host's own guider machinery."""

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from latent_preview import prepare_callback
from torch import Tensor

from ...zerocon_core.methods.inversion import NoiseRegularization, Trajectory, ddim_invert


class ConditionalGuider(comfy.samplers.CFGGuider):
    """The model under one CONDITIONING, without classifier-free guidance."""

    def __init__(self, model: ModelPatcher, conditioning: list):
        super().__init__(model)
        self.inner_set_conds({"positive": conditioning})


class InversionSampler(comfy.samplers.Sampler):
    """Walks up the noise levels instead of down, and keeps the `trajectory` (on the CPU, in the model's latent space)."""

    def __init__(self, regularization: NoiseRegularization | None, refinements: int, seed: int):
        self.regularization = regularization
        self.refinements = refinements
        self.seed = seed
        self.trajectory: Trajectory | None = None

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False):
        # The gradient of the noise regularisation is taken inside this loop; the model itself needs none.
        with torch.inference_mode(False), torch.no_grad():
            latent = latent_image.float().clone()
            levels = latent.new_ones(latent.shape[0])
            trajectory = ddim_invert(
                lambda x, sigma: model_wrap(x, sigma * levels, **extra_args).float(),
                latent,
                sigmas.clone(),
                regularization=self.regularization,
                generator=torch.Generator().manual_seed(self.seed),
                refinements=self.refinements,
                callback=lambda step, denoised, x: callback(step, denoised, x, len(sigmas) - 1),
            )
        self.trajectory = Trajectory(trajectory.sigmas.cpu(), [x.cpu() for x in trajectory.latents])
        return trajectory.latents[0]


def invert(
    model: ModelPatcher,
    latent_image: Tensor,
    conditioning: list,
    sigmas: Tensor,
    regularization: NoiseRegularization | None,
    refinements: int,
    seed: int,
) -> tuple[Tensor, Trajectory]:
    """Noise (B, C, H, W) in LATENT space that a stock sampler continues from over `sigmas`, and the way there."""
    sampler = InversionSampler(regularization, refinements, seed)
    noise = ConditionalGuider(model, conditioning).sample(
        torch.zeros_like(latent_image), latent_image, sampler, sigmas, callback=prepare_callback(model, len(sigmas) - 1)
    )
    return noise, sampler.trajectory


def default_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """Noise levels of the uniform timesteps that DDIM was published with."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "ddim_uniform", steps)
