"""Attention injection as a host guider: the stock SamplerCustomAdvanced drives it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...zerocon_core.methods.injection import Injected, LocalBlend, Method, WordEdit
from ...zerocon_core.methods.inversion import Trajectory
from ..model.injection import EDITED, NEGATIVE, SOURCE, Exchange, inject, injected_layers, injection_options
from .retracing import RetracingGuider, RetracingRun, has_area, refusing

NAME = "Attention Injection"


@dataclass(frozen=True)
class BlendWords:
    """What the local blend looks for: the places of the words' tokens, by the name of the side."""

    places: Mapping[str, Sequence[int]]
    threshold: float = 0.3


@dataclass(frozen=True)
class InjectionRun(RetracingRun):
    words: WordEdit | None
    blend: LocalBlend | None


class InjectionGuider(RetracingGuider):
    """CFG from an inverted noise, with source, edit and negative prompt in one batch, of which the others take from the source.

    The source is at the latents of its inversion. `words` is what becomes of the cross-attention maps (Prompt-to-Prompt). With
    `blend` every step puts the source back outside of where these words are; so does `mask` (B, H, W) outside of itself. Steps
    in which nothing is injected or looked for are the host's.
    """

    def __init__(
        self,
        model: ModelPatcher,
        trajectory: Trajectory,
        method: Method,
        words: WordEdit | None = None,
        blend: BlendWords | None = None,
        mask: Tensor | None = None,
        align: bool = False,
    ):
        super().__init__(NAME, model, trajectory, mask, mask is not None, align)
        self.method = method
        self.words = words
        self.blend = blend
        steps = len(trajectory.sigmas) - 1
        self.injects = any(any(method.at(step, steps)) for step in range(steps))
        network = model.get_model_object("diffusion_model")
        self.layers = injected_layers(network, method) if self.injects or blend is not None else None

    @property
    def acts(self) -> bool:
        return self.injects or self.blend is not None or super().acts

    @property
    def needs_next(self) -> bool:
        return self.blend is not None or super().needs_next

    def check(self, noise, latent_image, sampler, sigmas, denoise_mask) -> None:
        super().check(noise, latent_image, sampler, sigmas, denoise_mask)
        for name in (SOURCE, EDITED):
            if len(self.original_conds[name]) != 1:
                raise ValueError(
                    f"the {'edited' if name == EDITED else name} conditioning has {len(self.original_conds[name])} prompts; it "
                    "needs one, before Conditioning Combine"
                )
        entries = [entry for name in (SOURCE, EDITED, NEGATIVE) for entry in self.original_conds[name]]
        if any(has_area(entry) for entry in entries):
            raise ValueError("prompts that have an area of their own cannot be injected; leave the areas away")
        if any("control" in entry for entry in entries):
            raise ValueError("a ControlNet would see the edit in place of the source; leave it away, or use PatchNCE Guidance")
        if "sampler_calc_cond_batch_function" in self.model_options:
            other = self.model_options["sampler_calc_cond_batch_function"]
            raise ValueError(f"another node ({other.__module__}) already runs the passes of the model itself; remove it")

    def begin(self, latent_image: Tensor, sigmas: Tensor, free: Tensor | None) -> InjectionRun:
        words = None if self.words is None else self.words.on(sigmas.device)
        blend = None if self.blend is None else LocalBlend(self.blend.places, self.blend.threshold)
        return InjectionRun(sigmas, free, words, blend)

    def answer(self, x, timestep, sigma, sigma_next, model_options, seed):
        injected = self.method.at(self.level_of(sigma), len(self.trajectory.sigmas) - 1)
        blend = self.run.blend
        if not any(injected) and blend is None:
            return super().answer(x, timestep, sigma, sigma_next, model_options, seed)

        def passes(args: dict) -> list[Tensor]:
            source = self.asked_at(self.source_at(sigma).to(x), sigma)
            return self.passes(args, source, injected)

        with refusing(NAME):
            options = model_options | {"sampler_calc_cond_batch_function": passes}
            answer = super().answer(x, timestep, sigma, sigma_next, options, seed)
        if blend is None:
            return answer
        return self.outside(answer, x, sigma, sigma_next, blend.mask(x.shape[-2:]).to(x))

    def passes(self, args: dict, source: Tensor, injected: Injected) -> list[Tensor]:
        """The passes of CFG, that of the source with them."""
        cond, uncond = args["conds"]
        exchange = Exchange(frozenset({EDITED, NEGATIVE} if self.method.negative and uncond is not None else {EDITED}))
        words, blend = self.run.words, self.run.blend
        options = injection_options(args["model_options"], exchange, source, self.layers, injected, words, blend)
        conds = {EDITED: cond, NEGATIVE: uncond, SOURCE: self.conds[SOURCE]}
        block = self.layers.block if injected.features else None
        return inject(args["model"], conds, args["input"], args["sigma"], options, exchange, block)[:2]
