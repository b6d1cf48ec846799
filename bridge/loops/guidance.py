"""The core's guided step as a host guider: the stock SamplerCustomAdvanced drives it."""

import hashlib
from dataclasses import dataclass
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.methods.cds import Recording
from ...zerocon_core.methods.guidance import Guidance, GuidanceWeights, GuidedStep
from ...zerocon_core.methods.inversion import Trajectory, closest_level
from ...zerocon_core.noising import before_euler_step
from ...zerocon_core.observation import Observation
from ..model.attention import hooked_layers, observe
from ..model.autograd import reserve_for_backward
from ..model.comparison import check_comparable
from ..model.facts import HookedLayers
from ..model.noising import noising_of
from ..model.patches import check_whole, with_one_chance
from .hosted import recording
from .retracing import RetracingGuider, RetracingRun, has_area, refusing


@dataclass(frozen=True)
class GuidedRun(RetracingRun):
    guidance: Guidance
    recording: Recording
    continued: bool
    """Whether it goes on with a guided run from the top of the trajectory, which another sampler began (SplitSigmas)."""


class ZeroConGuider(RetracingGuider):
    """CFG from an inverted noise, with each step moved towards the source image that was inverted.

    A guided step costs one pass of the source without gradients, one of the edit with them, and the passes of CFG. Only the
    latents of the inversion are kept, so memory does not grow with the number of steps.

    The guidance does not look inside `mask` (B, H, W). With `checkpointing`, the pass with gradients keeps the inputs of blocks
    alone.

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
        align: bool = False,
    ):
        super().__init__("PatchNCE Guidance", model, trajectory, mask, restores, align)
        self.weights = weights
        self.window = (start, end)
        self.seed = seed
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

    @property
    def acts(self) -> bool:
        return self.guides or super().acts

    def check(self, noise, latent_image, sampler, sigmas, denoise_mask) -> None:
        super().check(noise, latent_image, sampler, sigmas, denoise_mask)
        if self.guides and self.mask is not None and any(has_area(e) for c in self.original_conds.values() for e in c):
            raise ValueError(
                "a mask does not work together with prompts that have an area of their own; leave the mask unconnected or the "
                "areas away"
            )
        if self.guides:
            check_whole(self.model_options)
            levels = sigmas[:-1].tolist()
            if self.weights.measures_scale and self.continues(latent_image, levels[0]):
                levels.insert(0, float(self.trajectory.sigmas[0]))
            guided = [sigma for sigma in levels if self.in_window(sigma)]
            source, edited = (self.original_conds[name] for name in ("source", "positive"))
            check_comparable(self.model_patcher, self.layers, latent_image.shape[-2:], guided, source, edited)

    def continues(self, latent_image: Tensor, sigma: float) -> bool:
        """Whether a run from `sigma` on goes on with one that was guided from the top of the trajectory."""
        top = float(self.trajectory.sigmas[0])
        below = closest_level(self.trajectory.sigmas[:1], sigma) is None
        return self.guides and below and self.in_window(top) and not self.is_source(latent_image, sigma)

    def outer_sample(self, *args, **kwargs):
        self.last_run = None
        if self.guides or self.restores:  # on the options of this run alone: the host copied them for it
            self.model_options = with_one_chance(self.model_options)
        if self.guides:
            reserve_for_backward(self.model_options, self.checkpointing)
        return super().outer_sample(*args, **kwargs)

    def begin(self, latent_image: Tensor, sigmas: Tensor, free: Tensor | None) -> GuidedRun:
        draws = torch.Generator().manual_seed(self.seed)
        guidance = Guidance(noising_of(self.inner_model.model_sampling), self.weights, draws, free)
        region = recording(self, self.model_options, self.checkpointing)
        return GuidedRun(sigmas, free, guidance, region, self.continues(latent_image, float(sigmas[0])))

    def finish(self, result: Tensor) -> None:
        self.last_run = fingerprint(result), self.run.guidance.history

    def answer(self, x, timestep, sigma, sigma_next, model_options, seed):
        if not (self.guides and self.in_window(float(sigma))):
            return super().answer(x, timestep, sigma, sigma_next, model_options, seed)
        with refusing(self.name):
            shift = self.shift(x, timestep, model_options)
        denoised = super().answer(x + shift, timestep, sigma, sigma_next, model_options, seed)
        return before_euler_step(denoised, shift, sigma, sigma_next)

    def in_window(self, sigma: float) -> bool:
        sampling = self.model_patcher.get_model_object("model_sampling")
        start, end = (sampling.percent_to_sigma(percent) for percent in self.window)
        return end <= sigma <= start

    def shift(self, x: Tensor, timestep: Tensor, model_options: dict) -> Tensor:
        """How far the guidance moves x (B, C, H, W) at noise levels timestep (B,), all of them sigma."""

        def look(name: str, levels: Tensor, x: Tensor) -> Observation:
            # The source is compared with the edit, so both are asked in the same way.
            asked = self.asked_at(x, levels[0])
            return observe(self.inner_model, self.conds[name], asked, levels, model_options, self.layers, differentiable=True)

        guidance = self.run.guidance
        with self.run.recording():
            if self.run.continued and not guidance.measured:
                top, start = self.trajectory.sigmas[0].to(timestep).expand_as(timestep), self.trajectory.latents[0].to(x)
                guidance.measure(partial(look, "positive", top), start, look("source", top, start))
            reference = look("source", timestep, self.source_at(timestep[0]).to(x))
            return guidance.shift(partial(look, "positive", timestep), x, timestep[0].clone(), reference)

    def history(self, result: Tensor) -> list[GuidedStep]:
        """What the guidance did in the run that ended at `result`. Raises ValueError if that was not the last one."""
        if self.last_run is None or self.last_run[0] != fingerprint(result):
            raise ValueError(
                "the latent is not the last one that was sampled with this guider; connect the output of its sampler, and give "
                "every sampler a guider of its own"
            )
        return self.last_run[1]


def fingerprint(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
