"""The core's guided step as a host guider: the stock SamplerCustomAdvanced drives it."""

import comfy.k_diffusion.sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.diffusion import before_euler_step
from ...zerocon_core.guidance import Guidance, GuidanceWeights
from ...zerocon_core.inversion import Trajectory, closest_level
from .attention import HookedLayers, hooked_layers, observe
from .autograd import autograd_region, reserve_for_backward


class ZeroConGuider(comfy.samplers.CFGGuider):
    """CFG from an inverted noise, with each step moved towards the source image that was inverted.

    A guided step costs one pass of the source without gradients, one of the edit with them, and the passes of CFG. Only the
    latents of the inversion are kept, so memory does not grow with the number of steps.
    """

    def __init__(
        self, model: ModelPatcher, trajectory: Trajectory, weights: GuidanceWeights, start: float, end: float, seed: int
    ):
        super().__init__(model)
        self.trajectory = trajectory
        self.weights = weights
        self.window = (start, end)
        self.seed = seed
        hooked = hooked_layers(model)
        self.layers = HookedLayers(
            self_attention=hooked.self_attention if weights.lambda_cut else frozenset(),
            cross_attention=hooked.cross_attention if weights.lambda_xa else frozenset(),
            max_side=hooked.max_side,
        )

    @property
    def guides(self) -> bool:
        return bool(self.weights.lambda_xa or self.weights.lambda_cut)

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        if self.guides:
            self.check(latent_image, sampler, sigmas)
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def check(self, latent_image: Tensor, sampler: comfy.samplers.Sampler, sigmas: Tensor) -> None:
        """Refuse what would be guided wrongly."""
        if not is_euler(sampler):
            raise ValueError(
                "PatchNCEGuidance: this sampler does not take the plain Euler steps that the guidance is exact for. "
                "Choose euler or ddim in KSamplerSelect"
            )
        if latent_image.shape != self.trajectory.latents[0].shape:
            raise ValueError(
                f"PatchNCEGuidance: the latent_image of the sampler is {tuple(latent_image.shape)}, the trajectory is of "
                f"{tuple(self.trajectory.latents[0].shape)}. Connect the latent and the trajectory of one DDIMInvert"
            )
        unknown = [float(s) for s in sigmas[:-1] if closest_level(self.trajectory.sigmas, float(s)) is None]
        if unknown:
            raise ValueError(
                f"PatchNCEGuidance: the trajectory has no latent at sigma {unknown[0]:.4g}. Connect the sigmas output of the "
                "DDIMInvert that made the trajectory to the sampler"
            )

    def outer_sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        self.guidance = Guidance(self.weights, torch.Generator().manual_seed(self.seed))
        self.sigmas = sigmas
        if self.guides:  # on the options of this run alone: the host copied them for it
            reserve_for_backward(self.model_options)
        try:
            return super().outer_sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            del self.guidance, self.sigmas

    def predict_noise(self, x, timestep, model_options, seed=None):
        sigma = float(timestep[0])
        if not self.guides or not self.in_window(sigma):
            return super().predict_noise(x, timestep, model_options, seed)
        try:
            shift = self.shift(x, timestep, model_options)
        except ValueError as error:
            raise ValueError(f"PatchNCEGuidance: {error}") from error
        denoised = super().predict_noise(x + shift, timestep, model_options, seed)
        step = closest_level(self.sigmas, sigma)
        return before_euler_step(denoised, shift, self.sigmas[step].to(x), self.sigmas[step + 1].to(x))

    def in_window(self, sigma: float) -> bool:
        sampling = self.inner_model.model_sampling
        start, end = (sampling.percent_to_sigma(percent) for percent in self.window)
        return end <= sigma <= start

    def shift(self, x: Tensor, timestep: Tensor, model_options: dict) -> Tensor:
        """How far the guidance moves x (B, C, H, W) at noise levels timestep (B,)."""
        model = self.inner_model
        reference_latent = self.trajectory.latents[closest_level(self.trajectory.sigmas, float(timestep[0]))].to(x)
        reference = observe(model, self.conds["source"], reference_latent, timestep, model_options, self.layers)
        with autograd_region(
            [model.diffusion_model, *(extra.model for extra in self.loaded_models)],
            writes_in_place=any("control" in entry for entry in self.conds["positive"]),
        ):
            return self.guidance.shift(
                lambda x: observe(model, self.conds["positive"], x, timestep, model_options, self.layers),
                x,
                timestep[0].clone(),
                reference,
            )


def is_euler(sampler: comfy.samplers.Sampler) -> bool:
    """Whether `sampler` takes plain Euler steps: "euler" and "ddim" do."""
    function = getattr(sampler, "sampler_function", None)
    return function is comfy.k_diffusion.sampling.sample_euler and not sampler.extra_options.get("s_churn")
