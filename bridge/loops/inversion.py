"""The core's DDIM inversion, hosted."""

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from latent_preview import prepare_callback
from torch import Tensor

from ...zerocon_core.methods.inversion import NoiseRegularization, Trajectory, ddim_invert
from .hosted import Run, guider_of, run_hosted


def invert(
    model: ModelPatcher,
    latent_image: Tensor,
    conditioning: list,
    sigmas: Tensor,
    regularization: NoiseRegularization | None,
    refinements: int,
    seed: int,
) -> tuple[Tensor, Trajectory]:
    """Noise (B, C, H, W) in LATENT space that a stock sampler continues from over `sigmas`, and the way there.

    The trajectory is on the CPU, in the model's own latent space.
    """

    def walk_up(run: Run) -> tuple[Tensor, Trajectory]:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            # One condition alone: guidance of other nodes is made for sampling, and would bend the way up.
            return run.ask([run.conds["positive"]], x, sigma)[0].float()

        path = ddim_invert(
            run.noising,
            denoise,
            run.latent,
            run.sigmas,
            regularization=regularization,
            generator=torch.Generator().manual_seed(seed),
            refinements=refinements,
            callback=lambda step, denoised, x: run.callback(step, denoised, x, len(sigmas) - 1),
        )
        noise = run.model.process_latent_out(path.latents[0]).to(latent_image.device)
        return noise, Trajectory(path.sigmas.cpu(), [x.cpu() for x in path.latents], [r.cpu() for r in path.residuals])

    guider, preview = guider_of(model, positive=conditioning), prepare_callback(model, len(sigmas) - 1)
    return run_hosted(guider, walk_up, latent_image, sigmas, callback=preview)


def default_sigmas(model: ModelPatcher, steps: int) -> Tensor:
    """Noise levels of exactly `steps` steps, evenly spaced in timesteps from the noisiest on (Lin et al. 2023, "trailing").

    The host's ddim_uniform takes another number of steps than it is asked for, and with few of them starts far from noise.
    """
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
