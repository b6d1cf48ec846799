"""What guiders share that walk an inversion back down: they know the source at every noise level of the sampler."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import comfy.k_diffusion.sampling
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.maps.differences import coverage
from ...zerocon_core.methods.inversion import Trajectory, closest_level, retracing
from ...zerocon_core.noising import leading_to
from ..model.patches import check_every_step


@dataclass(frozen=True)
class RetracingRun:
    """What exists while a sampler runs."""

    sigmas: Tensor
    free: Tensor | None
    """(B, H, W): where the edit is free."""


class RetracingGuider(comfy.samplers.CFGGuider):
    """CFG from an inverted noise, down the noise levels of its inversion.

    With `align` the residuals of the inversion are in every question to the model, so that the source comes back exactly. With
    `restores`, every step also puts the latent of the inversion back outside `mask` (B, H, W), which is DiffEdit's decoding.
    With neither it is the host's guider. `name` is what the page calls the node whose guider this is: it is the stock sampler's
    node that fails when the guider refuses.
    """

    def __init__(
        self,
        name: str,
        model: ModelPatcher,
        trajectory: Trajectory,
        mask: Tensor | None = None,
        restores: bool = False,
        align: bool = False,
    ):
        super().__init__(model)
        self.name = name
        self.trajectory = trajectory
        self.mask = mask
        self.restores = restores
        self.align = align
        self.run: RetracingRun | None = None

    @property
    def acts(self) -> bool:
        """Whether this is more than the host's guider."""
        return self.restores or self.align

    @property
    def needs_next(self) -> bool:
        """Whether a step is told where the source is at the level that it leads to."""
        return self.restores

    def sample(self, noise, latent_image, sampler, sigmas, denoise_mask=None, *args, **kwargs):
        if self.acts:
            with refusing(self.name):
                self.check(noise, latent_image, sampler, sigmas, denoise_mask)
        return super().sample(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)

    def check(
        self, noise: Tensor, latent_image: Tensor, sampler: comfy.samplers.Sampler, sigmas: Tensor, denoise_mask: Tensor | None
    ) -> None:
        """Refuse what would be guided wrongly."""
        check_every_step(self.model_patcher)
        if noise.any():
            raise ValueError("the sampler adds noise to the inverted latent; connect DisableNoise to its noise input")
        if denoise_mask is not None:
            raise ValueError(
                "the latent has a noise mask, outside of which the sampler would leave noise; take the latent without it and "
                f"connect the mask to {self.name}"
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
        self.check_levels(sigmas)
        if not self.starts_right(latent_image, float(sigmas[0])):
            raise ValueError(
                "the latent_image of the sampler is not the inverted one; connect the noise_latent and the trajectory outputs of "
                f"one DDIM Invert, to the sampler and to {self.name}"
            )

    def check_levels(self, sigmas: Tensor) -> None:
        """Raises ValueError unless the sampler visits levels of the trajectory, and with `align` one after the other."""
        used = sigmas if self.needs_next or self.align else sigmas[:-1]
        levels = [closest_level(self.trajectory.sigmas, float(sigma)) for sigma in used]
        if None in levels:
            raise ValueError(
                f"the trajectory has no latent at sigma {float(used[levels.index(None)]):.4g}; connect the sigmas output of the "
                "DDIM Invert that made the trajectory to the sampler"
            )
        if not self.align:
            return
        if not self.trajectory.residuals:
            raise ValueError(
                "align is on, but the trajectory cannot be walked back exactly, because the noise was regularised on its way up; "
                "set lambda_ac and lambda_kl of DDIM Invert to 0, or align to off"
            )
        if levels != list(range(levels[0], levels[0] + len(levels))):
            raise ValueError(
                "align is on, but the sampler leaves out noise levels of the trajectory; connect the sigmas output of DDIM "
                "Invert to the sampler, or set align to off"
            )

    def starts_right(self, latent_image: Tensor, sigma: float) -> bool:
        """Whether a run from the top of the trajectory starts at what was inverted. Further down (SplitSigmas) it is an edit."""
        return closest_level(self.trajectory.sigmas[:1], sigma) is None or self.is_source(latent_image, sigma)

    def is_source(self, latent_image: Tensor, sigma: float) -> bool:
        """Whether a latent is the inverted source at a noise level."""
        start, inverted = self.model_patcher.model.process_latent_in(latent_image).cpu(), self.source_at(sigma)
        return bool((start - inverted).norm() <= 1e-2 * inverted.norm())

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs):
        free = None if self.mask is None else mask_of_latent(self.mask, latent_image).to(device)
        self.run = self.begin(latent_image, sigmas, free)
        try:
            result = super().inner_sample(noise, latent_image, device, sampler, sigmas, *args, **kwargs)
            self.finish(result)
            return result
        finally:
            self.run = None

    def begin(self, latent_image: Tensor, sigmas: Tensor, free: Tensor | None) -> RetracingRun:
        """The working state of a run of latent_image (B, C, H, W) over `sigmas`."""
        return RetracingRun(sigmas, free)

    def finish(self, result: Tensor) -> None:
        """Called with the result (B, C, H, W) of a run, while its working state still is there."""

    def predict_noise(self, x, timestep, model_options, seed=None):
        if not self.acts:
            return super().predict_noise(x, timestep, model_options, seed)
        step = closest_level(self.run.sigmas, float(timestep[0]))
        sigma, sigma_next = self.run.sigmas[step].to(x), self.run.sigmas[step + 1].to(x)
        answer = self.answer(x, timestep, sigma, sigma_next, model_options, seed)
        if self.restores:
            answer = self.outside(answer, x, sigma, sigma_next, self.run.free.unsqueeze(1))
        return answer

    def answer(self, x: Tensor, timestep: Tensor, sigma: Tensor, sigma_next: Tensor, model_options: dict, seed) -> Tensor:
        """What the sampler takes for the denoised latent of x (B, C, H, W) on its way from `sigma` to `sigma_next`."""

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            return comfy.samplers.CFGGuider.predict_noise(self, x, timestep, model_options, seed)

        return retracing(predict, self.residual_at(sigma).to(x))(x, timestep) if self.align else predict(x, timestep)

    def outside(self, answer: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor, free: Tensor) -> Tensor:
        """`answer`, and where `free` (B, 1, H, W) is 0 the one that leads to the inverted source."""
        return torch.lerp(leading_to(self.source_at(sigma_next).to(x), x, sigma, sigma_next), answer, free)

    def level_of(self, sigma: Tensor | float) -> int:
        """Its place on the trajectory, from the noisiest on."""
        return closest_level(self.trajectory.sigmas, float(sigma))

    def source_at(self, sigma: Tensor | float) -> Tensor:
        """The inverted source (B, C, H, W) at a noise level."""
        return self.trajectory.latents[self.level_of(sigma)]

    def residual_at(self, sigma: Tensor) -> Tensor:
        """How far from the inverted source at a noise level the model was asked about it, (B, C, H, W)."""
        return self.trajectory.residuals[self.level_of(sigma)]

    def asked_at(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Where the model is asked about x (B, C, H, W) at a noise level."""
        return x + self.residual_at(sigma).to(x) if self.align else x


@contextlib.contextmanager
def refusing(name: str) -> Iterator[None]:
    """Puts a node's name before what is refused inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


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
