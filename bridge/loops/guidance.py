"""The core's guided step as a host guider: the stock SamplerCustomAdvanced drives it."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.k_diffusion.sampling
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.maps.differences import coverage
from ...zerocon_core.methods.cds import Recording
from ...zerocon_core.methods.guidance import Guidance, GuidanceWeights, GuidedStep
from ...zerocon_core.methods.inversion import Trajectory, closest_level
from ...zerocon_core.noising import before_euler_step, leading_to
from ...zerocon_core.observation import Observation
from ..model.attention import hooked_layers, observe
from ..model.autograd import reserve_for_backward
from ..model.facts import HookedLayers
from ..model.noising import noising_of
from .hosted import recording

NAME = "PatchNCE Guidance"
"""What the page calls the node whose guider this is: it is the stock sampler's node that fails when the guider refuses."""


@dataclass(frozen=True)
class GuidedRun:
    """What exists while a sampler runs."""

    guidance: Guidance
    recording: Recording
    sigmas: Tensor
    free: Tensor | None
    """(B, H, W): where the edit is free."""


class ZeroConGuider(comfy.samplers.CFGGuider):
    """CFG from an inverted noise, with each step moved towards the source image that was inverted.

    A guided step costs one pass of the source without gradients, one of the edit with them, and the passes of CFG. Only the
    latents of the inversion are kept, so memory does not grow with the number of steps.

    The guidance does not look inside `mask` (B, H, W). With `restores`, every step also puts the latent of the inversion back
    outside it, which is DiffEdit's decoding. With `checkpointing`, the pass with gradients keeps the inputs of blocks alone.

    `last_run` is what the guidance did in the last finished run: a few numbers a step, and a fingerprint of the result to
    recognise it by.
    """

    def __init__(
        self,
        model: ModelPatcher,
        trajectory: Trajectory,
        weights: GuidanceWeights,
        start: float,
        end: float,
        seed: int,
        mask: Tensor | None = None,
        restores: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__(model)
        self.trajectory = trajectory
        self.weights = weights
        self.window = (start, end)
        self.seed = seed
        self.mask = mask
        self.restores = restores
        self.checkpointing = checkpointing
        self.run: GuidedRun | None = None
        self.last_run: tuple[str, list[GuidedStep]] | None = None
        hooked = hooked_layers(model) or HookedLayers()
        self.layers = HookedLayers(
            self_attention=hooked.self_attention if weights.lambda_cut else frozenset(),
            cross_attention=hooked.cross_attention if weights.lambda_xa else frozenset(),
            max_side=hooked.max_side,
        )

    @property
    def guides(self) -> bool:
        everything_free = self.mask is not None and bool((self.mask >= 1).all())
        return bool(self.weights.lambda_xa or self.weights.lambda_cut) and not everything_free

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        if self.guides or self.restores:
            with refusing():
                self.check(noise, latent_image, sampler, sigmas, denoise_mask)
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def check(
        self, noise: Tensor, latent_image: Tensor, sampler: comfy.samplers.Sampler, sigmas: Tensor, denoise_mask: Tensor | None
    ) -> None:
        """Refuse what would be guided wrongly."""
        if noise.any():
            raise ValueError("the sampler adds noise to the inverted latent; connect DisableNoise to its noise input")
        if denoise_mask is not None:
            raise ValueError(
                "the latent has a noise mask, outside of which the sampler would leave noise; take the latent without it and "
                f"connect the mask to {NAME}"
            )
        if not is_euler(sampler):
            raise ValueError(
                "this sampler does not take the plain Euler steps that the guidance is exact for; choose euler or ddim in "
                "KSamplerSelect"
            )
        if latent_image.shape != self.trajectory.latents[0].shape:
            raise ValueError(
                f"the latent_image of the sampler is {tuple(latent_image.shape)}, the trajectory is of "
                f"{tuple(self.trajectory.latents[0].shape)}; connect the latent and the trajectory of one DDIM Invert"
            )
        used = sigmas if self.restores else sigmas[:-1]
        unknown = [float(s) for s in used if closest_level(self.trajectory.sigmas, float(s)) is None]
        if unknown:
            raise ValueError(
                f"the trajectory has no latent at sigma {unknown[0]:.4g}; connect the sigmas output of the DDIM Invert that made "
                "the trajectory to the sampler"
            )
        if not self.starts_right(latent_image, float(sigmas[0])):
            raise ValueError(
                "the latent_image of the sampler is not the inverted one; connect the noise_latent and the trajectory outputs of "
                "one DDIM Invert, to the sampler and to PatchNCE Guidance"
            )
        if self.guides and self.mask is not None and any(has_area(e) for c in self.original_conds.values() for e in c):
            raise ValueError(
                "a mask does not work together with prompts that have an area of their own; leave the mask unconnected or the "
                "areas away"
            )

    def starts_right(self, latent_image: Tensor, sigma: float) -> bool:
        """Whether a run from the top of the trajectory starts at what was inverted. Further down (SplitSigmas) it is an edit."""
        if closest_level(self.trajectory.sigmas[:1], sigma) is None:
            return True
        start, inverted = self.model_patcher.model.process_latent_in(latent_image).cpu(), self.trajectory.latents[0]
        return bool((start - inverted).norm() <= 1e-2 * inverted.norm())

    def outer_sample(self, *args, **kwargs):
        self.last_run = None
        if self.guides:  # on the options of this run alone: the host copied them for it
            reserve_for_backward(self.model_options, self.checkpointing)
        return super().outer_sample(*args, **kwargs)

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs):
        free = None if self.mask is None else mask_of_latent(self.mask, latent_image).to(device)
        draws = torch.Generator().manual_seed(self.seed)
        guidance = Guidance(noising_of(self.inner_model.model_sampling), self.weights, draws, free)
        self.run = GuidedRun(guidance, recording(self, self.model_options, self.checkpointing), sigmas, free)
        try:
            result = super().inner_sample(noise, latent_image, device, sampler, sigmas, *args, **kwargs)
            self.last_run = fingerprint(result), guidance.history
            return result
        finally:
            self.run = None

    def predict_noise(self, x, timestep, model_options, seed=None):
        if not (self.guides or self.restores):
            return super().predict_noise(x, timestep, model_options, seed)
        step = closest_level(self.run.sigmas, float(timestep[0]))
        sigma, sigma_next = self.run.sigmas[step].to(x), self.run.sigmas[step + 1].to(x)
        if self.guides and self.in_window(float(sigma)):
            with refusing():
                shift = self.shift(x, timestep, model_options)
            denoised = super().predict_noise(x + shift, timestep, model_options, seed)
            answer = before_euler_step(denoised, shift, sigma, sigma_next)
        else:
            answer = super().predict_noise(x, timestep, model_options, seed)
        if self.restores:
            outside = leading_to(self.source_at(sigma_next).to(x), x, sigma, sigma_next)
            answer = torch.lerp(outside, answer, self.run.free.unsqueeze(1))
        return answer

    def source_at(self, sigma: Tensor) -> Tensor:
        """The inverted source (B, C, H, W) at a noise level."""
        return self.trajectory.latents[closest_level(self.trajectory.sigmas, float(sigma))]

    def in_window(self, sigma: float) -> bool:
        sampling = self.inner_model.model_sampling
        start, end = (sampling.percent_to_sigma(percent) for percent in self.window)
        return end <= sigma <= start

    def shift(self, x: Tensor, timestep: Tensor, model_options: dict) -> Tensor:
        """How far the guidance moves x (B, C, H, W) at noise levels timestep (B,)."""

        def look(x: Tensor, name: str) -> Observation:
            # The source is compared with the edit, so both are asked in the same way.
            return observe(self.inner_model, self.conds[name], x, timestep, model_options, self.layers, differentiable=True)

        with self.run.recording():
            reference = look(self.source_at(timestep[0]).to(x), "source")
            return self.run.guidance.shift(lambda x: look(x, "positive"), x, timestep[0].clone(), reference)

    def history(self, result: Tensor) -> list[GuidedStep]:
        """What the guidance did in the run that ended at `result`. Raises ValueError if that was not the last one."""
        if self.last_run is None or self.last_run[0] != fingerprint(result):
            raise ValueError(
                "the latent is not the last one that was sampled with this guider; connect the output of its sampler, and give "
                "every sampler a guider of its own"
            )
        return self.last_run[1]


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Puts the node's name before what is refused inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{NAME}: {error}") from error


def fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def mask_of_latent(mask: Tensor, latent: Tensor) -> Tensor:
    """A MASK of any size and batch as (B, H, W) of the latent."""
    mask = coverage(mask.reshape(-1, *mask.shape[-2:]).float().clamp(0, 1), latent.shape[-2:])
    return comfy.utils.repeat_to_batch_size(mask, latent.shape[0])


def has_area(entry: dict) -> bool:
    return "area" in entry or bool(entry.get("set_area_to_bounds"))


def is_euler(sampler: comfy.samplers.Sampler) -> bool:
    """Whether `sampler` takes plain Euler steps: "euler" and "ddim" do."""
    function = getattr(sampler, "sampler_function", None)
    return function is comfy.k_diffusion.sampling.sample_euler and not sampler.extra_options.get("s_churn")
